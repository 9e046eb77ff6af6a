"""Packs a mask's run lengths into few bytes, which are unpacked in a few microseconds.

The run lengths are written as 32-bit numbers whose bytes are grouped: first the lowest byte of every run, then the
second byte of every run, and so on. The runs 90, 4, 388 become 90, 4, 132, 0, 0, 1 and six zeros. The groups of higher
bytes are mostly zeros, which one LZ4 block compresses well. Parquet calls this grouping BYTE_STREAM_SPLIT.
"""

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from refseg.errors import DatasetError

_CODEC = pa.Codec("lz4_raw")
_RUN_BYTES = 4
_MOST_EXPANSION = 255
"""Most bytes that one byte of an LZ4 block unpacks to."""


def pack_runs(counts: NDArray[np.uint32]) -> bytes:
    """Pack `(runs,)` run lengths."""
    grouped = np.ascontiguousarray(counts, "<u4").view(np.uint8).reshape(-1, _RUN_BYTES).T
    return _CODEC.compress(np.ascontiguousarray(grouped), asbytes=True)


def unpack_ends(data: memoryview | bytes, num_runs: int) -> NDArray[np.int64]:
    """Unpack run lengths to the end of each run: the runs 90, 4, 388 to the running sums 90, 94, 482.

    Drawing a mask needs the sums and not the lengths. Damaged bytes may unpack to wrong sums, but these never decrease.
    The caller compares the last one with the number of pixels of the image.

    Args:
        data: Bytes that `pack_runs` returned; they may be damaged.
        num_runs: Number of runs.

    Returns:
        `(runs,)` sums; the last one is the number of pixels of the mask.

    Raises:
        DatasetError: If the bytes are not an LZ4 block, or one of more runs; the message names no file.
    """
    try:
        if _RUN_BYTES * num_runs > _MOST_EXPANSION * len(data):  # without this check, damage could allocate gigabytes
            raise ValueError("too few bytes")
        grouped = _CODEC.decompress(data, _RUN_BYTES * num_runs, asbytes=True)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise DatasetError("found run lengths that cannot be unpacked") from error
    ends = np.zeros(num_runs, "<i8")
    single_bytes, groups = ends.view(np.uint8), np.frombuffer(grouped, np.uint8)
    # The i-th byte of each run is the i-th byte of a 64-bit number, so the groups are copied with a stride of 8 bytes.
    # This is faster than transposing or shifting them.
    for group in range(_RUN_BYTES):
        single_bytes[group::8] = groups[group * num_runs : (group + 1) * num_runs]
    return np.add.accumulate(ends, out=ends)
