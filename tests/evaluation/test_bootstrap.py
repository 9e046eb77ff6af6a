import math

import numpy as np
import pyarrow as pa
import pytest

from refseg.errors import UsageError
from refseg.evaluation.bootstrap import NUM_DRAWS, _draw, compare, confidence_intervals
from refseg.evaluation.protocols import ORIGINAL, RELA
from refseg.evaluation.scores import ratios, score

from .conftest import make_rows


def random_rows(seed: int, *, better: float = 0.0) -> pa.Table:
    """Sentences of 40 images, one to four each, some without a target."""
    random = np.random.default_rng(seed)
    sentences = []
    for image in range(40):
        for of_image in range(random.integers(1, 5)):
            number, union = len(sentences), int(random.integers(50, 100))
            is_none = number % 7 == 3
            share = min(1.0, random.random() * 0.6 + better)
            areas = (
                {"no_target": True, "target_area": 0, "predicted_area": union % 2 * union}
                if is_none
                else {"intersection": int(share * union), "union": union}
            )
            sentences.append({"image_id": image, "ref_id": 10 * image + of_image // 2, **areas})
    return make_rows(*sentences, protocol=RELA)


def test_a_draw_is_the_score_of_the_images_drawn() -> None:
    """Repeat the first draws by hand: score a table with all rows of each image, as often as the image was drawn."""
    table = random_rows(0)
    times = np.random.default_rng(0).multinomial(40, np.full(40, 1 / 40), 100)
    drawn: dict[str, list[float]] = {}
    for weights in times[:20]:
        parts = []
        for image, number in enumerate(weights):
            rows = table.filter(pa.array(table.column("image_id").to_numpy() == image))
            for copy in range(number):  # a ref of an image drawn twice is two refs
                ids = pa.array(rows.column("ref_id").to_numpy() + 1000 * copy)
                parts.append(rows.set_column(rows.column_names.index("ref_id"), "ref_id", ids))
        scores = score(pa.concat_tables(parts).replace_schema_metadata(table.schema.metadata), RELA)
        for name, value in scores.by_name().items():
            drawn.setdefault(name, []).append(value)

    ours = _draw(table, ratios(table, RELA))
    assert len(ours["oIoU"]) == NUM_DRAWS
    for name, values in drawn.items():
        assert ours[name][:20] == pytest.approx(values), name


def test_intervals_hold_the_score_and_are_the_same_each_time() -> None:
    table = random_rows(1)
    intervals, values = confidence_intervals(table, RELA), score(table, RELA).by_name()

    assert intervals.keys() == values.keys()
    for name, (low, high) in intervals.items():
        assert low <= values[name] <= high, name
    assert intervals == confidence_intervals(table, RELA)


def test_the_interval_of_a_mean_is_that_of_the_normal_distribution() -> None:
    # With one sentence per image, the deviation of the mean of 400 IoUs is theirs divided by 20.
    random = np.random.default_rng(2)
    table = make_rows(
        *({"image_id": n, "intersection": int(random.integers(0, 101)), "union": 100} for n in range(400))
    )
    ious = table.column("original_intersection").to_numpy() / 100

    low, high = confidence_intervals(table, ORIGINAL)["mIoU"]

    assert (high - low) / 2 == pytest.approx(1.96 * ious.std() / 20, rel=0.1)


def test_sentences_of_one_image_move_together() -> None:
    # In each of ten images all sentences are found or all are missed, so 40 sentences say no more than ten.
    table = make_rows(*({"image_id": n // 4, "intersection": n // 4 % 2, "union": 1} for n in range(40)))

    low, high = confidence_intervals(table, ORIGINAL)["mIoU"]

    assert (high - low) / 2 == pytest.approx(1.96 * 0.5 / math.sqrt(10), abs=0.06)


def test_a_score_that_no_sentence_counts_for_has_no_interval() -> None:
    table = make_rows({"intersection": 1, "union": 2}, protocol=RELA)

    assert all(math.isnan(end) for end in confidence_intervals(table, RELA)["N-acc"])


def test_a_run_does_not_differ_from_itself() -> None:
    for difference in compare(random_rows(3), random_rows(3), RELA):
        assert difference.interval == (0.0, 0.0)
        assert difference.p_value == 1.0
        assert difference.first == difference.second


def test_pairing_finds_a_difference_that_intervals_alone_would_hide() -> None:
    first, second = random_rows(4), random_rows(4, better=0.03)
    (found,) = (difference for difference in compare(first, second, RELA) if difference.name == "mIoU")

    assert 0 < found.interval.low < found.second - found.first < found.interval.high
    assert found.p_value < 0.01
    # The runs' own intervals overlap widely.
    assert confidence_intervals(second, RELA)["mIoU"].low < found.first


def test_runs_on_other_sentences_are_not_compared() -> None:
    with pytest.raises(UsageError, match=r"not scored on the same sentences \(1 sentence of toy/refseg val; 2 sentenc"):
        compare(make_rows({"union": 1}), make_rows({"union": 1}, {"union": 2}), ORIGINAL)
    with pytest.raises(UsageError, match="not scored on the same sentences"):
        compare(make_rows({"union": 1}), make_rows({"union": 1, "target_ref_id": 9}), ORIGINAL)
