"""Columns of Arrow as arrays of NumPy."""

from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray


def one_array(column: pa.ChunkedArray) -> pa.Array:
    """A column as one array, copied only if it is in several: of row groups."""
    return column.chunk(0) if column.num_chunks == 1 else column.unify_dictionaries().combine_chunks()


def numbers(array: pa.Array) -> NDArray[Any]:
    """An array of numbers without nulls."""
    return array.to_numpy(zero_copy_only=False)


def list_ends(lists: pa.ListArray) -> NDArray[np.int64]:
    """Where each list ends in the flattened values."""
    offsets = numbers(lists.offsets).astype(np.int64)
    return offsets[1:] - offsets[0]


def list_lengths(lists: pa.ListArray) -> NDArray[np.int64]:
    """How many values each list has."""
    offsets = numbers(lists.offsets).astype(np.int64)
    return offsets[1:] - offsets[:-1]
