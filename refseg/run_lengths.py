"""Binary masks as COCO's run lengths: encodes and draws them, undoes their compression, and counts pixels.

The runs follow the columns from top to bottom, and the columns from left to right. They alternate between zeros and
ones and begin with zeros; this first run may have length 0. The mask 0 1 / 1 1 has the columns 0 1 and 1 1, so it is
encoded as the runs 1, 3: one zero, three ones.
"""

import numpy as np
from jaxtyping import Bool, UInt32
from numpy.typing import NDArray

from refseg.errors import AnnotationError

_MOST_CHARACTERS = 7
"""Largest number of characters of one compressed run: 35 bits exceed the number of pixels of the largest JPEG."""


def encode_runs(mask: Bool[np.ndarray, "H W"]) -> UInt32[np.ndarray, " runs"]:
    """Return the run lengths of a mask."""
    line = mask.ravel(order="F")
    starts = np.flatnonzero(line[1:] != line[:-1]) + 1
    runs = np.diff(np.concatenate(([0], starts, [line.size])))
    return np.concatenate(([0], runs) if line[0] else (runs,)).astype(np.uint32)


def draw_runs(counts: UInt32[np.ndarray, " runs"], size: tuple[int, int]) -> Bool[np.ndarray, "H W"]:
    """Return the mask that run lengths describe.

    Args:
        counts: Run lengths, as `encode_runs` returns them.
        size: `(height, width)` in pixels; their product is the sum of the counts.
    """
    height, width = size
    return np.repeat(np.arange(len(counts)) % 2 == 1, counts).reshape(width, height).T


def count_ones(counts: UInt32[np.ndarray, " runs"]) -> int:
    """Count the ones of a mask, in pixels."""
    return int(counts[1::2].sum(dtype=np.int64))


def count_shared(first: UInt32[np.ndarray, " runs"], second: UInt32[np.ndarray, " others"]) -> int:
    """Count the pixels that two masks of one size have in common, without drawing either mask.

    Let F(i) be the number of ones of the first mask before pixel i. A run of ones of the second mask from pixel a to b
    then shares F(b) - F(a) pixels with the first mask. Example: the first mask is 0 1 1 1 (runs 1, 3), so that
    F = 0 0 1 2 3. The second is 0 0 1 1 (runs 2, 2), with one run of ones from 2 to 4: it shares F(4) - F(2) = 2.
    """
    ends = np.cumsum(first, dtype=np.int64)
    ones = np.cumsum(np.where(np.arange(len(first)) % 2 == 1, first, 0), dtype=np.int64)
    borders = np.cumsum(second, dtype=np.int64)
    borders = borders[: len(borders) // 2 * 2]
    # The run of the first mask in which each border of the second lies: the first one that does not end before it.
    run = np.searchsorted(ends, borders)
    before = ones[run] - np.where(run % 2 == 1, ends[run] - borders, 0)
    return int((before[1::2] - before[::2]).sum())


def expand_counts(text: bytes) -> list[int]:
    """Undo COCO's compression of run lengths.

    Each character is a code from 48 on and carries 5 bits, the lowest ones first; bit 5 says that more characters of
    the number follow, and the highest bit of the last one is the sign. From the fourth run on, the number is the
    difference to the run before the last. Example: `5` is 53 - 48 = 5; `U1` is 37 = 0b100101, hence 5 and more to come,
    then 1, hence 5 + (1 << 5) = 37.

    pycocotools decodes the same in C, but it does not check that the text is complete, and returns only a drawn mask.

    Raises:
        AnnotationError: If the text is not valid; the message does not name the file or the position.
    """
    if not text:
        return []
    codes: NDArray[np.int64] = np.frombuffer(text, np.uint8).astype(np.int64) - 48
    ends = np.flatnonzero(codes & ~0x1F == 0)  # last characters: "more follows" is not set, nor a bit above it
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
