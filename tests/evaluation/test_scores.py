from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from refseg.errors import UsageError
from refseg.evaluation.protocols import CRIS, LAVT, LISA, ORIGINAL, PROTOCOLS, RELA, Protocol
from refseg.evaluation.rows import RowFacts
from refseg.evaluation.scores import score

from .conftest import make_rows


def rows(*pixels: tuple[int, int], protocol: Protocol = ORIGINAL) -> pa.Table:
    """Make rows with the given (intersection, union): two sentences per ref, all in one image."""
    return make_rows(
        *({"ref_id": n // 2, "intersection": i, "union": u} for n, (i, u) in enumerate(pixels)), protocol=protocol
    )


def test_scores_come_under_their_names_with_counts() -> None:
    scores = score(rows((1, 2), (9, 10), (0, 8)))

    assert scores.by_name() == pytest.approx(
        {"oIoU": 10 / 20, "mIoU": 1.4 / 3, "Pr@0.5": 1 / 3, "Pr@0.6": 1 / 3, "Pr@0.7": 1 / 3, "Pr@0.8": 1 / 3,
         "Pr@0.9": 0}
    )  # fmt: skip
    assert (scores.num_sentences, scores.num_refs, scores.num_images, scores.num_no_target) == (3, 2, 1, 0)


@pytest.mark.parametrize(("protocol", "passed"), [(ORIGINAL, 0), (CRIS, 0), (LAVT, 1), (LISA, 0)])
def test_an_iou_of_exactly_one_half_passes_where_the_protocol_says_at_least(protocol: Protocol, passed: int) -> None:
    assert score(rows((5, 10), protocol=protocol), protocol).precision[0.5] == passed


def test_rela_lets_a_tie_pass_at_every_tenth() -> None:
    scores = score(rows((7, 10), (6, 10), protocol=RELA), RELA)

    assert scores.precision == {0.5: 1.0, 0.6: 1.0, 0.7: 0.5, 0.8: 0.0, 0.9: 0.0}


@pytest.mark.parametrize(("protocol", "worth"), [(ORIGINAL, 1.0), (CRIS, 0.0), (LAVT, 0.0), (LISA, 1.0), (RELA, 0.0)])
def test_a_target_and_a_prediction_both_without_a_pixel_are_worth_what_the_protocol_says(
    protocol: Protocol, worth: float
) -> None:
    # A target can be empty, because one of a single pixel may vanish when masks are resized.
    scores = score(rows((0, 0), (4, 4), protocol=protocol), protocol)

    assert scores.mean_iou == pytest.approx((worth + 1) / 2, abs=1e-5)
    assert scores.overall_iou == 1.0
    assert score(rows((0, 0), protocol=protocol), protocol).overall_iou == worth


def test_every_rule_that_moves_a_score_is_said() -> None:
    said = {
        ORIGINAL: ("original size", "bilinear", "probability > 0.5", "union", "IoU > X", "both empty: IoU 1", "1 of 1"),
        CRIS: ("original size", "bicubic", "corners aligned", "probability > 0.35", "union", "IoU > X", "1e-06"),
        LAVT: ("480 x 480", "corners aligned", "logit > 0", "exactly one part", "nearest", "IoU >= X", "empty: IoU 0"),
        LISA: ("original size", "of logits", "logit > 0", "overlaps are holes", "both empty: IoU 1", "1e-05", "gIoU"),
        RELA: ("480 x 480", "stretched to that size", "IoU >= X", "an empty mask", "N-acc", "rIoU", "without crowds"),
    }
    assert set(said) == set(PROTOCOLS.values())
    for protocol, parts in said.items():
        rules = "\n".join(score(rows((1, 2), protocol=protocol), protocol).rules())
        always = (
            "oIoU: sum of intersections",
            "mIoU: mean IoU",
            "Pr@X: share",
            "all sentences: 1 of 1 ref in 1 image",
        )
        for part in (*parts, *always):
            assert part in rules, (protocol.name, part)
        assert "SHUFFLED" not in rules


def test_masks_that_were_given_have_no_threshold_among_their_rules() -> None:
    table = make_rows({"intersection": 1, "union": 2}, protocol=LAVT, given_masks=True)
    rules = "\n".join(score(table, LAVT).rules())

    assert "binary masks as given, resized to 480 x 480 pixels by nearest pixels" in rules
    assert "logit" not in rules


def test_the_shuffled_control_is_never_mistaken_for_a_score() -> None:
    table = make_rows({"intersection": 1, "union": 2}, sentence_order="shuffled", num_left_out=7)

    assert "SHUFFLED CONTROL" in score(table).rules()[-1]
    assert "7 sentences" in score(table).rules()[-1]


@pytest.mark.parametrize("protocol", PROTOCOLS.values())
def test_facts_survive_parquet(tmp_path: Path, protocol: Protocol) -> None:
    table = rows((1, 2), protocol=protocol)
    pq.write_table(table, tmp_path / "rows.parquet")

    assert RowFacts.of(pq.read_table(tmp_path / "rows.parquet")) == RowFacts.of(table)
    assert RowFacts.of(table).protocols == (protocol,)


def test_masks_made_under_other_rules_are_not_scored() -> None:
    other = replace(ORIGINAL, threshold=0.35)

    with pytest.raises(UsageError, match="of protocol original with rules of another release, expected original"):
        score(rows((1, 2), protocol=other))
    assert score(rows((1, 2), protocol=other), other).num_sentences == 1
    reworded = replace(ORIGINAL, note="said in other words")
    assert score(rows((1, 2), protocol=reworded)).num_sentences == 1
    with pytest.raises(UsageError, match="hold masks of protocol original, expected cris; evaluate again under it"):
        score(rows((1, 2)), CRIS)


def test_a_table_without_facts_or_rows_is_refused() -> None:
    with pytest.raises(UsageError, match="found rows without the metadata key `refseg`"):
        score(rows((1, 2)).replace_schema_metadata(None))
    with pytest.raises(UsageError, match="an earlier release wrote"):
        score(rows((1, 2)).replace_schema_metadata({"refseg": '{"protocol": {}}'}))
    with pytest.raises(UsageError, match="no evaluation rows"):
        score(rows())
