"""The training loss, scaled so that the mean over the ranks is the mean over all samples."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor
from torch.nn import functional as F

from refseg.config import Recipe
from refseg.models.model import ModelOutput
from refseg.training.location_target import LocationTarget, location_target


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


def _cross_entropy(logits: Float[Tensor, "B 1 h w"], targets: Float[Tensor, "B 1 h w"]) -> Float[Tensor, "B"]:
    return F.binary_cross_entropy_with_logits(logits, targets, reduction="none").mean(dim=(1, 2, 3))
