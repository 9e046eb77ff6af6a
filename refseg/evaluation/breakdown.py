"""Computes scores by groups of sentences, and the histogram of their IoUs."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from refseg.evaluation.metrics import Flags
from refseg.evaluation.protocols import Protocol
from refseg.evaluation.rows import counts
from refseg.evaluation.scores import ratios, row_ious

_WORDS = (("up to 2 words", 0.0), ("3–4", 3.0), ("5–6", 5.0), ("7–9", 7.0), ("10 and more", 10.0))
_SHARES = (("under 1 %", 0.0), ("1–3 %", 0.01), ("3–10 %", 0.03), ("10–30 %", 0.1), ("over 30 %", 0.3))
_DISTRACTORS = (("none", 0.0), ("1", 1.0), ("2", 2.0), ("3 and more", 3.0))

LOCATION_WORDS = {
    "left", "right", "top", "bottom", "middle", "center", "centre", "upper", "lower", "front", "back", "behind",
    "above", "below", "under", "over", "beneath", "near", "nearest", "closest", "next", "beside", "between",
    "far", "farthest", "furthest", "foreground", "background", "corner", "side", "edge", "leftmost",
    "rightmost", "topmost", "bottommost", "lefthand", "righthand",
}  # fmt: skip
"""Words that say where an object is, in the picture or relative to another: those that RefCOCO+ forbids, and similar
ones."""

NUM_CATEGORIES = 12
"""Number of categories with a group of their own; all others share one group."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Scores of a group of sentences, as fractions.

    Attributes:
        name: What the sentences have in common.
        num_sentences: Number of sentences that count. It is never 0.
        mean_iou: mIoU of the group.
        overall_iou: oIoU of the group.
    """

    name: str
    num_sentences: int
    mean_iou: float
    overall_iou: float


def by_sentence_length(table: pa.Table, protocol: Protocol) -> list[Group]:
    """Group the sentences by their number of words, separated by white space. Empty groups are left out."""
    num_words = np.array([len(sentence.split()) for sentence in table.column("sentence").to_pylist()])
    return _cut(table, protocol, num_words, _WORDS)


def by_target_size(table: pa.Table, protocol: Protocol) -> list[Group]:
    """Group the sentences by the target's share of the image.

    Sentences without a target and empty groups are left out.
    """
    table = table.filter(pa.array(counts(table, protocol, "target_area") > 0))
    height, width = (table.column(side).to_numpy().astype(np.int64) for side in ("height", "width"))
    area = height * width if protocol.size is None else protocol.size[0] * protocol.size[1]
    return _cut(table, protocol, counts(table, protocol, "target_area") / area, _SHARES)


def by_category(table: pa.Table, protocol: Protocol) -> list[Group]:
    """Group the sentences by the target's category, from the most to the least frequent.

    Categories after the first `NUM_CATEGORIES` share a group. Sentences whose target has no category are left out.
    """
    categories = np.array(table.column("category").to_pylist(), dtype=object)
    names, numbers = np.unique(categories[categories != ""].astype(str), return_counts=True)
    frequent = names[np.lexsort((names, -numbers))].tolist()
    groups = [(name, categories == name) for name in frequent[:NUM_CATEGORIES]]
    rest = np.isin(categories.astype(str), frequent[NUM_CATEGORIES:])
    return _score(table, protocol, [*groups, (f"{len(frequent) - NUM_CATEGORIES} others", rest)])


def by_distractors(table: pa.Table, protocol: Protocol) -> list[Group]:
    """Group the sentences by the number of other targets of the same category in the image.

    Sentences without a target are left out.
    """
    table = table.filter(pa.array(~_flags(table, "no_target")))
    return _cut(table, protocol, table.column("num_distractors").to_numpy().astype(np.int64), _DISTRACTORS)


def by_location_words(table: pa.Table, protocol: Protocol) -> list[Group]:
    """Group the sentences into those with and those without one of `LOCATION_WORDS`."""
    has_location = np.array(
        [
            not LOCATION_WORDS.isdisjoint(re.findall(r"[a-z]+", sentence.lower()))
            for sentence in table.column("sentence").to_pylist()
        ],
        np.bool_,
    )
    return _score(table, protocol, [("with location words", has_location), ("without", ~has_location)])


BREAKDOWNS: dict[str, Callable[[pa.Table, Protocol], list[Group]]] = {
    "Length of the sentence": by_sentence_length,
    "Target's share of the picture": by_target_size,
    "Others of the same category in the picture": by_distractors,
    "Words of location": by_location_words,
    "Category": by_category,
}
"""All groupings by their titles in a report."""


def iou_histogram(table: pa.Table, protocol: Protocol, *, num_bins: int) -> list[int]:
    """Count the sentences in `num_bins` equal bins of IoU from 0 to 1. The last bin includes 1."""
    histogram, _ = np.histogram(row_ious(table, protocol), bins=num_bins, range=(0, 1))
    return [int(number) for number in histogram]


def _cut(
    table: pa.Table,
    protocol: Protocol,
    values: NDArray[np.int64] | NDArray[np.float64],
    starts: Sequence[tuple[str, float]],
) -> list[Group]:
    """Group rows by a value. Each group includes its start value and excludes the start value of the next group."""
    group = np.searchsorted([start for _, start in starts], values, side="right") - 1
    return _score(table, protocol, [(name, group == number) for number, (name, _) in enumerate(starts)])


def _score(table: pa.Table, protocol: Protocol, groups: Sequence[tuple[str, Flags]]) -> list[Group]:
    """Score all groups with at least one sentence that counts."""
    if not len(table):
        return []
    scores = ratios(table, protocol)
    mean_iou, overall_iou = scores["mIoU"], scores["oIoU"]
    counted = mean_iou.denominator > 0
    return [
        Group(
            name=name,
            num_sentences=int(np.count_nonzero(chosen & counted)),
            mean_iou=mean_iou.value(chosen),
            overall_iou=overall_iou.value(chosen),
        )
        for name, chosen in groups
        if (chosen & counted).any()
    ]


def _flags(table: pa.Table, column: str) -> Flags:
    values: Flags = table.column(column).to_numpy(zero_copy_only=False)
    return values
