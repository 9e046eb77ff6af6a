"""Computes all scores of a protocol from evaluation rows, together with the rules that must be shown with them."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from refseg.errors import UsageError
from refseg.evaluation.metrics import Ious, Ratio, mean_iou, overall_iou, precision_at, sentence_ious
from refseg.evaluation.no_target import (
    Answers,
    cumulative_iou,
    empty_mask_accuracy,
    generalised_iou,
    no_target_accuracy,
    robust_iou,
    target_accuracy,
)
from refseg.evaluation.protocols import ORIGINAL, Protocol
from refseg.evaluation.rows import RowFacts, counts
from refseg.wording import counted


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """Scores of one split under one protocol, as fractions (0 to 1), with the information needed to compare them.

    Attributes:
        values: Scores by their names in the literature: oIoU, mIoU, Pr@0.5, ...
        protocol: Protocol of the scores.
        num_sentences: Number of scored sentences (rows).
        num_refs: Number of refs of these sentences.
        num_images: Number of images of these sentences.
        num_no_target: Number of sentences that refer to nothing in their image.
        num_own_output: Number of sentences for which the model has a no-target output.
        facts: Information that applies to all rows.
    """

    values: dict[str, float]
    protocol: Protocol
    num_sentences: int
    num_refs: int
    num_images: int
    num_no_target: int
    num_own_output: int
    facts: RowFacts

    @property
    def overall_iou(self) -> float:
        """The oIoU, which is the sum of intersections over the sum of unions. Some papers call it cIoU."""
        return self.values["oIoU"]

    @property
    def mean_iou(self) -> float:
        """The mIoU, which is the mean IoU over sentences. LISA calls it gIoU."""
        return self.values["mIoU"]

    @property
    def precision(self) -> dict[float, float]:
        """Pr@X for each threshold X."""
        return {threshold: self.values[f"Pr@{threshold:g}"] for threshold in self.protocol.precision_thresholds}

    def by_name(self) -> dict[str, float]:
        """Return the scores by their names in the literature."""
        return dict(self.values)

    def rules(self) -> list[str]:
        """Return the rules as lines of text. They are shown with every score."""
        facts = self.facts
        lines = self.protocol.rules(facts.mask_rule, given_masks=facts.given_masks)
        lines.append("oIoU: sum of intersections over sum of unions, in pixels; mIoU: mean IoU of the sentences")
        lines.append(
            f"all sentences: {self.num_sentences:,} of {counted(self.num_refs, 'ref')} in "
            f"{counted(self.num_images, 'image')}, "
            f"{self.num_no_target:,} without a target"
        )
        if _has_no_target_scores(self.protocol, self.num_no_target):
            by = "the model's own output" if self.num_own_output else "an empty mask"
            if 0 < self.num_own_output < self.num_sentences:
                by += f" where there is one ({counted(self.num_own_output, 'sentence')}), else by an empty mask"
            lines += [
                f"no target: {_NO_TARGET[self.protocol.no_target]}; it is predicted by {by}",
                "gIoU: mean IoU, where a no-target sentence counts 1 if it is recognised, else 0; cIoU: a missed one "
                "adds its predicted pixels to the union (ReLA)",
                "N-acc, T-acc: share of sentences without, and with, a target that are predicted as such (ReLA); Acc: "
                "share of those without a target whose mask is empty (Ref-ZOM)",
                "rIoU: mean of the IoU of the refs, to whose unions no-target sentences add their predicted pixels "
                "(RefSegformer)",
            ]
        lines += facts.notes
        if facts.sentence_order == "shuffled":
            lines.append(
                "SHUFFLED CONTROL: each sentence is scored against another target of the same image; "
                f"{counted(facts.num_left_out, 'sentence')} of images with a single target left out"
            )
        return lines

    def to_json(self) -> dict[str, Any]:
        """Return scores, counts and rules as plain JSON values."""
        return {
            "protocol": self.protocol.name,
            "scores": self.by_name(),
            "num_sentences": self.num_sentences,
            "num_refs": self.num_refs,
            "num_images": self.num_images,
            "num_no_target": self.num_no_target,
            "rules": self.rules(),
            "facts": asdict(self.facts),
        }


_NO_TARGET = {
    "empty mask": "oIoU, mIoU and Pr@X compare such sentences with an empty mask",
    "left out": "oIoU, mIoU and Pr@X leave such sentences out",
    "own output": "oIoU, mIoU and Pr@X leave such sentences out, and a target predicted to be none counts as missed",
}


def score(table: pa.Table, protocol: Protocol = ORIGINAL) -> Scores:
    """Compute the scores of a protocol from evaluation rows.

    Args:
        table: Rows of one split, as `evaluate_model` returns them.
        protocol: Protocol of the scores. The table must have pixel counts for this protocol.

    Raises:
        UsageError: If the table is empty, or has no pixel counts for the protocol.
    """
    facts = RowFacts.of(table)
    if protocol not in facts.protocols:
        names = ", ".join(found.name for found in facts.protocols)
        changed = " with rules of another release" if protocol.name in {found.name for found in facts.protocols} else ""
        raise UsageError(
            f"the rows hold masks of protocol {names}{changed}, expected {protocol.name}; evaluate again under it"
        )
    if not len(table):
        raise UsageError("found no evaluation rows, expected at least one sentence to score")
    return Scores(
        values={name: ratio.value() for name, ratio in ratios(table, protocol).items()},
        protocol=protocol,
        num_sentences=len(table),
        num_refs=len(table.select(["split", "ref_id"]).group_by(["split", "ref_id"]).aggregate([])),
        num_images=len(table.column("image_id").unique()),
        num_no_target=int(np.count_nonzero(table.column("no_target").to_numpy())),
        num_own_output=len(table) - table.column("predicted_none").null_count,
        facts=facts,
    )


def ratios(table: pa.Table, protocol: Protocol) -> dict[str, Ratio]:
    """Return every score of a protocol as a ratio of sums over the rows, by its name in the literature."""
    answers = _answers(table, protocol)
    intersection, union, ious = answers.intersection, answers.union, answers.ious
    counted = np.ones(len(table), np.bool_)
    if protocol.no_target != "empty mask":
        counted = ~answers.no_target
        union = np.where(counted, union, 0)
        missed = answers.predicted_none & (protocol.no_target == "own output")
        intersection = np.where(counted & ~missed, intersection, 0)
        ious = np.where(missed, 0.0, ious)
    strict = protocol.precision_comparison == ">"
    found = {
        "oIoU": overall_iou(intersection, union, empty_iou=protocol.empty_iou),
        "mIoU": mean_iou(ious, counted),
        **{f"Pr@{x:g}": precision_at(ious, counted, x, strict=strict) for x in protocol.precision_thresholds},
    }
    if _has_no_target_scores(protocol, int(np.count_nonzero(answers.no_target))):
        found |= {
            "gIoU": generalised_iou(answers),
            "cIoU": cumulative_iou(answers),
            "N-acc": no_target_accuracy(answers),
            "T-acc": target_accuracy(answers),
            "rIoU": robust_iou(answers),
            "Acc": empty_mask_accuracy(answers),
        }
    return found


def row_ious(table: pa.Table, protocol: Protocol) -> Ious:
    """Return the IoU of each row under the protocol's rule for empty masks, shape (N,)."""
    return sentence_ious(
        counts(table, protocol, "intersection"),
        counts(table, protocol, "union"),
        empty_iou=protocol.empty_iou,
        epsilon=protocol.epsilon,
    )


