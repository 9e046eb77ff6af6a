"""Converts NumPy numbers and arrays in a pickle to plain values, more strictly than NumPy's own unpickling.

The pickle of `np.int64(5)` calls `scalar(dtype("i8", False, True), <8 bytes>)`. Each of these names is replaced with a
function of this module. The functions accept only types from a fixed list.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

_KINDS = "biufU"
"""Accepted kinds of NumPy types: booleans, integers, floats and text. Objects, records and dates are refused."""
_MOST_BYTES = 2**31


class NumpyFault(Exception):
    """A pickle holds data other than plain NumPy values. The text is appended to a message after "the pickle "."""


class Maker:
    """A function that a pickle may call. Unlike with a plain function, a pickle cannot set attributes."""

    __slots__ = ("_make",)
    _make: Callable[..., Any]

    def __init__(self, make: Callable[..., Any]) -> None:
        object.__setattr__(self, "_make", make)

    def __call__(self, *arguments: Any) -> Any:
        """Call the function and return its value."""
        return self._make(*arguments)

    def __setattr__(self, name: str, value: Any) -> None:
        """Refuse to set an attribute."""
        raise NumpyFault("tries to set an attribute of a function, which is not allowed")

    def __setstate__(self, state: Any) -> None:
        """Refuse to set the state."""
        raise NumpyFault("tries to set the state of a function, which is not allowed")


class _Dtype:
    """Replaces `numpy.dtype(code, align, copy)`. Of the state that is set afterwards, only the byte order is used."""

    def __init__(self, code: Any, *_flags: Any) -> None:
        code = code.decode("latin1") if isinstance(code, bytes) else code
        if not isinstance(code, str) or code[:1] not in _KINDS or not (code[1:].isdecimal() and len(code) < 9):
            raise NumpyFault(f"holds NumPy values of type {code!r:.40}")
        self._code = code
        self._order = "="

    def __setstate__(self, state: Any) -> None:
        order = state[1] if isinstance(state, tuple) and len(state) > 1 else None
        order = order.decode("latin1") if isinstance(order, bytes) else order
        if order not in ("<", ">", "=", "|"):
            raise NumpyFault("holds a NumPy type of unknown byte order")
        self._order = order

    def read(self, data: Any, count: int) -> Any:
        """Return `(count,)` values from bytes."""
        if isinstance(data, str):  # bytes of Python 2
            data = data.encode("latin1")
        dtype = np.dtype(self._order + self._code)
        if not isinstance(data, bytes | bytearray) or len(data) != count * dtype.itemsize or len(data) > _MOST_BYTES:
            raise NumpyFault(f"holds {count} NumPy values, but not in {count * dtype.itemsize} bytes")
        if not dtype.itemsize:  # empty text
            return np.zeros(min(count, 1), dtype)
        return np.frombuffer(data, dtype)


class _Array:
    """Replaces `numpy.ndarray`. `_reconstruct` makes an empty array, which is filled when the state is set."""

    value: Any = None

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, tuple) or len(state) != 5:
            raise NumpyFault("holds a damaged NumPy array")
        _, shape, dtype, is_fortran, data = state
        self.value = _shape(data, dtype, shape, "F" if is_fortran else "C")


def _scalar(dtype: Any, data: Any = None) -> Any:
    if not isinstance(dtype, _Dtype):
        raise NumpyFault("holds a NumPy number without a type")
    return dtype.read(data, 1)[0].item()


def _reconstruct(*_arguments: Any) -> _Array:
    return _Array()


def _from_buffer(data: Any, dtype: Any, shape: Any, order: Any = "C") -> Any:
    return _shape(data, dtype, shape, order)


def _shape(data: Any, dtype: Any, shape: Any, order: Any) -> Any:
    is_shape = isinstance(shape, tuple) and all(type(side) is int and 0 <= side <= _MOST_BYTES for side in shape)
    if not isinstance(dtype, _Dtype) or not is_shape or len(shape) > 8 or order not in ("C", "F"):
        raise NumpyFault("holds a damaged NumPy array")
    count = math.prod(shape)
    # An array without values becomes [], because a shape such as (2**31, 0) would make 2**31 empty lists.
    return dtype.read(data, count).reshape(shape, order=order).tolist() if count else []


def _encode(text: Any, encoding: Any = "latin1") -> bytes:
    """Replace `_codecs.encode`, with which pickles of protocols 0 to 2 store bytes."""
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise NumpyFault(f"holds bytes in the encoding {encoding!r:.40}")
    return text.encode("latin1")


NUMPY_GLOBALS: dict[tuple[str, str], Maker] = {
    ("numpy", "dtype"): Maker(_Dtype),
    ("numpy", "ndarray"): Maker(_Array),  # an argument of `_reconstruct`, which ignores it
    ("_codecs", "encode"): Maker(_encode),
    **{(f"numpy.{core}.multiarray", "scalar"): Maker(_scalar) for core in ("core", "_core")},
    **{(f"numpy.{core}.multiarray", "_reconstruct"): Maker(_reconstruct) for core in ("core", "_core")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): Maker(_from_buffer) for core in ("core", "_core")},
}
"""Replacements for the names that NumPy 1 and 2 write, by module and name."""


def replace_arrays(value: Any) -> Any:
    """Replace arrays with plain lists, at any depth of dicts, lists and tuples.

    Raises:
        RecursionError: If containers are nested too deeply.
    """
    return _replace(value, {})


def _replace(value: Any, done: dict[int, Any]) -> Any:
    """Replace arrays in a value. `done` holds the results by id, so that a shared container is visited only once."""
    if isinstance(value, _Array):
        return value.value
    if isinstance(value, _Dtype | Maker):
        raise NumpyFault("holds a type or function instead of a value")
    if id(value) in done:
        return done[id(value)]
    if isinstance(value, dict):
        done[id(value)] = value
        for key in value:
            value[key] = _replace(value[key], done)
    elif isinstance(value, list):
        done[id(value)] = value
        value[:] = [_replace(item, done) for item in value]
    elif isinstance(value, tuple):
        done[id(value)] = value
        done[id(value)] = tuple(_replace(item, done) for item in value)
    return done.get(id(value), value)
