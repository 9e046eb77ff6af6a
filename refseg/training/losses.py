"""The training loss, scaled so that the mean over the ranks is the mean over all samples."""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor
from torch.nn import functional as F

from refseg.config import Recipe
from refseg.models.model import ModelOutput

LocationTarget = Literal["area", "gaussian", "ellipse"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LossWeights:
    """What is added to the cross-entropy of the mask, each 0 where a recipe does not want it.

    Attributes:
        dice: Of the Dice loss; no paper here has one.
        location: Of LTS's loss on the position prior.
        location_target: What that prior learns.
        reconstruction: Of CRFormer's language reconstruction.
    """

    dice: float = 0.0
    location: float = 0.0
    location_target: LocationTarget = "area"
    reconstruction: float = 0.0

    @classmethod
    def of(cls, recipe: Recipe) -> "LossWeights":
        """What a recipe asks for."""
        model = recipe.model
        return cls(
            dice=recipe.train.dice_weight,
            location=model.location_weight if model.name == "lts" else 0.0,
            location_target=model.location_target if model.name == "lts" else "area",
            reconstruction=model.reconstruction_weight if model.name == "crformer" else 0.0,
        )


def training_loss(
    output: ModelOutput,
    masks: UInt8[Tensor, "B H W"],
    weights: LossWeights,
    *,
    is_pad: Bool[Tensor, "B"],
    num_global: Int64[Tensor, ""],
    num_processes: int,
) -> Float[Tensor, ""]:
    """Binary cross-entropy at the decoder's resolution, plus what `weights` asks for.

    Source: FCNet Sec. 3.4 names the loss; CRIS's code takes it at a quarter of the input and keeps soft edges.
    There the mask is warped softly and sampled at every fourth pixel; here a target pixel is the object's share
    of the pixels it stands for, which is what soft edges mean. The Dice loss (Milletari et al. 2016, V-Net, Sec. 3;
    sums instead of squares, 1 added to both terms) is not in the paper: from random weights cross-entropy alone
    first calls everything background, as small objects are 3 % of the pixels.

    DistributedDataParallel takes the mean of the gradients over the ranks. A rank that holds n of N samples
    therefore gives its sum times `num_processes` / N: the mean over ranks is then the mean over the N samples,
    however unevenly they are spread, and one process gets the same value as many.

    Args:
        output: What the model gave; h and w of its mask logits divide H and W.
        masks: Targets at the network's size, 1 where the object is, else 0.
        weights: Of the further losses.
        is_pad: Repeats that fill the last batch; they add nothing.
        num_global: N, the samples of the whole global batch that are not padding.
        num_processes: Ranks the gradients are averaged over.

    Returns:
        The rank's share of the loss.
    """
    mask_logits = output.mask_logits.float()
    stride = (masks.shape[1] // mask_logits.shape[2], masks.shape[2] // mask_logits.shape[3])
    targets = F.avg_pool2d(masks[:, None].float(), stride)
    per_sample = _cross_entropy(mask_logits, targets)
    if weights.dice > 0:
        scores = mask_logits.sigmoid()
        overlap, areas = (scores * targets).sum(dim=(1, 2, 3)), (scores + targets).sum(dim=(1, 2, 3))
        per_sample = per_sample + weights.dice * (1 - (2 * overlap + 1) / (areas + 1))
    if output.location_logits is not None and weights.location > 0:
        location = output.location_logits.float()
        blobs = location_target(masks, (location.shape[2], location.shape[3]), weights.location_target)
        per_sample = per_sample + weights.location * _cross_entropy(location, blobs[:, None])
    if output.reconstruction_error is not None and weights.reconstruction > 0:
        per_sample = per_sample + weights.reconstruction * output.reconstruction_error.float()
    # `where` and not a product: a pad's infinity times zero would be NaN.
    total = torch.where(is_pad, 0.0, per_sample).sum()
    return total * (num_processes / num_global)


def location_target(
    masks: UInt8[Tensor, "B H W"], grid: tuple[int, int], kind: LocationTarget
) -> Float[Tensor, "B h w"]:
    """Targets on a coarse grid, 0 to 1; zero everywhere for an empty mask.

    Source: ours, for no source says which LTS takes. `area` is the object's share of each cell. On the box around
    the mask, `ellipse` is 1 at cells whose centre lies in the ellipse that the box holds, and `gaussian` falls from 1
    at the box's centre, its standard deviation a quarter of the box's side.

    Args:
        masks: 1 where the object is, else 0.
        grid: `(h, w)`, which divide H and W.
        kind: Kind of the blob.
    """
    height, width = masks.shape[1:]
    h, w = grid
    if kind == "area":
        return F.avg_pool2d(masks[:, None].float(), (height // h, width // w))[:, 0]
    occupied = masks.bool()
    squared = _squared_distance(occupied.any(2), h)[:, :, None] + _squared_distance(occupied.any(1), w)[:, None, :]
    blob = (squared <= 1).float() if kind == "ellipse" else torch.exp(-2 * squared)
    return blob * occupied.any(2).any(1)[:, None, None]


def _cross_entropy(logits: Float[Tensor, "B 1 h w"], targets: Float[Tensor, "B 1 h w"]) -> Float[Tensor, "B"]:
    return F.binary_cross_entropy_with_logits(logits, targets, reduction="none").mean(dim=(1, 2, 3))


def _squared_distance(occupied: Bool[Tensor, "B N"], cells: int) -> Float[Tensor, "B n"]:
    """Of each cell's centre from the middle of the occupied range along one side, in half lengths of that range."""
    size = occupied.shape[1]
    first = occupied.int().argmax(1)
    end = size - occupied.flip(1).int().argmax(1)
    middle, half = (first + end) / 2, (end - first) / 2
    centres = (torch.arange(cells, device=occupied.device) + 0.5) * (size / cells)
    return ((centres - middle[:, None]) / half[:, None]) ** 2
