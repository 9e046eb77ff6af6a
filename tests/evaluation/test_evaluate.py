from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from accelerate import Accelerator

from refseg.data.index import ManifestIndex
from refseg.data.transforms import Geometry
from refseg.errors import TrainingError
from refseg.evaluation import evaluate as evaluate_module
from refseg.evaluation.evaluate import evaluate_model
from refseg.evaluation.protocols import LAVT, ORIGINAL, PROTOCOLS, RELA
from refseg.evaluation.rows import RowFacts
from refseg.evaluation.scores import score
from refseg.run_lengths import draw_runs

Write = Callable[..., Path]

# Red fills columns 0 to 15, blue 32 to 47. Stripes end at multiples of 4, where upsampling a quarter-size map by
# 4 crosses one half exactly between two pixels; so predictions are exact.
HALF = {
    "size": (32, 64),
    "stripes": {"red": (0, 16), "blue": (32, 48)},
    "refs": [((0, 16), ["the red", "leftmost red"]), ((32, 64), ["the blue"])],
}


def evaluate(folder: Path, model: Any, *, size: tuple[int, int] = (32, 64), **options: Any) -> pa.Table:
    settings = {"num_tokens": 12, "images_per_batch": 2, **options}
    return evaluate_model(
        model,
        ManifestIndex.open(folder, ["val"]),
        accelerator=Accelerator(cpu=True),
        geometry=Geometry(kind=settings.pop("kind", "letterbox"), size=size),
        **settings,
    )


def test_rows_hold_ids_and_hand_worked_pixels(write_stripes: Write, colour_model: Any) -> None:
    table = evaluate(write_stripes(HALF), colour_model)

    first, _, third = table.to_pylist()
    assert first == {
        "dataset": "toy/refseg",
        "split": "val",
        "ref_id": 10,
        "target_ref_id": 10,
        "sent_id": 1000,
        "image_id": 1,
        "sentence": "the red",
        "height": 32,
        "width": 64,
        "num_tokens": 4,
        "category": "stripe",
        "num_distractors": 1,
        "no_target": False,
        "predicted_none": None,
        "original_intersection": 16 * 32,
        "original_union": 16 * 32,
        "original_predicted_area": 16 * 32,
        "original_target_area": 16 * 32,
    }
    # The blue target is annotated twice as wide as the stripe.
    assert [third[f"original_{name}"] for name in ("intersection", "union", "predicted_area", "target_area")] == [
        16 * 32, 32 * 32, 16 * 32, 32 * 32,
    ]  # fmt: skip
    assert RowFacts.of(table).mask_rule == "union"
    assert score(table).by_name() == pytest.approx(
        # IoUs 1, 1, 1/2: with the strict comparison, 1/2 does not pass the threshold 0.5.
        {
            "oIoU": 3 * 16 / (4 * 16),
            "mIoU": 2.5 / 3,
            "Pr@0.5": 2 / 3,
            "Pr@0.6": 2 / 3,
            "Pr@0.7": 2 / 3,
            "Pr@0.8": 2 / 3,
            "Pr@0.9": 2 / 3,
        }
    )


def test_masks_are_compared_at_the_original_size_behind_letterbox_and_stretch(
    write_stripes: Write, colour_model: Any
) -> None:
    # 128 × 128 into 64 × 128: letterbox halves it between borders, stretch squeezes its height.
    picture = {
        "size": (128, 128),
        "stripes": {"red": (32, 64)},
        "refs": [((32, 64), ["the red"])],
    }
    folder = write_stripes(picture)

    for kind in ("letterbox", "stretch"):
        (row,) = evaluate(folder, colour_model, size=(64, 128), kind=kind).to_pylist()
        assert (row["height"], row["width"], row["original_target_area"]) == (128, 128, 32 * 128)
        assert row["original_intersection"] / row["original_union"] > 0.95


def test_an_image_is_encoded_once_for_all_its_sentences_and_decoded_a_chunk_at_a_time(
    write_stripes: Write, colour_model: Any
) -> None:
    talked_about = {**HALF, "refs": [((0, 16), [f"number {n} the red" for n in range(70)])]}
    table = evaluate(write_stripes(talked_about, HALF), colour_model)

    assert len(table) == 73
    assert colour_model.num_encoded_images == 2
    assert colour_model.num_decoded == [32, 32, 9]
    assert table.column("original_intersection").to_pylist() == [512] * 73


def test_on_a_cpu_it_is_the_same_who_decodes(write_stripes: Write, colour_model: Any) -> None:
    folder = write_stripes(HALF)

    assert evaluate(folder, colour_model, decode="device").equals(evaluate(folder, colour_model))


def test_padding_of_the_last_batch_counts_for_nothing(write_stripes: Write, colour_model: Any) -> None:
    folder = write_stripes(HALF, HALF, HALF)

    tables = [evaluate(folder, colour_model, images_per_batch=number) for number in (1, 2, 3, 8)]

    assert [len(table) for table in tables] == [9] * 4
    assert all(table.equals(tables[0]) for table in tables)


def test_the_model_is_scored_in_evaluation_mode_and_given_back_as_it_was(
    write_stripes: Write, colour_model: Any
) -> None:
    evaluate(write_stripes(HALF), colour_model.train())
    assert colour_model.training
    evaluate(write_stripes(HALF), colour_model.eval())
    assert not colour_model.training


