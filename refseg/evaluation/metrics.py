"""IoU metrics over pixel counts, one pair of counts per sentence.

The counts are int64 and the sums exact, so scores depend neither on the order of the sentences nor on how they were
spread over processes: the rows of all ranks put together are the merge.
"""

import math

import numpy as np
import numpy.typing as npt

Counts = npt.NDArray[np.int64]
"""Pixels per sentence, shape (N,)."""

Ious = npt.NDArray[np.float64]
"""IoU per sentence, shape (N,), 0 to 1."""


def sentence_ious(intersection: Counts, union: Counts, *, empty_iou: float) -> Ious:
    """IoU of each sentence.

    Division in float64 is correctly rounded, so 7 of 10 pixels give exactly the float that `0.7` is written as: a
    tie at a threshold is seen as a tie.

    Args:
        intersection: Pixels in both prediction and target.
        union: Pixels in either.
        empty_iou: Worth of a sentence whose target and prediction are both empty, where the ratio is 0/0.
    """
    ious = np.full(len(union), empty_iou, dtype=np.float64)
    return np.divide(intersection, union, out=ious, where=union > 0)


def overall_iou(intersection: Counts, union: Counts, *, empty_iou: float) -> float:
    """Sum of the intersections over sum of the unions (oIoU, cIoU): large objects weigh more.

    Args:
        intersection: Pixels in both prediction and target.
        union: Pixels in either.
        empty_iou: The value where no sentence has a pixel in either.
    """
    num_union = sum(union.tolist())  # Python integers: no overflow at any size
    return sum(intersection.tolist()) / num_union if num_union else empty_iou


def mean_iou(ious: Ious) -> float:
    """Mean over the sentences (mIoU, LISA's gIoU): every sentence weighs the same. NaN without sentences."""
    return math.fsum(ious.tolist()) / len(ious) if len(ious) else math.nan


def precision_at(ious: Ious, threshold: float, *, strict: bool) -> float:
    """Share of the sentences whose IoU passes a threshold (Pr@X, P@X). NaN without sentences.

    Args:
        ious: IoU per sentence.
        threshold: 0 to 1.
        strict: True: IoU > threshold (CRIS, CGFormer). False: IoU >= threshold (LAVT, ReLA).
    """
    passed = ious > threshold if strict else ious >= threshold
    return int(np.count_nonzero(passed)) / len(ious) if len(ious) else math.nan
