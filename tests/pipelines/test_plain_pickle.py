"""Pickles of annotations: plain values, also NumPy's, are read, all else is refused, and no code is executed."""

import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines.sources import numpy_pickle
from pipelines.sources.plain_pickle import load_plain_pickle
from refseg.errors import AnnotationError

PATH = Path("refs(unc).p")
VALUES = {
    "ids": [np.int64(5), np.int32(-7), np.uint8(255), np.bool_(True), np.float32(0.5), np.str_("é one")],
    "pair": (np.int64(1), np.array([2, 3])),
    "boxes": np.array([[1.5, 2], [3, 4]]),
    "columns": np.asfortranarray([[1, 2], [3, 4]]),
    "big": np.array([1, 2], ">i4"),
    "point": np.array(7),
    "none": np.array([], np.int64),
    "ordered": OrderedDict(a=np.int64(1)),
}
PLAIN = {
    "ids": [5, -7, 255, True, 0.5, "é one"],
    "pair": (1, [2, 3]),
    "boxes": [[1.5, 2.0], [3.0, 4.0]],
    "columns": [[1, 2], [3, 4]],
    "big": [1, 2],
    "point": 7,
    "none": [],
    "ordered": {"a": 1},
}


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("numpy_version", [1, 2])
def test_numbers_and_arrays_of_numpy_become_plain(protocol: int, numpy_version: int) -> None:
    data = pickle.dumps(VALUES, protocol=protocol)
    if numpy_version == 1:  # its modules had another name
        for module in (b"multiarray", b"numeric"):
            new, old = b"numpy._core." + module, b"numpy.core." + module
            data = data.replace(b"\x8c" + bytes([len(new)]) + new, b"\x8c" + bytes([len(old)]) + old)
            data = data.replace(b"c" + new + b"\n", b"c" + old + b"\n")
        if protocol == 4:  # frames say how long they are; without them the rest stands as it is
            data = data[:2] + data[11:]
        if protocol == 5:
            data = data[:2] + data[11:]

    found = load_plain_pickle(data, PATH)

    assert found == PLAIN
    assert repr(found) == repr(PLAIN)  # down to the types


def test_an_array_that_is_pointed_to_twice_and_a_list_of_itself_are_read() -> None:
    array = np.arange(2)
    loop: list[Any] = [array, array]
    loop.append(loop)

    found = load_plain_pickle(pickle.dumps(loop), PATH)

    assert found[0] == found[1] == [0, 1]
    assert found[2] is found


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.array([{}], object), "holds NumPy values of type 'O8'"),
        (np.datetime64("2020-01-01"), "holds NumPy values of type 'M8'"),
        (np.array([(1, 2)], [("a", int), ("b", int)]), "holds NumPy values of type 'V16'"),
        (np.complex128(1), "holds NumPy values of type 'c16'"),
        (np.int64, "uses numpy.int64"),
        (np.dtype("i8"), "holds a type or function instead of a value"),
        ({1, 2} and Path("a"), "uses pathlib"),
    ],
)
@pytest.mark.parametrize("protocol", [2, 5])
def test_other_values_are_named_with_the_way_out(value: Any, message: str, protocol: int) -> None:
    with pytest.raises(AnnotationError, match="save the records as JSON or with plain Python values") as caught:
        load_plain_pickle(pickle.dumps([value], protocol=protocol), PATH)

    assert message in str(caught.value)


def _attributes() -> dict[str, dict[str, Any]]:
    """Return all functions and classes that a pickle could name."""
    found = vars(numpy_pickle).items()
    return {name: dict(vars(value)) for name, value in found if callable(value) and hasattr(value, "__dict__")}


@pytest.mark.parametrize(
    "data",
    [
        b"cnumpy._core.multiarray\nscalar\n}S'__defaults__'\nI1\nsb.",  # state of a function
        b"cnumpy._core.multiarray\nscalar\n(N}S'__code__'\nI1\nstb.",  # attributes of a function
        b"cnumpy\ndtype\n}S'read'\nI1\nsb.",
        b"cnumpy\ndtype\n(S'i8'\ntR(I3\nS'!'\ntb.",  # a byte order that does not exist
        b"cnumpy\ndtype\n(S'i99999999999'\ntR.",
        b"cnumpy._core.multiarray\nscalar\n(I1\nS'a'\ntR.",
        b"cnumpy._core.multiarray\nscalar\n(cnumpy\ndtype\n(S'i8'\ntRS'abc'\ntR.",  # too few bytes
        b"cnumpy._core.numeric\n_frombuffer\n(S''\ncnumpy\ndtype\n(S'i8'\ntR(I4000000000\ntS'C'\ntR.",
        b"cnumpy._core.numeric\n_frombuffer\n(S''\ncnumpy\ndtype\n(S'U0'\ntR(I2000000000\ntS'C'\ntR.",
        b"c_codecs\nencode\n(V\\u0416\nS'rot13'\ntR.",
        b"cbuiltins\nbytes\n(I1000000000000\ntR.",
        b"ccollections\nOrderedDict\n.",
    ],
)
def test_a_pickle_that_misuses_the_names_it_may_use_is_refused_and_changes_nothing(data: bytes) -> None:
    before = _attributes()

    with pytest.raises(AnnotationError, match=r"refs\(unc\)\.p: "):
        load_plain_pickle(data, PATH)

    after = _attributes()
    assert after == before


@pytest.mark.parametrize("protocol", range(6))
def test_a_pickle_with_windows_line_ends_is_named(protocol: int) -> None:
    data = pickle.dumps([{"ref_id": 10, "split": "val", "text": "a\nb"}], protocol=protocol)

    with pytest.raises(AnnotationError, match=r"line ends were changed to those of Windows \(CR LF\)"):
        load_plain_pickle(data.replace(b"\n", b"\r\n"), PATH)


def test_json_under_the_name_of_a_pickle_is_named() -> None:
    with pytest.raises(AnnotationError, match=r"is JSON or text, expected a pickle; give it the suffix \.json"):
        load_plain_pickle(b' [{"ref_id": 1}]', PATH)
