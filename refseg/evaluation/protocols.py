"""Defines the evaluation protocols by name. A protocol specifies how masks are made, compared and scored.

The scores of one model on one split differ by several points between the protocols of published papers, and most tables
do not name their protocol. Here every score is stored and shown with its rules. All five protocols score every sentence
of a split. Some published code validates with one sentence per ref during training. This is not done here.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from pydantic import ConfigDict

from refseg.errors import UsageError
from refseg.wording import did_you_mean


@dataclass(frozen=True, slots=True, kw_only=True)
class Protocol:
    """The rules by which a prediction becomes a mask, is compared with a target, and is scored.

    Attributes:
        name: Name of the protocol for users.
        size: `(height, width)` in pixels at which masks are compared. Images are stretched to this size. None means the
            image's own size.
        resized: The values that are resized before the threshold is applied. They are probabilities or logits.
        interpolation: Method of resizing. `bilinear` resizes in two steps. The first step resizes to the network's
            input size. The second step resizes the area that the picture fills to the final size. `bicubic` also has
            two steps, of which the second is an inverse affine warp with zero padding.
        align_corners: True if the first step aligns the corner pixels.
        threshold: A pixel belongs to the object if its value is greater than this. All published code uses `>`.
        mask_rule: Rule for the target. `dataset` is the rule by which the dataset was built. `union` selects pixels of
            at least one part. `legacy` selects pixels of exactly one part. `scaled` is the union of the parts after
            scaling their polygons to `size`, without crowd annotations.
        empty_iou: IoU of a sentence whose target and prediction are both empty.
        epsilon: Number added to the union of each sentence in mIoU and Pr@X.
        no_target: How oIoU, mIoU and Pr@X treat a sentence that refers to nothing. With `empty mask`, the target is an
            empty mask. With `left out`, the sentence is not counted. With `own output`, the sentence is not counted,
            and a sentence with a target counts as missed if the model predicts "no target".
        precision_thresholds: The values X of Pr@X.
        precision_comparison: Comparison of the IoU with X.
        note: Remark about the protocol's papers. It is not a rule and is ignored when protocols are compared.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    name: str
    size: tuple[int, int] | None
    resized: Literal["probabilities", "logits"]
    interpolation: Literal["bilinear", "bicubic"]
    align_corners: bool
    threshold: float
    mask_rule: Literal["dataset", "union", "legacy", "scaled"]
    empty_iou: float
    epsilon: float
    no_target: Literal["empty mask", "left out", "own output"]
    precision_thresholds: tuple[float, ...]
    precision_comparison: Literal[">", ">="]
    note: str = field(compare=False)

    def compared_size(self, original_size: tuple[int, int]) -> tuple[int, int]:
        """Return the `(height, width)` in pixels at which masks of an image of the given size are compared."""
        return self.size or original_size

    def rules(self, dataset_mask_rule: str, *, given_masks: bool) -> list[str]:
        """Return the rules as lines of text. They are shown with every score.

        Args:
            dataset_mask_rule: Rule by which the dataset was built, `union` or `legacy`.
            given_masks: True for masks of another project. No threshold is applied to such masks here.
        """
        size = "the image's original size" if self.size is None else f"{self.size[0]} x {self.size[1]} pixels"
        lines = [f"protocol {self.name}: masks compared at {size}{self.note and f'; {self.note}'}"]
        if given_masks:
            resized = "" if self.size is None else f", resized to {size} by nearest pixels if given at the image's size"
            lines.append(f"predictions: binary masks as given{resized}")
        else:
            corners = ", corners aligned," if self.align_corners else ""
            lines += [
                f"{self.interpolation} interpolation{corners} of {self.resized}",
                f"a pixel belongs to the object if its {_UNITS[self.resized]} > {self.threshold:g}",
            ]
        rule = dataset_mask_rule if self.mask_rule == "dataset" else self.mask_rule
        nearest = ", resized by nearest pixels" if self.size and rule != "scaled" else ""
        lines += [
            f"target: {_MASK_RULES[rule]}{nearest}",
            f"Pr@X: share of sentences with IoU {self.precision_comparison} X",
            f"target and prediction both empty: IoU {self.empty_iou:g} and no pixel in oIoU"
            + (f"; {self.epsilon:g} is added to each union in mIoU and Pr@X" if self.epsilon else ""),
        ]
        return lines


_UNITS = {"probabilities": "probability", "logits": "logit"}

_MASK_RULES = {
    "union": "union of the ref's parts (mask rule union)",
    "legacy": "pixels covered by exactly one part, overlaps are holes (mask rule legacy)",
    "scaled": "union of the ref's parts, whose polygons are stretched to that size before drawing, without crowds",
}

