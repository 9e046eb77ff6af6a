"""IoU metrics over pixel counts. Each metric is a ratio of two sums over sentences.

The counts are int64 and the sums are exact. Therefore scores depend neither on the order of the sentences nor on their
distribution over processes. The results of several ranks can be merged by concatenating their rows. The same formulas
also give the scores of groups and of bootstrap draws (`bootstrap.py`).
"""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Counts = npt.NDArray[np.int64]
"""Number of pixels for each sentence, shape (N,)."""

Ious = npt.NDArray[np.float64]
"""IoU of each sentence, shape (N,), 0 to 1."""

Flags = npt.NDArray[np.bool_]
"""A flag for each sentence, shape (N,)."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Ratio:
    """A score as the sum of its numerators over the sum of its denominators.

    Attributes:
        numerator: Numerator of each sentence, shape (N,), int64 or float64.
        denominator: Denominator of each sentence, shape (N,), int64 or float64. Both are 0 for sentences that are
            excluded.
        if_none: The score if the denominators sum to 0.
    """

    numerator: npt.NDArray[np.number]
    denominator: npt.NDArray[np.number]
    if_none: float = math.nan

    def value(self, chosen: Flags | None = None) -> float:
        """Return the score of all sentences, or of the selected ones."""
        above, below = (_sum(part if chosen is None else part[chosen]) for part in (self.numerator, self.denominator))
        return above / below if below else self.if_none


def sentence_ious(intersection: Counts, union: Counts, *, empty_iou: float, epsilon: float = 0.0) -> Ious:
    """Return the IoU of each sentence.

    Division in float64 is correctly rounded, so 7 of 10 pixels give exactly the float `0.7`. An IoU that equals a
    threshold therefore also compares as equal.

    Args:
        intersection: Number of pixels in both prediction and target.
        union: Number of pixels in prediction or target.
        empty_iou: IoU of a sentence whose target and prediction are both empty, where the ratio would be 0/0.
        epsilon: Number added to the union, as in some published code. 10 of 10 pixels then give slightly less than 1.
    """
    ious = np.full(len(union), empty_iou, dtype=np.float64)
    return np.divide(intersection, union + epsilon if epsilon else union, out=ious, where=union > 0)


def overall_iou(intersection: Counts, union: Counts, *, empty_iou: float) -> Ratio:
    """Return the sum of intersections over the sum of unions (oIoU, cIoU). Large objects have more weight.

    Args:
        intersection: Number of pixels in both prediction and target.
        union: Number of pixels in prediction or target.
        empty_iou: Score if all predictions and targets are empty.
    """
    return Ratio(numerator=intersection, denominator=union, if_none=empty_iou)


def mean_iou(ious: Ious, counted: Flags) -> Ratio:
    """Return the mean IoU of the sentences that count (mIoU, LISA's gIoU). Each sentence has the same weight."""
    return Ratio(numerator=np.where(counted, ious, 0.0), denominator=counted.astype(np.int64))


def precision_at(ious: Ious, counted: Flags, threshold: float, *, strict: bool) -> Ratio:
    """Return the share of sentences whose IoU passes a threshold, among those that count (Pr@X, P@X).

    Args:
        ious: IoU of each sentence.
        counted: True for sentences that count.
        threshold: Threshold, 0 to 1.
        strict: If True, the condition is IoU > threshold (CRIS, CGFormer). If False, it is IoU >= threshold (LAVT,
            ReLA).
    """
    return share(ious > threshold if strict else ious >= threshold, counted)


def share(passed: Flags, counted: Flags) -> Ratio:
    """Return the share of passing sentences among those that count."""
    return Ratio(numerator=(passed & counted).astype(np.int64), denominator=counted.astype(np.int64))


def _sum(part: npt.NDArray[np.number]) -> int | float:
    """Return the exact sum. Python's integers do not overflow, and `fsum` rounds only the result."""
    if np.issubdtype(part.dtype, np.integer):
        return sum(part.tolist())
    return math.fsum(part.tolist())
