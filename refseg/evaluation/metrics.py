"""IoU metrics over pixel counts, each a ratio of two sums over sentences.

The counts are int64 and the sums exact, so scores depend neither on the order of the sentences nor on how they were
spread over processes: the rows of all ranks put together are the merge. And because every score is such a ratio, its
share in a group of sentences and its spread over images drawn again (`bootstrap.py`) need no formulas of their own.
"""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Counts = npt.NDArray[np.int64]
"""Pixels per sentence, shape (N,)."""

Ious = npt.NDArray[np.float64]
"""IoU per sentence, shape (N,), 0 to 1."""

Flags = npt.NDArray[np.bool_]
"""A yes or no per sentence, shape (N,)."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Ratio:
    """A score as the sum of its numerators over the sum of its denominators.

    Attributes:
        numerator: Per sentence, shape (N,), int64 or float64.
        denominator: Per sentence, shape (N,), int64 or float64; both are 0 where a sentence does not count.
        if_none: The score where the denominators sum to 0.
    """

    numerator: npt.NDArray[np.number]
    denominator: npt.NDArray[np.number]
    if_none: float = math.nan

    def value(self, chosen: Flags | None = None) -> float:
        """The score of all sentences, or of the chosen ones."""
        above, below = (_sum(part if chosen is None else part[chosen]) for part in (self.numerator, self.denominator))
        return above / below if below else self.if_none


def sentence_ious(intersection: Counts, union: Counts, *, empty_iou: float, epsilon: float = 0.0) -> Ious:
    """IoU of each sentence.

    Division in float64 is correctly rounded, so 7 of 10 pixels give exactly the float that `0.7` is written as: a
    tie at a threshold is seen as a tie.

    Args:
        intersection: Pixels in both prediction and target.
        union: Pixels in either.
        empty_iou: Worth of a sentence whose target and prediction are both empty, where the ratio is 0/0.
        epsilon: Added to the union, where published code does so: 10 of 10 pixels are then a little less than 1.
    """
    ious = np.full(len(union), empty_iou, dtype=np.float64)
    return np.divide(intersection, union + epsilon if epsilon else union, out=ious, where=union > 0)


def overall_iou(intersection: Counts, union: Counts, *, empty_iou: float) -> Ratio:
    """Sum of the intersections over sum of the unions (oIoU, cIoU): large objects weigh more.

    Args:
        intersection: Pixels in both prediction and target.
        union: Pixels in either.
        empty_iou: The value where no sentence has a pixel in either.
    """
    return Ratio(numerator=intersection, denominator=union, if_none=empty_iou)


def mean_iou(ious: Ious, counted: Flags) -> Ratio:
    """Mean over the sentences that count (mIoU, LISA's gIoU): each weighs the same."""
    return Ratio(numerator=np.where(counted, ious, 0.0), denominator=counted.astype(np.int64))


def precision_at(ious: Ious, counted: Flags, threshold: float, *, strict: bool) -> Ratio:
    """Share of the sentences that count whose IoU passes a threshold (Pr@X, P@X).

    Args:
        ious: IoU per sentence.
        counted: Which sentences count.
        threshold: 0 to 1.
        strict: True: IoU > threshold (CRIS, CGFormer). False: IoU >= threshold (LAVT, ReLA).
    """
    return share(ious > threshold if strict else ious >= threshold, counted)


def share(passed: Flags, counted: Flags) -> Ratio:
    """Share of the sentences that count which pass."""
    return Ratio(numerator=(passed & counted).astype(np.int64), denominator=counted.astype(np.int64))


def _sum(part: npt.NDArray[np.number]) -> int | float:
    """Exact: Python's integers do not overflow, and `fsum` rounds once."""
    if np.issubdtype(part.dtype, np.integer):
        return sum(part.tolist())
    return math.fsum(part.tolist())
