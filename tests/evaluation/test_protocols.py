from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from refseg.errors import UsageError
from refseg.evaluation.protocols import ORIGINAL, PROTOCOLS, RowFacts, find_protocol, score
from refseg.evaluation.rows import ROWS_SCHEMA

FACTS = RowFacts(protocol=ORIGINAL, mask_rule="union", sentence_order="own", num_left_out=0)


def rows(*pixels: tuple[int, int], facts: RowFacts = FACTS) -> pa.Table:
    """Rows with the given (intersection, union); two sentences per ref, all in one image."""
    filled = {
        "dataset": "toy/refseg", "split": "val", "image_id": 1, "sentence": "it", "height": 9, "width": 9,
        "num_tokens": 3, "category": "c", "predicted_area": 1, "target_area": 1, "no_target": False,
    }  # fmt: skip
    records = [
        {**filled, "ref_id": n // 2, "target_ref_id": n // 2, "sent_id": n, "intersection": i, "union": u}
        for n, (i, u) in enumerate(pixels)
    ]
    return facts.attach(pa.Table.from_pylist(records, schema=ROWS_SCHEMA))


def test_scores_come_under_their_names_with_counts() -> None:
    scores = score(rows((1, 2), (9, 10), (0, 8)))

    assert scores.by_name() == pytest.approx(
        {"oIoU": 10 / 20, "mIoU": 1.4 / 3, "Pr@0.5": 1 / 3, "Pr@0.6": 1 / 3, "Pr@0.7": 1 / 3, "Pr@0.8": 1 / 3,
         "Pr@0.9": 0}
    )  # fmt: skip
    assert (scores.num_sentences, scores.num_refs, scores.num_images, scores.num_no_target) == (3, 2, 1, 0)


def test_every_rule_that_moves_a_score_is_said() -> None:
    rules = "\n".join(score(rows((1, 2))).rules())

    for said in ("original size", "bilinear", "> 0.5", "union", "IoU > X", "both empty: IoU 1", "1 of 1 refs"):
        assert said in rules
    assert "SHUFFLED" not in rules


def test_the_shuffled_control_is_never_mistaken_for_a_score() -> None:
    facts = replace(FACTS, sentence_order="shuffled", num_left_out=7)

    assert "SHUFFLED CONTROL" in score(rows((1, 2), facts=facts)).rules()[-1]
    assert "7 sentences" in score(rows((1, 2), facts=facts)).rules()[-1]


def test_facts_survive_parquet(tmp_path: Path) -> None:
    pq.write_table(rows((1, 2)), tmp_path / "rows.parquet")

    assert RowFacts.of(pq.read_table(tmp_path / "rows.parquet")) == FACTS


def test_masks_made_under_other_rules_are_not_scored() -> None:
    other = replace(ORIGINAL, threshold=0.35)

    with pytest.raises(UsageError, match=r"threshold=0\.35.*expected.*threshold=0\.5"):
        score(rows((1, 2), facts=replace(FACTS, protocol=other)))
    assert score(rows((1, 2), facts=replace(FACTS, protocol=other)), other).num_sentences == 1


def test_a_table_without_facts_or_rows_is_refused() -> None:
    with pytest.raises(UsageError, match="carries no evaluation facts"):
        score(rows((1, 2)).replace_schema_metadata(None))
    with pytest.raises(UsageError, match="no evaluation rows"):
        score(rows())


def test_protocols_are_found_by_name() -> None:
    assert find_protocol("original") is ORIGINAL
    assert all(protocol.name == name for name, protocol in PROTOCOLS.items())
    with pytest.raises(UsageError, match="unknown protocol 'mine'; expected one of original"):
        find_protocol("mine")
