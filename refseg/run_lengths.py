"""Binary masks as COCO's run lengths: drawing and encoding, undoing the compression, counting without drawing.

Run lengths go over columns, top to bottom, left to right; the first run is of zeros, maybe 0 long.
"""

import numpy as np
from jaxtyping import Bool, UInt32
from numpy.typing import NDArray

from refseg.errors import AnnotationError

_MOST_CHARACTERS = 7
"""Of one compressed run: 35 bits, more than the largest JPEG has pixels."""


def encode_runs(mask: Bool[np.ndarray, "H W"]) -> UInt32[np.ndarray, " runs"]:
    """Run lengths of a mask."""
    line = mask.ravel(order="F")
    starts = np.flatnonzero(line[1:] != line[:-1]) + 1
    runs = np.diff(np.concatenate(([0], starts, [line.size])))
    return np.concatenate(([0], runs) if line[0] else (runs,)).astype(np.uint32)


def draw_runs(counts: UInt32[np.ndarray, " runs"], size: tuple[int, int]) -> Bool[np.ndarray, "H W"]:
    """The mask of run lengths.

    Args:
        counts: As `encode_runs` gives them.
        size: `(height, width)` in pixels; their product is the sum of the counts.
    """
    height, width = size
    return np.repeat(np.arange(len(counts)) % 2 == 1, counts).reshape(width, height).T


def count_ones(counts: UInt32[np.ndarray, " runs"]) -> int:
    """Pixels of a mask."""
    return int(counts[1::2].sum(dtype=np.int64))


def count_shared(first: UInt32[np.ndarray, " runs"], second: UInt32[np.ndarray, " others"]) -> int:
    """Pixels that two masks of one size have in common; neither is drawn.

    Between the start and the end of each run of ones of the second lie as many ones of the first as its running sum
    grows by.
    """
    ends = np.cumsum(first, dtype=np.int64)
    ones = np.cumsum(np.where(np.arange(len(first)) % 2 == 1, first, 0), dtype=np.int64)
    borders = np.cumsum(second, dtype=np.int64)
    borders = borders[: len(borders) // 2 * 2]
    # Each border lies in the run of the first that ends there or later.
    run = np.searchsorted(ends, borders)
    before = ones[run] - np.where(run % 2 == 1, ends[run] - borders, 0)
    return int((before[1::2] - before[::2]).sum())


def expand_counts(text: bytes) -> list[int]:
    """Undo COCO's compression: 5 bits a character, from the fourth run on the difference to the run before last.

    pycocotools does the same in C, without looking whether the text is whole, and gives only the drawn mask.

    Raises:
        AnnotationError: If the text is no such thing; the message has no place in it.
    """
    if not text:
        return []
    codes: NDArray[np.int64] = np.frombuffer(text, np.uint8).astype(np.int64) - 48
    ends = np.flatnonzero(codes & ~0x1F == 0)  # neither the bit that says "more follows" nor one beyond the alphabet
    starts = np.empty_like(ends)
    if not (codes >> 6).any() and ends.size and ends[-1] == codes.size - 1:
        starts[0], starts[1:] = 0, ends[:-1] + 1
        lengths = ends - starts + 1
        if lengths.max() <= _MOST_CHARACTERS:
            shifts = 5 * (np.arange(codes.size) - np.repeat(starts, lengths))
            values = np.add.reduceat((codes & 0x1F) << shifts, starts)
            values -= (codes[ends] >> 4 & 1) << 5 * lengths  # the highest bit is the sign
            values[1::2] = values[1::2].cumsum()
            values[2::2] = values[2::2].cumsum()
            counts: list[int] = values.tolist()
            return counts
    raise AnnotationError("its compressed run lengths are damaged")
