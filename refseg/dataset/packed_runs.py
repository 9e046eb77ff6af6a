"""A mask's run lengths in few bytes that are unpacked in a few microseconds.

The run lengths are written as 32-bit numbers whose bytes are grouped: first the lowest byte of every run, then the
second byte of every run, and so on. The runs 90, 4, 388 become 90, 4, 132, 0, 0, 1 and six zeros. The groups of higher
bytes repeat themselves, and one LZ4 block makes them short. Parquet calls this grouping BYTE_STREAM_SPLIT.
"""

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from refseg.errors import DatasetError

_CODEC = pa.Codec("lz4_raw")
_RUN_BYTES = 4
_MOST_EXPANSION = 255
"""Bytes that one byte of an LZ4 block unpacks to at most."""


def pack_runs(counts: NDArray[np.uint32]) -> bytes:
    """The bytes of `(runs,)` run lengths."""
    grouped = np.ascontiguousarray(counts, "<u4").view(np.uint8).reshape(-1, _RUN_BYTES).T
    return _CODEC.compress(np.ascontiguousarray(grouped), asbytes=True)


def unpack_ends(data: memoryview | bytes, num_runs: int) -> NDArray[np.int64]:
    """Unpack where each run ends: `(runs,)` running sums of the run lengths, the last of which is the mask's pixels.

    A drawing of the mask needs the sums and not the lengths. Bytes of fewer than `num_runs` runs give any sums, which
    never decrease: the caller compares the last one with the pixels of the image.

    Args:
        data: Bytes that `pack_runs` returned, or anything.
        num_runs: Number of runs.

    Raises:
        DatasetError: If the bytes are not an LZ4 block, or one of more runs; the message names no file.
    """
    try:
        if _RUN_BYTES * num_runs > _MOST_EXPANSION * len(data):  # else a few bytes could ask for gigabytes
            raise ValueError("too few bytes")
        grouped = _CODEC.decompress(data, _RUN_BYTES * num_runs, asbytes=True)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise DatasetError("found run lengths that cannot be unpacked") from error
    ends = np.zeros(num_runs, "<i8")
    single_bytes, groups = ends.view(np.uint8), np.frombuffer(grouped, np.uint8)
    for group in range(_RUN_BYTES):  # copying strided bytes is faster than transposing or shifting the groups
        single_bytes[group::8] = groups[group * num_runs : (group + 1) * num_runs]
    return np.add.accumulate(ends, out=ends)