def test_saved_predictions_are_the_masks_that_were_counted(write_stripes: Write, colour_model: Any) -> None:
    table = evaluate(write_stripes(HALF), colour_model, save_predictions=True)

    expected = np.zeros((32, 64), bool)
    expected[:, 0:16] = True
    counts = table.column("original_predicted_counts").to_pylist()
    assert np.array_equal(draw_runs(np.array(counts[0], np.uint32), (32, 64)), expected)
    assert counts[2] == [32 * 32, 16 * 32, 16 * 32]


def test_an_empty_prediction_is_right_for_an_empty_target_and_wrong_for_another(
    write_stripes: Write, colour_model: Any
) -> None:
    picture = {
        "size": (32, 64),
        "stripes": {"red": (0, 16)},
        "refs": [((0, 0), ["the green", "the red"]), ((0, 16), ["the green"])],
    }
    table = evaluate(write_stripes(picture), colour_model)

    assert table.column("no_target").to_pylist() == [True, True, False]
    assert table.column("original_union").to_pylist() == [0, 512, 512]
    assert score(table).mean_iou == pytest.approx(1 / 3)
    assert score(table).overall_iou == 0


def test_a_sentence_that_names_nothing_is_scored_against_an_empty_mask(write_stripes: Write, colour_model: Any) -> None:
    picture = {
        "size": (32, 64),
        "stripes": {"red": (0, 16), "blue": (32, 48)},
        "refs": [((0, 16), ["the red", "no red"]), ((32, 48), ["the blue"])],
    }
    folder = write_stripes(picture)
    table = evaluate(folder, colour_model)

    assert table.column("no_target").to_pylist() == [False, True, False]
    assert table.column("original_target_area").to_pylist() == [512, 0, 512]
    assert table.column("original_intersection").to_pylist() == [512, 0, 512]  # the model sees "red" and draws it
    shuffled = evaluate(folder, colour_model, sentence_order="shuffled")
    assert shuffled.column("sentence").to_pylist() == ["the red", "the blue"]


def test_shuffled_sentences_meet_another_target_of_their_image(write_stripes: Write, colour_model: Any) -> None:
    table = evaluate(write_stripes(HALF), colour_model, sentence_order="shuffled")

    assert table.column("ref_id").to_pylist() == [10, 10, 11]
    assert table.column("target_ref_id").to_pylist() == [11, 11, 10]
    assert table.column("original_intersection").to_pylist() == [0, 0, 0]
    assert score(table).overall_iou == 0


def test_shuffling_leaves_out_what_has_no_other_target_and_says_so(write_stripes: Write, colour_model: Any) -> None:
    alone = {**HALF, "refs": [((0, 16), ["the red", "a red"]), ((0, 0), ["the green"])]}
    twins = {**HALF, "refs": [((0, 16), ["the red"]), ((0, 16), ["a red"]), ((32, 48), ["the blue"])]}
    table = evaluate(write_stripes(alone, twins), colour_model, sentence_order="shuffled")

    assert table.column("ref_id").to_pylist() == [20, 21, 22]
    assert table.column("target_ref_id").to_pylist() == [22, 22, 20]
    assert RowFacts.of(table).num_left_out == 3
    assert "3 sentences" in score(table).rules()[-1]


def test_a_sentence_seen_twice_or_never_is_refused(
    write_stripes: Write, colour_model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    gather = evaluate_module.gather_object
    monkeypatch.setattr(evaluate_module, "gather_object", lambda found: 2 * gather(found))

    with pytest.raises(TrainingError, match="evaluated 6 sentences, expected each of 3 exactly once"):
        evaluate(write_stripes(HALF), colour_model)


def test_all_protocols_come_from_one_pass_and_each_is_what_it_is_alone(write_stripes: Write, colour_model: Any) -> None:
    folder = write_stripes(HALF, {**HALF, "refs": [((0, 0), ["the green"]), ((0, 16), ["no red"])]})
    table = evaluate(folder, colour_model, protocols=list(PROTOCOLS.values()), save_predictions=True)
    assert colour_model.num_encoded_images == 2
    assert sum(colour_model.num_decoded) == 5

    for protocol in PROTOCOLS.values():
        alone = evaluate(folder, colour_model, protocols=[protocol], save_predictions=True)
        assert alone.equals(table.select(alone.column_names))
        assert score(alone, protocol).by_name() == score(table, protocol).by_name()


def test_lavt_and_rela_count_pixels_of_their_own_size(write_stripes: Write, colour_model: Any) -> None:
    table = evaluate(write_stripes(HALF), colour_model, size=(480, 480), kind="stretch", protocols=[LAVT, RELA])

    first, _, third = table.to_pylist()
    for name in ("lavt", "rela"):
        # A quarter and a half of 480 x 480 pixels; stripes of the picture end where pixels of the network's map do.
        assert (first[f"{name}_target_area"], third[f"{name}_target_area"]) == (480 * 120, 480 * 240)
        assert third[f"{name}_predicted_area"] == pytest.approx(480 * 120, rel=0.02)
    assert (first["height"], first["width"]) == (32, 64)


def test_distractors_are_other_targets_of_the_category_in_the_image(write_stripes: Write, colour_model: Any) -> None:
    twins = {**HALF, "refs": [((0, 16), ["the red"]), ((0, 16), ["a red"]), ((32, 48), ["the blue"]), ((0, 0), ["it"])]}
    table = evaluate(write_stripes(twins, {**HALF, "refs": [((0, 16), ["the red"])]}), colour_model)

    assert table.column("num_distractors").to_pylist() == [1, 1, 1, 0, 0]
    shuffled = evaluate(write_stripes(twins), colour_model, sentence_order="shuffled", protocols=[ORIGINAL])
    assert shuffled.column("num_distractors").to_pylist() == [1, 1, 1]
