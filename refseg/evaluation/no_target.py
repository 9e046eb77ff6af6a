"""Metrics of gRefCOCO, RefSegformer and Ref-ZOM for sentences that may refer to nothing in their image."""

from dataclasses import dataclass

import numpy as np

from refseg.evaluation.metrics import Counts, Flags, Ratio, mean_iou, share


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Answers:
    """Counts and flags of N sentences; all arrays have shape (N,).

    Attributes:
        intersection: Number of pixels in both prediction and target.
        union: Number of pixels in prediction or target.
        predicted_area: Number of pixels of the predicted mask.
        target_area: Number of pixels of the target.
        ious: IoU of prediction and target.
        no_target: True if the sentence refers to nothing in its image.
        predicted_none: True if the model predicts that the sentence refers to nothing. If the model has no output for
            this, an empty mask counts as this prediction.
        ref: Number that is the same for all sentences of a ref and differs between refs.
    """

    intersection: Counts
    union: Counts
    predicted_area: Counts
    target_area: Counts
    ious: np.ndarray[tuple[int], np.dtype[np.float64]]
    no_target: Flags
    predicted_none: Flags
    ref: Counts


def generalised_iou(answers: Answers) -> Ratio:
    """Return gIoU, the mean IoU over all sentences.

    The IoU of a no-target sentence is 1 if the model recognises it and 0 if not. If the model predicts "no target" for
    a sentence with a target, the IoU is 0 regardless of the mask. Source: ReLA (Liu et al. 2023, "GRES", Sec. 3.3) and
    its `refer_evaluation.py`.
    """
    ious = np.where(answers.no_target, answers.predicted_none, np.where(answers.predicted_none, 0.0, answers.ious))
    return mean_iou(ious, np.ones_like(answers.no_target))


def cumulative_iou(answers: Answers) -> Ratio:
    """Return cIoU, the sum of intersections over the sum of unions. No-target sentences are included.

    A missed no-target sentence adds its predicted pixels to the unions. A recognised one adds nothing. If the model
    predicts "no target" for a sentence with a target, the union is added but the intersection is not. Source: ReLA (Liu
    et al. 2023, "GRES", Sec. 3.3) and its `refer_evaluation.py`.
    """
    return Ratio(
        numerator=np.where(answers.no_target | answers.predicted_none, 0, answers.intersection),
        denominator=np.where(answers.no_target & answers.predicted_none, 0, answers.union),
    )


def no_target_accuracy(answers: Answers) -> Ratio:
    """Return N-acc, the share of the no-target sentences that the model recognises. Source: ReLA, Sec. 3.3."""
    return share(answers.predicted_none, answers.no_target)


def target_accuracy(answers: Answers) -> Ratio:
    """Return T-acc, the share of sentences with a target for which the model predicts one. Source: ReLA, Sec. 3.3."""
    return share(~answers.predicted_none, ~answers.no_target)


def empty_mask_accuracy(answers: Answers) -> Ratio:
    """Return Acc, the share of the no-target sentences whose predicted mask is empty.

    Source: DMMI (Hu et al. 2023), for the dataset Ref-ZOM.
    """
    return share(answers.predicted_area == 0, answers.no_target)


def robust_iou(answers: Answers) -> Ratio:
    """Return rIoU, the mean over refs of the joint IoU of all sentences of a ref.

    Source: RefSegformer (Wu et al. 2024, "Towards Robust Referring Image Segmentation") and its `validation.py`. The
    numerator of a ref's IoU is the sum of intersections over its sentences. The denominator is the sum of unions plus
    the pixels predicted for the ref's no-target sentences. If the model predicts "no target", its mask counts as empty.
    This function differs from that code in two ways. The pixels predicted for no-target sentences are counted at the
    size of the other masks, not before up-sampling. Refs without a sentence that has a target are left out, because
    their ratio would be 0.
    """
    denied = answers.predicted_none
    intersection = np.where(denied | answers.no_target, 0, answers.intersection)
    union = np.where(denied, answers.target_area, answers.union)
    union = np.where(answers.no_target, np.where(denied, 0, answers.predicted_area), union)
    _, first, ref = np.unique(answers.ref, return_index=True, return_inverse=True)
    above, below = (np.zeros(len(first), np.int64) for _ in range(2))
    np.add.at(above, ref, intersection)
    np.add.at(below, ref, union)
    has_target = np.zeros(len(first), np.bool_)
    np.logical_or.at(has_target, ref, ~answers.no_target)
    # Only the first sentence of a ref holds the ref's ratio and counts; the others have 0 for both.
    ratios, counted = np.zeros(len(ref)), np.zeros(len(ref), np.int64)
    ratios[first[has_target]] = (above / np.maximum(below, 1))[has_target]
    counted[first[has_target]] = 1
    return Ratio(numerator=ratios, denominator=counted)
