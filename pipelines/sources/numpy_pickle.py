"""NumPy's numbers and arrays in a pickle, made plain without NumPy's own functions for it, which could be misled.

A pickled `np.int64(5)` says `scalar(dtype("i8", False, True), <8 bytes>)`. Each of these names is given a function of
this module instead, which keeps what it is given and reads the bytes by a type from a fixed list.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

_KINDS = "biufU"
"""Booleans, integers, floats and text; no objects, records, dates or complex numbers."""
_MOST_BYTES = 2**31


class NumpyFault(Exception):
    """A request of a pickle that is not plain data of NumPy; the text continues a message after "the pickle "."""


class Maker:
    """A function that a pickle may call, and of which it can set no attribute, as it could of a plain function."""

    __slots__ = ("_make",)
    _make: Callable[..., Any]

    def __init__(self, make: Callable[..., Any]) -> None:
        object.__setattr__(self, "_make", make)

    def __call__(self, *arguments: Any) -> Any:
        """Make a value."""
        return self._make(*arguments)

    def __setattr__(self, name: str, value: Any) -> None:
        """Refuse."""
        raise NumpyFault("sets an attribute of a function")

    def __setstate__(self, state: Any) -> None:
        """Refuse."""
        raise NumpyFault("sets the state of a function")


class _Dtype:
    """`numpy.dtype(code, align, copy)` and the state set afterwards, of which only the byte order counts."""

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
        """`(count,)` values."""
        if isinstance(data, str):  # bytes of Python 2
            data = data.encode("latin1")
        dtype = np.dtype(self._order + self._code)
        if not isinstance(data, bytes | bytearray) or len(data) != count * dtype.itemsize or len(data) > _MOST_BYTES:
            raise NumpyFault(f"holds {count} NumPy values of other than their {count * dtype.itemsize} bytes")
        if not dtype.itemsize:  # empty text
            return np.zeros(min(count, 1), dtype)
        return np.frombuffer(data, dtype)


class _Array:
    """`numpy.ndarray` as `_reconstruct` makes it: empty, and filled by its state."""

    value: Any = None

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, tuple) or len(state) != 5:
            raise NumpyFault("holds a damaged NumPy array")
        _, shape, dtype, is_fortran, data = state
        self.value = _shape(data, dtype, shape, "F" if is_fortran else "C")


def _scalar(dtype: Any, data: Any = None) -> Any:
    if not isinstance(dtype, _Dtype):
        raise NumpyFault("holds a NumPy number of no type")
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
    # Of no values, whatever the shape: a shape such as (2**31, 0) would make as many empty lists.
    return dtype.read(data, count).reshape(shape, order=order).tolist() if count else []


def _encode(text: Any, encoding: Any = "latin1") -> bytes:
    """`_codecs.encode`, by which protocols 0 to 2 write bytes."""
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise NumpyFault(f"holds bytes in the encoding {encoding!r:.40}")
    return text.encode("latin1")


NUMPY_GLOBALS: dict[tuple[str, str], Maker] = {
    ("numpy", "dtype"): Maker(_Dtype),
    ("numpy", "ndarray"): Maker(_Array),  # given to `_reconstruct`, which does nothing with it
    ("_codecs", "encode"): Maker(_encode),
    **{(f"numpy.{core}.multiarray", "scalar"): Maker(_scalar) for core in ("core", "_core")},
    **{(f"numpy.{core}.multiarray", "_reconstruct"): Maker(_reconstruct) for core in ("core", "_core")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): Maker(_from_buffer) for core in ("core", "_core")},
}
"""By module and name as NumPy 1 and 2 write them: what takes their place."""


def replace_arrays(value: Any) -> Any:
    """Replace arrays by plain lists, at any depth of dicts, lists and tuples.

    Raises:
        RecursionError: If containers are nested too deep.
    """
    return _replace(value, {})


def _replace(value: Any, done: dict[int, Any]) -> Any:
    """`done` holds what containers became, by id: each is gone through once, however often it is pointed to."""
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
