"""The training loss: pixelwise cross-entropy, scaled so that the mean over ranks is the mean over all samples."""

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
) -> Float[Tensor, ""]:
    """Binary cross-entropy at the decoder's resolution.

    Source: FCNet Sec. 3.5 names the loss; CRIS's code takes it at a quarter of the input and keeps soft edges.
    There the mask is warped softly and sampled at every fourth pixel; here a target pixel is the object's share
    of the pixels it stands for, which is what soft edges mean.

    DistributedDataParallel takes the mean of the gradients over the ranks. A rank that holds n of N samples
    therefore gives its sum times `num_processes` / N: the mean over ranks is then the mean over the N samples,
    however unevenly they are spread, and one process gets the same value as many.

    Args:
        mask_logits: Scores before the sigmoid; h and w divide H and W.
        masks: Targets at the network's size, 1 where the object is, else 0.
        is_pad: Repeats that fill the last batch; they add nothing.
        num_global: N, the samples of the whole global batch that are not padding.
        num_processes: Ranks the gradients are averaged over.

    Returns:
        The rank's share of the loss.
    """
    stride = (masks.shape[1] // mask_logits.shape[2], masks.shape[2] // mask_logits.shape[3])
    targets = F.avg_pool2d(masks[:, None].float(), stride)
    per_pixel = F.binary_cross_entropy_with_logits(mask_logits.float(), targets, reduction="none")
    per_sample = per_pixel.mean(dim=(1, 2, 3))
    # `where` and not a product: a pad's infinity times zero would be NaN.
    total = torch.where(is_pad, 0.0, per_sample).sum()
    return total * (num_processes / num_global)
