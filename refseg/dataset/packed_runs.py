"""A mask's run lengths in few bytes: differences, byte by byte, compressed.

Runs of an object's columns hardly change from one column to the next, so each run is stored as its difference from the
run before last. The differences 3, -1, 300 become 6, 1, 600 (the sign in the lowest bit), are split into their lowest
bytes `06 01 58`, their next bytes `00 00 02` and so on, and compressed by Zstandard: three quarters of a byte a run
where COCO's strings take one and a third.
"""

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from refseg.errors import DatasetError

_CODEC = "zstd"
_LEVEL = 3


class RunPacker:
    """Packs run lengths; not for use by several threads at once."""

    def __init__(self) -> None:
        self._codec = pa.Codec(_CODEC, compression_level=_LEVEL)

    def pack(self, counts: NDArray[np.uint32]) -> bytes:
        """The bytes of `(runs,)` run lengths; `unpack_runs` undoes it."""
        differences = counts.astype(np.int64)
        differences[2:] -= counts[:-2]
        folded = (differences << 1 ^ differences >> 63).astype("<u4")
        planes = np.ascontiguousarray(folded.view(np.uint8).reshape(-1, 4).T)
        return self._codec.compress(planes, asbytes=True)


def unpack_runs(data: bytes | NDArray[np.uint8], num_runs: int) -> NDArray[np.uint32]:
    """Run lengths from their packed bytes; no more memory is taken than `num_runs` say.

    Args:
        data: From `RunPacker.pack`, or anything.
        num_runs: How many there must be.

    Raises:
        DatasetError: If these are not the bytes of so many run lengths; the message names no file.
    """
    try:
        planes = pa.decompress(data, decompressed_size=4 * num_runs, codec=_CODEC)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise DatasetError("found run lengths that cannot be unpacked") from error
    if planes.size != 4 * num_runs:
        raise DatasetError(f"found {planes.size // 4} run lengths, expected {num_runs}")
    folded = np.frombuffer(planes, np.uint8).reshape(4, num_runs).T.copy().view("<u4").reshape(-1)
    counts = ((folded >> 1) ^ -(folded & 1)).astype(np.uint32, copy=False)  # modulo 2^32
    for runs in (counts[0::2], counts[1::2]):
        np.add.accumulate(runs, out=runs)
    return counts
