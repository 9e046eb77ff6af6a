"""Computes the training loss, scaled so that the mean over the ranks is the mean over all samples."""

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
    """Weights of the losses that are added to the mask's cross-entropy. A loss with weight 0 is not computed.

    Attributes:
        dice: Weight of the Dice loss. None of the implemented papers uses it.
        location: Weight of LTS's loss on the position prior.
        location_target: Target of the position prior.
        reconstruction: Weight of CRFormer's language reconstruction loss.
    """

    dice: float = 0.0
    location: float = 0.0
    location_target: LocationTarget = "area"
    reconstruction: float = 0.0

    @classmethod
    def of(cls, recipe: Recipe) -> "LossWeights":
        """Return the weights of a recipe."""
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
    """Return this rank's share of the loss.

    The loss is the binary cross-entropy at the decoder's resolution plus the weighted additional losses. Source: FCNet,
    Sec. 3.4, names the cross-entropy. The code of CRIS computes it at a quarter of the input's size with soft edges.
    CRIS warps the mask with interpolation and samples every fourth pixel. Here, the value of a target pixel is the
    object's share of the area of that pixel. The Dice loss follows Milletari et al. 2016, V-Net, Sec. 3, but with sums
    instead of squares, and with 1 added to both terms. It is not in the FCNet paper. It helps if training starts from
    random weights. Small objects cover about 3 % of the pixels, so that cross-entropy alone first predicts background
    everywhere.

    DistributedDataParallel averages the gradients over the ranks. A rank therefore returns the sum of its losses times
    `num_processes` / N, where N is the number of samples on all ranks. The mean over the ranks is then the mean over
    the N samples, even if the ranks have different numbers of samples. For example, two ranks hold 3 and 1 of N = 4
    samples, all with loss 1. They return 3 * 2 / 4 = 1.5 and 1 * 2 / 4 = 0.5, whose mean is 1.

    Args:
        output: Output of the model. The height h and width w of the mask logits must divide H and W.
        masks: Targets at the network's input size, 1 on the object, else 0.
        weights: Weights of the additional losses.
        is_pad: True for repeated samples that fill the last batch. They do not contribute to the loss.
        num_global: N, the number of samples in the global batch without padding.
        num_processes: Number of ranks over which the gradients are averaged.
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
    # `where` is used instead of a product, because an infinite loss of a padding sample times zero would be NaN.
    total = torch.where(is_pad, 0.0, per_sample).sum()
    return total * (num_processes / num_global)


def location_target(
    masks: UInt8[Tensor, "B H W"], grid: tuple[int, int], kind: LocationTarget
) -> Float[Tensor, "B h w"]:
    """Return the targets of the position prior on a coarse grid, 0 to 1. They are 0 for an empty mask.

    Source: these definitions are not from a paper, because no source states which target LTS uses. `area` is the
    object's share of each cell. `ellipse` is 1 in cells whose centre lies in the ellipse inscribed in the mask's box.
    `gaussian` is 1 at the centre of the box, and its standard deviation is a quarter of the box's side.

    Args:
        masks: Masks, 1 on the object, else 0.
        grid: `(h, w)` of the targets. h must divide H, and w must divide W.
        kind: Kind of the target.
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
    """Return each cell centre's squared distance from the middle of the occupied range.

    The unit of distance is half the length of the range. In this example, pixels 2 to 5 of N = 8 are occupied, so that
    the range is 2 to 6 with middle 4 and half length 2. The centres of 4 cells are 1, 3, 5 and 7. Their squared
    distances are 2.25, 0.25, 0.25 and 2.25.
    """
    size = occupied.shape[1]
    first = occupied.int().argmax(1)
    end = size - occupied.flip(1).int().argmax(1)
    middle, half = (first + end) / 2, (end - first) / 2
    centres = (torch.arange(cells, device=occupied.device) + 0.5) * (size / cells)
    return ((centres - middle[:, None]) / half[:, None]) ** 2