_TENTHS = (0.5, 0.6, 0.7, 0.8, 0.9)

ORIGINAL = Protocol(
    name="original",
    size=None,
    resized="probabilities",
    interpolation="bilinear",
    align_corners=False,
    threshold=0.5,
    mask_rule="dataset",
    empty_iou=1.0,
    epsilon=0.0,
    no_target="empty mask",
    precision_thresholds=_TENTHS,
    precision_comparison=">",
    note="",
)
"""The default: every sentence is scored at the image's own size, with a threshold of 0.5 on the probability.

The comparison `>` for pixels is that of all compared projects (an argmax over two classes, or a logit above 0). The
strict `>` for Pr@X is CRIS's, whose settings FCNet follows. An empty prediction for an empty target is correct and has
an IoU of 1 (LISA, VLT).
"""

CRIS = Protocol(
    name="cris",
    size=None,
    resized="probabilities",
    interpolation="bicubic",
    align_corners=True,
    threshold=0.35,
    mask_rule="union",
    empty_iou=0.0,
    epsilon=1e-6,
    no_target="empty mask",
    precision_thresholds=_TENTHS,
    precision_comparison=">",
    note="the papers' headline is mIoU",
)
"""The protocol of CRIS, ETRIS and DETRIS. Source: `engine.py` of these projects.

Their warp inverts their own letterbox, which differs from this project's by up to half a pixel. Here the warp inverts
the geometry by which the picture was fitted into the input.
"""

LAVT = Protocol(
    name="lavt",
    size=(480, 480),
    resized="logits",
    interpolation="bilinear",
    align_corners=True,
    threshold=0.0,
    mask_rule="legacy",
    empty_iou=0.0,
    epsilon=0.0,
    no_target="left out",
    precision_thresholds=_TENTHS,
    precision_comparison=">=",
    note="the papers' headline is oIoU",
)
"""The protocol of LAVT and DMMI. Source: `test.py` of these projects.

Their networks have two classes; the difference of the two scores corresponds to the logit here, and their argmax to its
sign. The protocol is exact for a network with a stretched input of 480 x 480; other outputs are resized to it. LAVT's
data have no sentence without a target; leaving such sentences out is DMMI's rule for Ref-ZOM.
"""

LISA = Protocol(
    name="lisa",
    size=None,
    resized="logits",
    interpolation="bilinear",
    align_corners=False,
    threshold=0.0,
    mask_rule="legacy",
    empty_iou=1.0,
    epsilon=1e-5,
    no_target="empty mask",
    precision_thresholds=_TENTHS,
    precision_comparison=">",
    note="its papers write gIoU for this mIoU and cIoU for this oIoU, and have no Pr@X",
)
"""The protocol of LISA, GLaMM and EVF-SAM. Source: `train_ds.py` and `intersectionAndUnionGPU` of these projects.

Their target has the value 2 where two parts overlap, and their histogram of two classes ignores that value. Such a
pixel is never in the intersection, and is in the union if it is predicted. A hole in the target has the same effect, so
the mask rule is `legacy`.
"""

RELA = Protocol(
    name="rela",
    size=(480, 480),
    resized="logits",
    interpolation="bilinear",
    align_corners=False,
    threshold=0.0,
    mask_rule="scaled",
    empty_iou=0.0,
    epsilon=0.0,
    no_target="own output",
    precision_thresholds=_TENTHS,
    precision_comparison=">=",
    note="the paper's headlines are gIoU and cIoU; its oIoU, mIoU, Pr@X (from 0.7) are of sentences with a target",
)
"""The protocol of ReLA (gRefCOCO). Source: its `refer_evaluation.py` and `refcoco_mapper.py`."""

PROTOCOLS = {protocol.name: protocol for protocol in (ORIGINAL, CRIS, LAVT, LISA, RELA)}


def find_protocol(name: str) -> Protocol:
    """Return the protocol of a name.

    Raises:
        UsageError: If the name is unknown. The message lists the known names.
    """
    if name not in PROTOCOLS:
        hint = did_you_mean(name, PROTOCOLS)
        raise UsageError(f"unknown protocol {name!r}; expected one of {', '.join(PROTOCOLS)}{hint}")
    return PROTOCOLS[name]


def find_protocols(names: Sequence[str]) -> tuple[Protocol, ...]:
    """Return the protocols of several names without repetition. The name `all` selects every protocol.

    Raises:
        UsageError: If a name is unknown.
    """
    wanted = dict.fromkeys(known for name in names for known in (PROTOCOLS if name == "all" else (name,)))
    return tuple(find_protocol(name) for name in wanted)