def _has_no_target_scores(protocol: Protocol, num_no_target: int) -> bool:
    """Return True if there are no-target sentences, or if the protocol was designed for them."""
    return num_no_target > 0 or protocol.no_target == "own output"


def _answers(table: pa.Table, protocol: Protocol) -> Answers:
    predicted_area = counts(table, protocol, "predicted_area")
    own_output = table.column("predicted_none").to_numpy(zero_copy_only=False)
    has_output = table.column("predicted_none").is_valid().to_numpy(zero_copy_only=False)
    return Answers(
        intersection=counts(table, protocol, "intersection"),
        union=counts(table, protocol, "union"),
        predicted_area=predicted_area,
        target_area=counts(table, protocol, "target_area"),
        ious=row_ious(table, protocol),
        no_target=table.column("no_target").to_numpy(zero_copy_only=False),
        predicted_none=np.where(has_output, own_output.astype(np.bool_), predicted_area == 0),
        ref=_ref_numbers(table),
    )


def _ref_numbers(table: pa.Table) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Return a number for each row. Rows have the same number if they belong to the same ref of the same split."""
    splits = table.column("split").combine_chunks().dictionary_encode().indices.to_numpy(zero_copy_only=False)
    pairs = np.stack([splits.astype(np.int64), table.column("ref_id").to_numpy()], axis=1)
    _, numbers = np.unique(pairs, axis=0, return_inverse=True)
    return numbers.reshape(-1).astype(np.int64)
