"""Metrics where a sentence may name nothing in its image: gRefCOCO's, RefSegformer's and Ref-ZOM's."""

from dataclasses import dataclass

import numpy as np

from refseg.evaluation.metrics import Counts, Flags, Ratio, mean_iou, share


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Answers:
    """What is known of N sentences, all of shape (N,).

    Attributes:
        intersection: Pixels in both prediction and target.
        union: Pixels in either.
        predicted_area: Pixels of the predicted mask.
        target_area: Pixels of the target.
        ious: IoU of the masks.
        no_target: The sentence names nothing.
        predicted_none: The model says so: by an output of its own, or, where it has none, by an empty mask.
        ref: Which ref a sentence is of: any number, the same for all of a ref.
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
    """gIoU: mean IoU over all sentences; a no-target sentence that is known as one is worth 1, a missed one 0.

    A target that the model denies has IoU 0, whatever its mask. Source: ReLA (Liu et al. 2023, "GRES", Sec. 3.3) and
    its `refer_evaluation.py`.
    """
    ious = np.where(answers.no_target, answers.predicted_none, np.where(answers.predicted_none, 0.0, answers.ious))
    return mean_iou(ious, np.ones_like(answers.no_target))


def cumulative_iou(answers: Answers) -> Ratio:
    """cIoU: sum of intersections over sum of unions, to which a missed no-target sentence adds its predicted pixels.

    One that is known as such adds nothing; a target that the model denies adds no intersection, and its union.
    Source: as above.
    """
    return Ratio(
        numerator=np.where(answers.no_target | answers.predicted_none, 0, answers.intersection),
        denominator=np.where(answers.no_target & answers.predicted_none, 0, answers.union),
    )


def no_target_accuracy(answers: Answers) -> Ratio:
    """N-acc: share of the no-target sentences that the model knows as such. Source: as above."""
    return share(answers.predicted_none, answers.no_target)


def target_accuracy(answers: Answers) -> Ratio:
    """T-acc: share of the sentences with a target whose target the model does not deny. Source: as above."""
    return share(~answers.predicted_none, ~answers.no_target)


def empty_mask_accuracy(answers: Answers) -> Ratio:
    """Acc: share of the no-target sentences whose predicted mask is empty. Source: DMMI (Hu et al. 2023), Ref-ZOM."""
    return share(answers.predicted_area == 0, answers.no_target)


def robust_iou(answers: Answers) -> Ratio:
    """rIoU: mean over refs of the IoU of all its sentences together, where negative ones add their predicted pixels.

    Source: RefSegformer (Wu et al. 2024, "Towards Robust Referring Image Segmentation") and its `validation.py`: a
    ref's intersections over its unions plus the pixels predicted for its sentences that name nothing; a mask the model
    takes back counts as empty. We count those pixels at the size of the others (its code: before they are enlarged),
    and leave out refs without any sentence that has a target, whose ratio would be 0.
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
    # A ref's ratio stands in the place of its first sentence.
    ratios, counted = np.zeros(len(ref)), np.zeros(len(ref), np.int64)
    ratios[first[has_target]] = (above / np.maximum(below, 1))[has_target]
    counted[first[has_target]] = 1
    return Ratio(numerator=ratios, denominator=counted)
