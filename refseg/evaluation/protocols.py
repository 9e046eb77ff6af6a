"""Named evaluation protocols: how masks are made, what they are compared with, and what counts.

The same model on the same split scores several points apart under the protocols that papers use, and most tables do
not say which one it was. Here a score never travels without its rules. All five read every sentence of a split; what
codes do during training (the first sentence, a random one) is not copied.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from pydantic import ConfigDict

from refseg.errors import UsageError
from refseg.wording import did_you_mean


@dataclass(frozen=True, slots=True, kw_only=True)
class Protocol:
    """How a prediction becomes a mask, what it is compared with, and what the scores count.

    Attributes:
        name: As users write it.
        size: `(height, width)` in pixels at which masks are compared, to which pictures are stretched; None: the
            image's own.
        resized: What is brought to that size before a pixel is decided on.
        interpolation: How. `bilinear`: to the network's input, then what the picture fills of it to the size.
            `bicubic`: the same through an inverse affine warp that sees zeros around the input.
        align_corners: Whether the first of the two steps puts corner pixels on corner pixels.
        threshold: A pixel is object where `resized` is greater: strictly, in every published code.
        mask_rule: The target. `dataset`: as the dataset was built. `union`: pixels of any part. `legacy`: pixels of
            exactly one part. `scaled`: the union of parts whose polygons were stretched to `size` first, crowds left
            out.
        empty_iou: IoU of a sentence whose target and prediction are both empty.
        epsilon: Added to the union of each sentence in mIoU and Pr@X.
        no_target: How oIoU, mIoU and Pr@X take a sentence that names nothing: its target is an `empty mask`, or it is
            `left out`, or left out and a target that the model denies counts as missed (`own output`).
        precision_thresholds: The X of Pr@X.
        precision_comparison: Of IoU and X.
        note: What readers of its papers should know; no rule, and not compared.
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
        """`(height, width)` in pixels of the masks of an image of the given size."""
        return self.size or original_size

    def rules(self, dataset_mask_rule: str, *, given_masks: bool) -> list[str]:
        """The lines that stand beside every score, one rule each.

        Args:
            dataset_mask_rule: `union` or `legacy`, by which the dataset was built.
            given_masks: The masks came from elsewhere; no threshold was applied here.
        """
        size = "the image's original size" if self.size is None else f"{self.size[0]} x {self.size[1]} pixels"
        lines = [f"protocol {self.name}: masks compared at {size}{self.note and f'; {self.note}'}"]
        if given_masks:
            resized = "" if self.size is None else f", brought to {size} by nearest pixels where given at the image's"
            lines.append(f"predictions: binary masks as given{resized}")
        else:
            corners = ", corners aligned," if self.align_corners else ""
            lines += [
                f"{self.interpolation} interpolation{corners} of {self.resized}",
                f"a pixel is object where {_UNITS[self.resized]} > {self.threshold:g}",
            ]
        rule = dataset_mask_rule if self.mask_rule == "dataset" else self.mask_rule
        nearest = ", brought there by nearest pixels" if self.size and rule != "scaled" else ""
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
    "scaled": "union of the ref's parts, polygons stretched to that size before they are drawn, crowds left out",
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
"""The default: every sentence, at the image's own size, at probability one half.

`>` for pixels is what every peer does (an argmax over two classes, a logit above 0); the strict `>` for Pr@X is CRIS's,
whose settings FCNet follows. An empty prediction for an empty target is right and therefore worth 1 (LISA, VLT).
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
"""CRIS, ETRIS and DETRIS: `engine.py`.

Their warp undoes their own letterbox, which lies up to half a pixel beside ours; here it undoes the geometry that the
picture was brought in by.
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
"""LAVT and DMMI: `test.py`. The difference of their two classes' scores is our logit, and argmax its sign.

Exact for a network whose input is 480 x 480, stretched; others are brought there. LAVT's data have no sentence without
a target; that they are left out is DMMI's rule for Ref-ZOM.
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
"""LISA, GLaMM and EVF-SAM: `train_ds.py`, `intersectionAndUnionGPU`.

Their target keeps the value 2 where two parts overlap, which their histogram of two classes drops: such a pixel is in
no intersection, and in the union where it is predicted. So it is with a hole.
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
"""ReLA (gRefCOCO): `refer_evaluation.py`, `refcoco_mapper.py`."""

PROTOCOLS = {protocol.name: protocol for protocol in (ORIGINAL, CRIS, LAVT, LISA, RELA)}


def find_protocol(name: str) -> Protocol:
    """Look a protocol up by name.

    Raises:
        UsageError: If there is none of that name; the message lists those there are.
    """
    if name not in PROTOCOLS:
        hint = did_you_mean(name, PROTOCOLS)
        raise UsageError(f"unknown protocol {name!r}; expected one of {', '.join(PROTOCOLS)}{hint}")
    return PROTOCOLS[name]


def find_protocols(names: Sequence[str]) -> tuple[Protocol, ...]:
    """Look several protocols up, each once; `all` stands for all there are.

    Raises:
        UsageError: As `find_protocol`.
    """
    wanted = dict.fromkeys(known for name in names for known in (PROTOCOLS if name == "all" else (name,)))
    return tuple(find_protocol(name) for name in wanted)
