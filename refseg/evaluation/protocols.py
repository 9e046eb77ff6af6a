"""Named evaluation protocols: how masks are made and compared, and which scores follow from the rows.

The same model on the same split scores several points apart under the protocols that papers use, and most tables do
not say which one it was. Here a score never travels without its rules.
"""

import json
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from refseg.errors import UsageError
from refseg.evaluation.metrics import Counts, mean_iou, overall_iou, precision_at, sentence_ious

_FACTS_KEY = b"refseg"

SentenceOrder = Literal["own", "shuffled"]
"""`own`: each sentence against its ref's target. `shuffled`: the control, against another target of the same image."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Protocol:
    """How a prediction becomes a mask, what it is compared with, and what the scores count.

    Attributes:
        name: As users write it.
        size: Where masks are compared: `original`, the image's own pixels.
        interpolation: Of the probabilities on their way to that size.
        threshold: Probability above which a pixel belongs to the object.
        comparison: Of probability and threshold.
        empty_iou: IoU of a sentence whose target and prediction are both empty.
        precision_thresholds: The X of Pr@X.
        precision_comparison: Of IoU and X.
    """

    name: str
    size: Literal["original"]
    interpolation: Literal["bilinear"]
    threshold: float
    comparison: Literal[">"]
    empty_iou: float
    precision_thresholds: tuple[float, ...]
    precision_comparison: Literal[">", ">="]


ORIGINAL = Protocol(
    name="original",
    size="original",
    interpolation="bilinear",
    threshold=0.5,
    comparison=">",
    empty_iou=1.0,
    precision_thresholds=(0.5, 0.6, 0.7, 0.8, 0.9),
    precision_comparison=">",
)
"""The default: every sentence, at the image's own size, at probability one half.

`>` for pixels is what every peer does (an argmax over two classes, a logit above 0); the strict `>` for Pr@X is CRIS's,
whose settings FCNet follows. An empty prediction for an empty target is right and therefore worth 1 (LISA, VLT).
"""

PROTOCOLS = {protocol.name: protocol for protocol in (ORIGINAL,)}


def find_protocol(name: str) -> Protocol:
    """Look a protocol up by name.

    Raises:
        UsageError: If there is none of that name; the message lists those there are.
    """
    if name not in PROTOCOLS:
        raise UsageError(f"unknown protocol {name!r}; expected one of {', '.join(PROTOCOLS)}")
    return PROTOCOLS[name]


@dataclass(frozen=True, slots=True, kw_only=True)
class RowFacts:
    """What the rows cannot say about themselves and no score may be read without; travels with the table.

    Attributes:
        protocol: The rules the masks were made by.
        mask_rule: Rule of the targets: `union` or `legacy` (`refseg.schema.MASK_RULES`).
        sentence_order: `own`: each sentence against its ref. `shuffled`: against another target of its image.
        num_left_out: Sentences without a row: in shuffled order those of images with a single target.
    """

    protocol: Protocol
    mask_rule: str
    sentence_order: SentenceOrder
    num_left_out: int

    def attach(self, table: pa.Table) -> pa.Table:
        """The table with these facts in its schema's metadata, which Parquet keeps."""
        return table.replace_schema_metadata({_FACTS_KEY: json.dumps(asdict(self))})

    @classmethod
    def of(cls, table: pa.Table) -> "RowFacts":
        """The facts a table carries.

        Raises:
            UsageError: If it carries none.
        """
        text = (table.schema.metadata or {}).get(_FACTS_KEY)
        if text is None:
            raise UsageError("the table carries no evaluation facts; expected rows written by `refseg evaluate`")
        fields = json.loads(text)
        protocol = fields.pop("protocol")
        thresholds = tuple(protocol.pop("precision_thresholds"))
        return cls(protocol=Protocol(precision_thresholds=thresholds, **protocol), **fields)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """Scores of one split, as fractions (0 to 1), with everything needed to compare them.

    Attributes:
        overall_iou: oIoU (others write cIoU): sum of intersections over sum of unions.
        mean_iou: mIoU (LISA writes gIoU): mean IoU over sentences.
        precision: Pr@X by X.
        num_sentences: Rows scored.
        num_refs: Refs they belong to.
        num_images: Images they speak of.
        num_no_target: Sentences that name nothing in their image.
        facts: What the rows were made with; `facts.protocol` holds the rules.
    """

    overall_iou: float
    mean_iou: float
    precision: dict[float, float]
    num_sentences: int
    num_refs: int
    num_images: int
    num_no_target: int
    facts: RowFacts

    def by_name(self) -> dict[str, float]:
        """The scores under the names of the literature: oIoU, mIoU, Pr@0.5, ..."""
        precision = {f"Pr@{threshold:g}": value for threshold, value in self.precision.items()}
        return {"oIoU": self.overall_iou, "mIoU": self.mean_iou, **precision}

    def rules(self) -> list[str]:
        """The lines that stand beside every score, one rule each."""
        facts = self.facts
        rule = facts.protocol
        lines = [
            f"protocol {rule.name}: masks compared at the image's {rule.size} size, "
            f"{rule.interpolation} interpolation of probabilities",
            f"a pixel is object where probability {rule.comparison} {rule.threshold:g}",
            f"target: {_MASK_RULES[facts.mask_rule]}",
            f"Pr@X: share of sentences with IoU {rule.precision_comparison} X",
            f"target and prediction both empty: IoU {rule.empty_iou:g} and no pixel in oIoU",
            f"all sentences: {self.num_sentences:,} of {self.num_refs:,} refs in {self.num_images:,} images, "
            f"{self.num_no_target:,} without a target",
        ]
        if facts.sentence_order == "shuffled":
            lines.append(
                "SHUFFLED CONTROL: each sentence is scored against another target of the same image; "
                f"{facts.num_left_out:,} sentences of images with a single target are left out"
            )
        return lines

    def to_json(self) -> dict[str, Any]:
        """Scores, counts and rules as plain JSON values."""
        return {
            "scores": self.by_name(),
            "num_sentences": self.num_sentences,
            "num_refs": self.num_refs,
            "num_images": self.num_images,
            "num_no_target": self.num_no_target,
            "rules": self.rules(),
            "facts": asdict(self.facts),
        }


