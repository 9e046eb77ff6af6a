"""The training loss, scaled so that the mean over the ranks is the mean over all samples."""

import torch
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor
from torch.nn import functional as F


def mask_loss(
    mask_logits: Float[Tensor, "B 1 h w"],
    masks: UInt8[Tensor, "B H W"],
    *,
    is_pad: Bool[Tensor, "B"],
    num_global: Int64[Tensor, ""],
    num_processes: int,
    dice_weight: float = 0.0,
) -> Float[Tensor, ""]:
    """Binary cross-entropy at the decoder's resolution, plus `dice_weight` times the Dice loss.

    Source: FCNet Sec. 3.5 names the loss; CRIS's code takes it at a quarter of the input and keeps soft edges.
    There the mask is warped softly and sampled at every fourth pixel; here a target pixel is the object's share
    of the pixels it stands for, which is what soft edges mean. The Dice loss (Milletari et al. 2016, V-Net, Sec. 3;
    sums instead of squares, 1 added to both terms) is not in the paper: from random weights cross-entropy alone
    first calls everything background, as small objects are 3 % of the pixels.

    DistributedDataParallel takes the mean of the gradients over the ranks. A rank that holds n of N samples
    therefore gives its sum times `num_processes` / N: the mean over ranks is then the mean over the N samples,
    however unevenly they are spread, and one process gets the same value as many.

    Args:
        mask_logits: Scores before the sigmoid; h and w divide H and W.
        masks: Targets at the network's size, 1 where the object is, else 0.
        is_pad: Repeats that fill the last batch; they add nothing.
        num_global: N, the samples of the whole global batch that are not padding.
        num_processes: Ranks the gradients are averaged over.
        dice_weight: 0 is the paper's loss.

    Returns:
        The rank's share of the loss.
    """
    stride = (masks.shape[1] // mask_logits.shape[2], masks.shape[2] // mask_logits.shape[3])
    targets = F.avg_pool2d(masks[:, None].float(), stride)
    per_pixel = F.binary_cross_entropy_with_logits(mask_logits.float(), targets, reduction="none")
    per_sample = per_pixel.mean(dim=(1, 2, 3))
    if dice_weight > 0:
        scores = mask_logits.float().sigmoid()
        overlap, areas = (scores * targets).sum(dim=(1, 2, 3)), (scores + targets).sum(dim=(1, 2, 3))
        per_sample = per_sample + dice_weight * (1 - (2 * overlap + 1) / (areas + 1))
    # `where` and not a product: a pad's infinity times zero would be NaN.
    total = torch.where(is_pad, 0.0, per_sample).sum()
    return total * (num_processes / num_global)
