"""A mask's run lengths in few bytes: differences, compressed.

Runs of an object hardly change from one column to the next, so each run is stored as its difference from the run before
last, modulo 2^32: of the runs 90, 4, 92, 5, 91 that is 90, 4, 2, 1, -1. An odd number of runs is filled up by one. So
the differences are pairs, and a running sum over the pairs gives the runs back: one call of NumPy for a mask.
"""

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from refseg.errors import DatasetError

_CODEC = pa.Codec("zstd", compression_level=9)


def pack_runs(counts: NDArray[np.uint32]) -> bytes:
    """The bytes of `(runs,)` run lengths; `unpack_runs` undoes it."""
    pairs = np.zeros(len(counts) + len(counts) % 2, "<u4")
    pairs[: len(counts)] = counts
    pairs[2:] -= pairs[:-2].copy()
    return _CODEC.compress(pairs, asbytes=True)


def unpack_runs(data: NDArray[np.uint8], num_runs: int) -> NDArray[np.uint32]:
    """Run lengths from their packed bytes; no more memory is taken than `num_runs` say.

    Args:
        data: From `pack_runs`, or anything.
        num_runs: How many there must be.

    Raises:
        DatasetError: If these are not the bytes of so many run lengths; the message names no file.
    """
    num_bytes = 4 * (num_runs + num_runs % 2)
    try:
        pairs = _CODEC.decompress(data, num_bytes, asbytes=True)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise DatasetError("found run lengths that cannot be unpacked") from error
    if len(pairs) != num_bytes:
        raise DatasetError(f"found {len(pairs) // 4} run lengths, expected {num_runs}")
    return np.add.accumulate(np.frombuffer(pairs, "<u4").reshape(-1, 2), axis=0, dtype=np.uint32).reshape(-1)[:num_runs]
