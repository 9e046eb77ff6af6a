import math

import numpy as np
import pytest
import torch
from torchmetrics.classification import BinaryJaccardIndex

from refseg.evaluation.metrics import mean_iou, overall_iou, precision_at, sentence_ious


def counts(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int64)


def every(ious: np.ndarray) -> np.ndarray:
    return np.ones(len(ious), bool)


def test_overall_iou_weighs_pixels_and_mean_iou_weighs_sentences() -> None:
    # 1 of 2 pixels, then 9 of 10: the sums give 10/12, the mean of the ratios 0.7.
    intersection, union = counts(1, 9), counts(2, 10)
    ious = sentence_ious(intersection, union, empty_iou=1.0)

    assert overall_iou(intersection, union, empty_iou=1.0).value() == 10 / 12
    assert mean_iou(ious, every(ious)).value() == pytest.approx(0.7)


def test_sums_are_exact_beyond_float32_and_beyond_int64() -> None:
    # float32 cannot tell 2**24 from 2**24 + 1; three times 2**62 does not fit an int64.
    assert overall_iou(counts(2**24, 1), counts(2**24 + 1, 0), empty_iou=1.0).value() == 1.0
    assert overall_iou(counts(2**62, 2**62, 0), counts(2**62, 2**62, 2**62), empty_iou=1.0).value() == 2 / 3


def test_empty_target_and_empty_prediction_are_worth_what_the_rule_says() -> None:
    intersection, union = counts(0, 3), counts(0, 6)

    assert sentence_ious(intersection, union, empty_iou=1.0).tolist() == [1.0, 0.5]
    assert sentence_ious(intersection, union, empty_iou=0.0).tolist() == [0.0, 0.5]
    assert overall_iou(intersection, union, empty_iou=1.0).value() == 0.5
    assert overall_iou(counts(0), counts(0), empty_iou=1.0).value() == 1.0


def test_a_tie_at_the_threshold_passes_only_where_the_comparison_is_not_strict() -> None:
    ious = sentence_ious(counts(5, 6, 7, 8, 9, 3), counts(10, 10, 10, 10, 10, 10), empty_iou=1.0)

    for threshold, strict_share, share in (
        (0.5, 4 / 6, 5 / 6),
        (0.6, 3 / 6, 4 / 6),
        (0.7, 2 / 6, 3 / 6),
        (0.8, 1 / 6, 2 / 6),
        (0.9, 0 / 6, 1 / 6),
    ):
        assert precision_at(ious, every(ious), threshold, strict=True).value() == strict_share
        assert precision_at(ious, every(ious), threshold, strict=False).value() == share


@pytest.mark.parametrize("scale", [1, 3, 7, 30_011])
def test_a_tie_is_seen_at_any_size_of_mask(scale: int) -> None:
    ious = sentence_ious(counts(*(scale * n for n in (5, 6, 7, 8, 9))), counts(*[scale * 10] * 5), empty_iou=1.0)

    assert ious.tolist() == [0.5, 0.6, 0.7, 0.8, 0.9]


def test_scores_do_not_depend_on_the_order_of_the_sentences() -> None:
    random = np.random.default_rng(0)
    union = random.integers(1, 10_000, 1000)
    intersection = (union * random.random(1000)).astype(np.int64)
    shuffled = random.permutation(1000)
    ious = sentence_ious(intersection, union, empty_iou=1.0)

    assert mean_iou(ious[shuffled], every(ious)).value() == mean_iou(ious, every(ious)).value()
    assert (
        overall_iou(intersection[shuffled], union[shuffled], empty_iou=1.0).value()
        == overall_iou(intersection, union, empty_iou=1.0).value()
    )


def test_without_sentences_the_means_are_nan() -> None:
    none = np.empty(0)

    assert math.isnan(mean_iou(none, every(none)).value())
    assert math.isnan(precision_at(none, every(none), 0.5, strict=True).value())


def test_sentences_that_do_not_count_move_no_score() -> None:
    ious, counted = np.array([1.0, 0.5, 0.0]), np.array([True, True, False])

    assert mean_iou(ious, counted).value() == 0.75
    assert precision_at(ious, counted, 0.5, strict=False).value() == 1.0
    assert mean_iou(ious, counted).value(np.array([True, False, True])) == 1.0
    assert math.isnan(mean_iou(ious, counted).value(np.array([False, False, True])))


def test_an_epsilon_makes_a_perfect_mask_of_one_pixel_a_little_less_than_one() -> None:
    # CRIS: I / (U + 1e-6); a tie at one half then lies below it.
    ious = sentence_ious(counts(1, 5, 0), counts(1, 10, 0), empty_iou=0.0, epsilon=1e-6)

    assert ious.tolist() == [1 / (1 + 1e-6), 5 / (10 + 1e-6), 0.0]
    assert precision_at(ious, every(ious), 0.5, strict=False).value() == 1 / 3


def test_torchmetrics_agrees_per_sentence_and_overall() -> None:
    generator = torch.Generator().manual_seed(1)
    masks = torch.rand(12, 2, 9, 11, generator=generator) > 0.6
    intersection = (masks[:, 0] & masks[:, 1]).sum((1, 2)).numpy()
    union = (masks[:, 0] | masks[:, 1]).sum((1, 2)).numpy()
    overall = BinaryJaccardIndex()
    ious = sentence_ious(intersection, union, empty_iou=1.0)

    for (prediction, target), iou in zip(masks, ious, strict=True):
        overall.update(prediction.int(), target.int())
        assert BinaryJaccardIndex()(prediction.int(), target.int()).item() == pytest.approx(iou, rel=1e-6)
    assert overall.compute().item() == pytest.approx(overall_iou(intersection, union, empty_iou=1.0).value(), rel=1e-6)
