"""No-target scores compared with the loops of the published evaluators, which are written here again."""

import numpy as np
import pyarrow as pa
import pytest

from refseg.evaluation.protocols import LAVT, RELA, Protocol
from refseg.evaluation.scores import score

from .conftest import make_rows

FOUND = {"intersection": 6, "predicted_area": 8, "target_area": 10}  # IoU 1/2
MISSED = {"intersection": 0, "predicted_area": 0, "target_area": 5}
KNOWN = {"no_target": True, "predicted_area": 0, "target_area": 0}
IMAGINED = {"no_target": True, "predicted_area": 7, "target_area": 0}


def test_hand_worked_scores_of_the_four_cases() -> None:
    scores = score(make_rows(FOUND, MISSED, KNOWN, IMAGINED, protocol=RELA), RELA).by_name()

    assert scores["gIoU"] == (0.5 + 0 + 1 + 0) / 4
    assert scores["cIoU"] == 6 / (12 + 5 + 7)
    assert (scores["N-acc"], scores["T-acc"], scores["Acc"]) == (0.5, 0.5, 0.5)
    # Of sentences with a target alone: IoUs 1/2 and 0.
    assert (scores["mIoU"], scores["oIoU"], scores["Pr@0.7"]) == (0.25, 6 / 17, 0.0)


def test_a_models_own_word_weighs_more_than_its_mask() -> None:
    table = make_rows(
        {**FOUND, "predicted_none": True}, {**IMAGINED, "predicted_none": True}, {**KNOWN, "predicted_none": False},
        protocol=RELA,
    )  # fmt: skip
    scores = score(table, RELA)

    assert scores.values["gIoU"] == (0 + 1 + 0) / 3
    assert scores.values["cIoU"] == 0 / (12 + 0 + 0)
    assert (scores.values["N-acc"], scores.values["T-acc"]) == (0.5, 0.0)
    assert scores.values["Acc"] == 0.5  # Ref-ZOM asks the mask
    assert scores.mean_iou == 0.0
    assert "predicted by the model's own output" in "\n".join(scores.rules())


def test_each_protocol_takes_them_as_it_says() -> None:
    sentences = (FOUND, MISSED, KNOWN, IMAGINED)

    original = score(make_rows(*sentences)).by_name()
    assert (original["mIoU"], original["oIoU"]) == ((0.5 + 0 + 1 + 0) / 4, 6 / (12 + 5 + 7))
    lavt = score(make_rows(*sentences, protocol=LAVT), LAVT).by_name()
    assert (lavt["mIoU"], lavt["oIoU"], lavt["Pr@0.5"]) == (0.25, 6 / 17, 0.5)


def test_their_scores_are_not_shown_where_every_sentence_has_a_target() -> None:
    assert "gIoU" not in score(make_rows(FOUND, MISSED)).by_name()
    rela = score(make_rows(FOUND, MISSED, protocol=RELA), RELA).by_name()
    assert rela["gIoU"] == 0.25
    assert np.isnan(rela["N-acc"])


def test_a_negative_sentence_lowers_the_robust_iou_of_its_ref_alone() -> None:
    # Ref 1: two masks of 6/12 together with 7 imagined pixels; ref 2: 1/1. Ref 3 has no sentence with a target.
    table = make_rows(
        {**FOUND, "ref_id": 1}, {**FOUND, "ref_id": 1}, {**IMAGINED, "ref_id": 1},
        {"ref_id": 2, "intersection": 4, "predicted_area": 4, "target_area": 4}, {**IMAGINED, "ref_id": 3},
    )  # fmt: skip

    assert score(table).by_name()["rIoU"] == pytest.approx((12 / (24 + 7) + 1) / 2)


