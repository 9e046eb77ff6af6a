import pyarrow as pa

from refseg.evaluation.breakdown import (
    BREAKDOWNS,
    by_category,
    by_distractors,
    by_location_words,
    by_sentence_length,
    by_target_size,
    iou_histogram,
)
from refseg.evaluation.protocols import LAVT, ORIGINAL

from .conftest import make_rows


def rows(*entries: tuple[str, int, int, int]) -> pa.Table:
    """Rows of (sentence, intersection, union, target area) in pictures of 100 pixels."""
    return make_rows(*({"sentence": s, "intersection": i, "union": u, "target_area": a} for s, i, u, a in entries))


def test_sentences_are_grouped_by_their_words() -> None:
    table = rows(("", 1, 2, 1), ("black cat", 3, 4, 1), ("the black cat", 1, 4, 1), ("a b c d e f g h i j", 1, 1, 1))

    groups = by_sentence_length(table, ORIGINAL)

    assert [(g.name, g.num_sentences) for g in groups] == [("up to 2 words", 2), ("3–4", 1), ("10 and more", 1)]
    assert groups[0].mean_iou == (0.5 + 0.75) / 2
    assert groups[0].overall_iou == 4 / 6


def test_sentences_are_grouped_by_the_targets_share_and_those_without_a_target_left_out() -> None:
    table = rows(("a", 1, 2, 1), ("b", 1, 2, 3), ("c", 1, 2, 9), ("d", 1, 2, 30), ("e", 0, 0, 0))

    groups = by_target_size(table, ORIGINAL)

    assert [(g.name, g.num_sentences) for g in groups] == [("1–3 %", 1), ("3–10 %", 2), ("over 30 %", 1)]


def test_every_iou_is_in_the_histogram_the_ends_included() -> None:
    table = rows(("a", 0, 2, 1), ("b", 1, 2, 1), ("c", 1, 1, 1), ("d", 0, 0, 0))

    assert iou_histogram(table, ORIGINAL, num_bins=4) == [1, 0, 1, 2]


def test_sentences_are_grouped_by_the_others_of_their_category() -> None:
    table = make_rows(
        {"num_distractors": 0, "intersection": 1, "union": 2},
        {"num_distractors": 5, "intersection": 1, "union": 4},
        {"num_distractors": 3, "intersection": 2, "union": 4},
        {"no_target": True, "predicted_area": 3, "target_area": 0},
    )

    groups = by_distractors(table, ORIGINAL)

    assert [(g.name, g.num_sentences, g.mean_iou) for g in groups] == [("none", 1, 0.5), ("3 and more", 2, 0.375)]


def test_words_of_location_are_found_as_words_whatever_stands_around_them() -> None:
    sentences = ["Left one", "the man (right)", "in the back.", "the leftover pizza", "brightest", "far-left bowl"]
    table = make_rows(*({"sentence": sentence, "intersection": 1, "union": 2} for sentence in sentences))

    groups = by_location_words(table, ORIGINAL)

    assert [(g.name, g.num_sentences) for g in groups] == [("with location words", 4), ("without", 2)]


def test_frequent_categories_have_their_own_group_and_the_rest_share_one() -> None:
    names = ["cat", "cat", "dog", *(f"thing {n:02}" for n in range(12)), ""]
    table = make_rows(*({"category": name, "intersection": 1, "union": 2} for name in names))

    groups = by_category(table, ORIGINAL)

    assert [(g.name, g.num_sentences) for g in groups[:3]] == [("cat", 2), ("dog", 1), ("thing 00", 1)]
    assert [(g.name, g.num_sentences) for g in groups[-2:]] == [("thing 09", 1), ("2 others", 2)]


def test_sentences_that_a_protocol_leaves_out_are_in_no_group() -> None:
    table = make_rows(
        {"intersection": 1, "union": 2}, {"no_target": True, "predicted_area": 3, "target_area": 0}, protocol=LAVT
    )

    for title, group in BREAKDOWNS.items():
        assert sum(g.num_sentences for g in group(table, LAVT)) == 1, title
