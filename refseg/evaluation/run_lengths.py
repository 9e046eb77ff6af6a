"""Binary masks as COCO's uncompressed run lengths, and back."""

import numpy as np
from jaxtyping import Bool, UInt32


def encode_runs(mask: Bool[np.ndarray, "H W"]) -> UInt32[np.ndarray, " runs"]:
    """Run lengths of a mask: over columns, top to bottom, left to right; the first run is of zeros, maybe 0 long."""
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
