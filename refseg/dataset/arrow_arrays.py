"""Converts Arrow columns to NumPy arrays."""

from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray


def one_array(column: pa.ChunkedArray) -> pa.Array:
    """Return a column as one array. It is copied only if it consists of several chunks (row groups)."""
    return column.chunk(0) if column.num_chunks == 1 else column.unify_dictionaries().combine_chunks()


def numbers(array: pa.Array) -> NDArray[Any]:
    """Return an Arrow array of numbers without nulls as a NumPy array."""
    return array.to_numpy(zero_copy_only=False)


def list_ends(lists: pa.ListArray) -> NDArray[np.int64]:
    """Return the end of each list in the flattened values. Lists of 2, 0 and 3 values give [2, 2, 5]."""
    offsets = numbers(lists.offsets).astype(np.int64)
    return offsets[1:] - offsets[0]


def list_lengths(lists: pa.ListArray) -> NDArray[np.int64]:
    """Return the number of values of each list."""
    offsets = numbers(lists.offsets).astype(np.int64)
    return offsets[1:] - offsets[:-1]
