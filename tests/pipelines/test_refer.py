import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipelines.records import make_records
from pipelines.sources.refer import load_plain_pickle, read_refer
from refseg.dataset.schema import find_dataset
from refseg.errors import AnnotationError, UsageError

UNC = find_dataset("refcoco/unc")


@pytest.mark.parametrize("protocol", range(6))
def test_pickles_of_every_protocol_are_read(protocol: int, tiny: Any) -> None:
    tiny.refs[0]["sentences"][0]["sent"] = "a pur é e"
    raw = read_refer(UNC, tiny.write(protocol=protocol))

    assert list(raw.refs) == tiny.refs
    assert [record for section, record in raw.tables if section == "annotations"] == tiny.annotations


def test_text_of_python_2_is_read_as_latin_1() -> None:
    # protocol 0, as Python 2 writes the str "sent" and the unicode "é"
    data = b"(dp0\nS'sent'\np1\nV\\u00e9\np2\ns."

    assert load_plain_pickle(data, Path("refs(unc).p")) == {"sent": "é"}


def test_json_serves_where_there_is_no_pickle(tiny: Any) -> None:
    folder = tiny.write() / "refcoco"
    (folder / "refs(unc).p").unlink()
    (folder / "refs(unc).json").write_text(json.dumps(tiny.refs))

    raw = read_refer(UNC, tiny.root)

    assert list(raw.refs) == tiny.refs == list(raw.refs)  # read anew each time
    assert [source.name for source in raw.sources] == ["refcoco/refs(unc).json", "refcoco/instances.json"]


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (lambda refs: refs, None),
        (lambda refs: [*refs[:-1], {**refs[-1], "split": "val"}], "differs from it at refs[4]"),
        (lambda refs: refs[:-1], "differs from it at refs[4]"),
        (lambda refs: [*refs, refs[0]], "differs from it at refs[5]"),
        (lambda refs: {"refs": refs}, "cannot be read"),
        (lambda _: "refs", "cannot be read"),
    ],
)
def test_json_that_differs_from_the_pickle_beside_it_is_named(
    other: Callable[[list[Any]], Any], message: str | None, tiny: Any, caplog: pytest.LogCaptureFixture
) -> None:
    (tiny.write() / "refcoco" / "refs(unc).json").write_text(json.dumps(other(tiny.refs)))

    assert list(read_refer(UNC, tiny.root).refs) == tiny.refs

    assert len(caplog.messages) == (message is not None)
    for said in caplog.messages:
        assert "refs(unc).p is used, but refs(unc).json beside it " + str(message) in said


def test_the_datasets_own_folder_serves_as_well(tiny: Any) -> None:
    assert read_refer(UNC, tiny.write() / "refcoco").sources == read_refer(UNC, tiny.root).sources


class _Malicious:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, ("touch ran",)


@pytest.mark.parametrize("protocol", range(6))
def test_a_pickle_that_asks_for_code_is_refused_by_name_and_runs_nothing(
    protocol: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    data = pickle.dumps([_Malicious()], protocol=protocol)

    with pytest.raises(AnnotationError, match=r"refs\(unc\)\.p: the pickle uses posix\.system, expected plain dicts"):
        load_plain_pickle(data, Path("refs(unc).p"))

    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "cannot be read as a pickle"),
        (pickle.dumps([1, 2, 3])[:-3], "cannot be read as a pickle"),
        (b"not a pickle", "cannot be read as a pickle"),
        (b"(lp0\nPoutside\na.", "refers to an object outside it"),
        (b"\x80\x02}}R.", "cannot be read as a pickle"),  # calls a dict
        (b"\x80\x02]}b.", "cannot be read as a pickle"),  # sets the state of a list
        (b"\x80\x02\x82\x01.", "cannot be read as a pickle"),  # an extension code
        (b"\x80\x05\x97.", "cannot be read as a pickle"),  # a buffer kept outside
    ],
)
def test_a_damaged_pickle_gives_one_line(data: bytes, message: str) -> None:
    with pytest.raises(AnnotationError, match=message) as caught:
        load_plain_pickle(data, Path("refs(unc).p"))

    assert "\n" not in str(caught.value)


def test_wrong_paths_say_what_is_expected_where(tiny: Any, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--annotations .*nowhere: no such folder; expected one that holds refcoco/"):
        read_refer(UNC, tmp_path / "nowhere")
    tiny.write()
    with pytest.raises(
        UsageError, match=r"found refs\(unc\)\.p, expected refs\(google\)\.p or \.json for refcoco/google"
    ):
        read_refer(find_dataset("refcoco/google"), tiny.root)
    (tiny.root / "refcoco" / "instances.json").unlink()
    with pytest.raises(UsageError, match=r"found no instances\.json"):
        read_refer(UNC, tiny.root)


@pytest.mark.parametrize(
    ("instances", "message"),
    [
        ("{", "cannot be read as JSON"),
        ("[]", "found a list, expected an object with COCO's lists"),
        ('{"images": [{"id": 7}]}', "found no list 'annotations'"),
        ('{"images": [{"id": 7}], "annotations": [{"id": 1}, {"id"', "cannot be read as JSON"),
    ],
)
def test_an_instances_file_of_another_form_is_named(instances: str, message: str, tiny: Any) -> None:
    (tiny.write() / "refcoco" / "instances.json").write_text(instances)

    with pytest.raises(AnnotationError, match=message):
        list(read_refer(UNC, tiny.root).tables)


def test_half_of_a_surrogate_pair_spoils_its_own_record_alone(tiny: Any, raw_shard: Any) -> None:
    folder = tiny.write() / "refcoco"
    tiny.refs[0]["sentences"][0]["sent"] = "a \ud83e giraffe"
    tiny.refs[1]["sentences"][0]["sent"] = "a giraffe 🦒"
    (folder / "refs(unc).p").unlink()
    (folder / "refs(unc).json").write_text(json.dumps(tiny.refs))

    records, rejects = make_records(raw_shard(read_refer(UNC, tiny.root)), mask_rule="union")

    assert [(reject.ref_id, reject.reason) for _, reject in rejects] == [(70, "malformed_ref")]
    assert records[0][1].sentences[0].sent == "a giraffe 🦒"


def test_refs_that_are_no_list_are_refused(tiny: Any) -> None:
    path = tiny.write() / "refcoco" / "refs(unc).p"
    path.write_bytes(pickle.dumps({"refs": []}))

    with pytest.raises(AnnotationError, match="found a dict, expected a list of refs"):
        read_refer(UNC, tiny.root)


def test_pickle_and_json_of_the_real_files_hold_the_same_records(shared_data: Path, tmp_path: Path) -> None:
    for dataset in ("refcoco/unc", "refcocoplus/unc", "refcocog/umd", "refcocog/google"):
        spec = find_dataset(dataset)
        folder = tmp_path / dataset / spec.folder
        shutil.copytree(shared_data / "refer-mini" / spec.folder, folder)
        (folder / f"refs({spec.split_by}).p").unlink()

        assert list(read_refer(spec, folder).refs) == list(read_refer(spec, shared_data / "refer-mini").refs)
