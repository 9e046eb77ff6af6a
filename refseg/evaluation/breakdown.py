"""Where a model is good and where not: scores by group of sentences, and how the IoUs spread."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from refseg.evaluation.metrics import mean_iou, overall_iou
from refseg.evaluation.protocols import Protocol, counts, row_ious

_WORDS = (("1–2 words", 1.0), ("3–4", 3.0), ("5–6", 5.0), ("7–9", 7.0), ("10 and more", 10.0))
_SHARES = (("under 1 %", 0.0), ("1–3 %", 0.01), ("3–10 %", 0.03), ("10–30 %", 0.1), ("over 30 %", 0.3))


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Scores of some of the sentences, as fractions.

    Attributes:
        name: What they have in common.
        num_sentences: How many; never 0.
        mean_iou: mIoU.
        overall_iou: oIoU.
    """

    name: str
    num_sentences: int
    mean_iou: float
    overall_iou: float


def by_sentence_length(table: pa.Table, protocol: Protocol) -> list[Group]:
    """Groups by the number of words between spaces; empty groups are left out."""
    num_words = np.array([len(sentence.split()) for sentence in table.column("sentence").to_pylist()])
    return _group(table, protocol, num_words, _WORDS)


def by_target_size(table: pa.Table, protocol: Protocol) -> list[Group]:
    """Groups by the target's share of the image; sentences without a target and empty groups are left out."""
    table = table.filter(pa.array(counts(table, "target_area") > 0))
    image_area = table.column("height").to_numpy() * table.column("width").to_numpy().astype(np.int64)
    return _group(table, protocol, counts(table, "target_area") / image_area, _SHARES)


def iou_histogram(table: pa.Table, protocol: Protocol, *, num_bins: int = 20) -> list[int]:
    """Sentences per equal step of IoU from 0 to 1; the last step holds 1 itself."""
    histogram, _ = np.histogram(row_ious(table, protocol), bins=num_bins, range=(0, 1))
    return [int(number) for number in histogram]


def _group(
    table: pa.Table,
    protocol: Protocol,
    values: NDArray[np.int64] | NDArray[np.float64],
    starts: Sequence[tuple[str, float]],
) -> list[Group]:
    """Cut rows by a value; each group reaches from its start to the next's."""
    ious, intersection, union = row_ious(table, protocol), counts(table, "intersection"), counts(table, "union")
    place = np.searchsorted([start for _, start in starts], values, side="right") - 1
    groups = []
    for number, (name, _) in enumerate(starts):
        chosen = place == number
        if chosen.any():
            groups.append(
                Group(
                    name=name,
                    num_sentences=int(np.count_nonzero(chosen)),
                    mean_iou=mean_iou(ious[chosen]),
                    overall_iou=overall_iou(intersection[chosen], union[chosen], empty_iou=protocol.empty_iou),
                )
            )
    return groups