def random_rows(seed: int, *, with_head: bool, has_negatives: bool = True, protocol: Protocol = RELA) -> pa.Table:
    random = np.random.default_rng(seed)
    sentences = []
    for number in range(120):
        no_target = has_negatives and bool(random.random() < 0.3)
        target = 0 if no_target else int(random.integers(1, 30))
        predicted = int(random.integers(1, 30)) if random.random() < 0.7 else 0
        sentences.append(
            {
                "ref_id": number // 4, "image_id": number // 8, "no_target": no_target, "target_area": target,
                "predicted_area": predicted, "intersection": int(random.integers(0, min(target, predicted) + 1)),
                "predicted_none": bool(random.random() < 0.4) if with_head else None,
            }
        )  # fmt: skip
    return make_rows(*sentences, protocol=protocol)


@pytest.mark.parametrize("with_head", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_rela_gives_the_same_numbers(seed: int, with_head: bool) -> None:
    """Compute the scores as `refer_evaluation.py` of ReLA does, sample by sample."""
    table = random_rows(seed, with_head=with_head)
    sum_i = sum_u = sum_iou = tp = tn = fp = fn = targeted = 0
    passed = {0.7: 0, 0.8: 0, 0.9: 0}
    for row in table.to_pylist():
        i, u = row["rela_intersection"], row["rela_union"]
        says_none = row["predicted_none"] if with_head else row["rela_predicted_area"] == 0
        if row["no_target"]:
            tp, fn = tp + says_none, fn + (not says_none)
            sum_iou += 1 if says_none else 0
            sum_u += 0 if says_none else u
        else:
            fp, tn = fp + says_none, tn + (not says_none)
            if says_none:
                i = 0
            iou = 0.0 if u == 0 else i / u
            sum_iou, sum_i, sum_u, targeted = sum_iou + iou, sum_i + i, sum_u + u, targeted + 1
            for threshold in passed:
                passed[threshold] += iou >= threshold
    scores = score(table, RELA).by_name()

    assert scores["gIoU"] == pytest.approx(sum_iou / len(table))
    assert scores["cIoU"] == sum_i / sum_u
    assert (scores["N-acc"], scores["T-acc"]) == (tp / (tp + fn), tn / (tn + fp))
    assert [scores[f"Pr@{x}"] for x in passed] == [number / targeted for number in passed.values()]


@pytest.mark.parametrize("with_head", [False, True])
def test_refsegformer_gives_the_same_robust_iou(with_head: bool) -> None:
    """Compute rIoU as `validation.py` of RefSegformer does, ref by ref; a low exist score makes the mask zero."""
    table = random_rows(5, with_head=with_head)
    ratios = []
    for ref in range(30):
        i = u = 0
        sentences = [row for row in table.to_pylist() if row["ref_id"] == ref]
        for row in sentences:
            taken_back = bool(row["predicted_none"])
            predicted = 0 if taken_back else row["rela_predicted_area"]
            if row["no_target"]:
                u += predicted
            else:
                shared = 0 if taken_back else row["rela_intersection"]
                i, u = i + shared, u + predicted + row["rela_target_area"] - shared
        if any(not row["no_target"] for row in sentences):
            ratios.append(i / u)

    assert score(table, RELA).by_name()["rIoU"] == pytest.approx(np.mean(ratios))


def test_ref_zom_gives_the_same_accuracy_and_ious() -> None:
    """Compute the scores as `test.py` of DMMI does: no-target samples count only in the accuracy."""
    table = random_rows(7, with_head=False, protocol=LAVT)
    accuracy, ious, sum_i, sum_u = [], [], 0, 0
    for row in table.to_pylist():
        if row["no_target"]:
            accuracy.append(row["lavt_predicted_area"] == 0)
        else:
            ious.append(row["lavt_intersection"] / row["lavt_union"])
            sum_i, sum_u = sum_i + row["lavt_intersection"], sum_u + row["lavt_union"]
    scores = score(table, LAVT).by_name()

    assert scores["Acc"] == np.mean(accuracy)
    assert scores["mIoU"] == pytest.approx(np.mean(ious))
    assert scores["oIoU"] == sum_i / sum_u


def test_without_negative_sentences_the_two_means_agree() -> None:
    table = random_rows(9, with_head=False, has_negatives=False)
    scores = score(table, RELA).by_name()

    assert scores["gIoU"] == scores["mIoU"]
    assert scores["cIoU"] == scores["oIoU"]
