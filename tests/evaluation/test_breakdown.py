import pyarrow as pa

from refseg.evaluation.breakdown import by_sentence_length, by_target_size, iou_histogram
from refseg.evaluation.protocols import ORIGINAL


def rows(*entries: tuple[str, int, int, int]) -> pa.Table:
    """Rows of (sentence, intersection, union, target area) in pictures of 100 pixels."""
    return pa.Table.from_pylist(
        [
            {"sentence": s, "intersection": i, "union": u, "target_area": area, "height": 10, "width": 10}
            for s, i, u, area in entries
        ]
    )


def test_sentences_are_grouped_by_their_words() -> None:
    table = rows(("cat", 1, 2, 1), ("black cat", 3, 4, 1), ("the black cat", 1, 4, 1), ("a b c d e f g h i j", 1, 1, 1))

    groups = by_sentence_length(table, ORIGINAL)

    assert [(g.name, g.num_sentences) for g in groups] == [("1–2 words", 2), ("3–4", 1), ("10 and more", 1)]
    assert groups[0].mean_iou == (0.5 + 0.75) / 2
    assert groups[0].overall_iou == 4 / 6


def test_sentences_are_grouped_by_the_targets_share_and_those_without_a_target_left_out() -> None:
    table = rows(("a", 1, 2, 1), ("b", 1, 2, 3), ("c", 1, 2, 9), ("d", 1, 2, 30), ("e", 0, 0, 0))

    groups = by_target_size(table, ORIGINAL)

    assert [(g.name, g.num_sentences) for g in groups] == [("1–3 %", 1), ("3–10 %", 2), ("over 30 %", 1)]


def test_every_iou_is_in_the_histogram_the_ends_included() -> None:
    table = rows(("a", 0, 2, 1), ("b", 1, 2, 1), ("c", 1, 1, 1), ("d", 0, 0, 0))

    assert iou_histogram(table, ORIGINAL, num_bins=4) == [1, 0, 1, 2]