_MASK_RULES = {
    "union": "union of the ref's parts (mask rule union)",
    "legacy": "pixels covered by exactly one part, overlaps are holes (mask rule legacy)",
}


def row_ious(table: pa.Table, protocol: Protocol) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """IoU of each row under the protocol's rule for empty masks, shape (N,)."""
    return sentence_ious(counts(table, "intersection"), counts(table, "union"), empty_iou=protocol.empty_iou)


def counts(table: pa.Table, column: str) -> Counts:
    """A column of pixel counts as an array, shape (N,)."""
    values: Counts = table.column(column).to_numpy()
    return values


def score(table: pa.Table, protocol: Protocol = ORIGINAL) -> Scores:
    """Compute a protocol's scores from evaluation rows.

    Args:
        table: Rows of one split, as `evaluate_model` returns them.
        protocol: The rules; the table's masks must have been made by them.

    Raises:
        UsageError: If the table is empty, or its masks were made under another protocol.
    """
    facts = RowFacts.of(table)
    if facts.protocol != protocol:
        raise UsageError(
            f"the rows hold masks made by {facts.protocol}, expected {protocol}; evaluate again under that protocol"
        )
    if not len(table):
        raise UsageError("found no evaluation rows, expected at least one sentence to score")
    ious = row_ious(table, protocol)
    return Scores(
        overall_iou=overall_iou(counts(table, "intersection"), counts(table, "union"), empty_iou=protocol.empty_iou),
        mean_iou=mean_iou(ious),
        precision={
            threshold: precision_at(ious, threshold, strict=protocol.precision_comparison == ">")
            for threshold in protocol.precision_thresholds
        },
        num_sentences=len(table),
        num_refs=len(table.select(["split", "ref_id"]).group_by(["split", "ref_id"]).aggregate([])),
        num_images=len(table.column("image_id").unique()),
        num_no_target=int(np.count_nonzero(table.column("no_target").to_numpy())),
        facts=facts,
    )
