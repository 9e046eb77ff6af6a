"""Turns a model's mask logits into binary masks by the rules of a protocol."""

from typing import Any, runtime_checkable
from typing import Protocol as Interface

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from refseg.data.transforms import Geometry
from refseg.evaluation.protocols import Protocol


@runtime_checkable
class ReferringModel(Interface):
    """The interface that a model needs for evaluation: the three calls of `refseg.models`, and its normalisation.

    Attributes:
        training: True in training mode, as in `nn.Module`.
        image_mean: RGB mean that is subtracted from images with values from 0 to 1.
        image_std: RGB standard deviation by which images are then divided.
    """

    training: bool
    image_mean: tuple[float, float, float]
    image_std: tuple[float, float, float]

    def train(self, mode: bool = True) -> nn.Module:
        """Set training or evaluation mode, as `nn.Module.train` does."""

    def encode_image(self, images: Float[Tensor, "I 3 H W"]) -> Any:
        """Compute an image state from normalised images."""

    def encode_text(self, token_ids: Int64[Tensor, "B L"], token_mask: Bool[Tensor, "B L"]) -> Any:
        """Compute a text state from sentences."""

    def decode(self, image_state: Any, text_state: Any, image_index: Int64[Tensor, "B"]) -> Float[Tensor, "B 1 h w"]:
        """Compute mask logits from both states. `image_index` gives the image of each sentence."""


def compared_masks(
    mask_logits: Float[Tensor, "n 1 h w"], *, original_size: tuple[int, int], geometry: Geometry, protocol: Protocol
) -> Bool[Tensor, "n H W"]:
    """Return the binary masks of sentences of one image, at the size at which the protocol compares masks.

    Args:
        mask_logits: Mask logits of n sentences, at any fraction of the input's size.
        original_size: `(height, width)` of the image in pixels.
        geometry: Geometry by which the image was fitted into the network's input.
        protocol: Protocol that gives size, interpolation and threshold.
    """
    return _masks(mask_logits, protocol.compared_size(original_size), original_size, geometry, protocol)


def masks_at_original_size(
    mask_logits: Float[Tensor, "n 1 h w"], *, original_size: tuple[int, int], geometry: Geometry, protocol: Protocol
) -> Bool[Tensor, "n H W"]:
    """Return the binary masks of sentences of one image at the image's own size.

    This size is used even if the protocol compares masks at another size. `compared_masks` describes the arguments.
    """
    return _masks(mask_logits, original_size, original_size, geometry, protocol)


def _masks(
    mask_logits: Tensor, size: tuple[int, int], original_size: tuple[int, int], geometry: Geometry, protocol: Protocol
) -> Bool[Tensor, "n H W"]:
    values = mask_logits.float()
    if protocol.resized == "probabilities":
        values = values.sigmoid()
    values = F.interpolate(values, geometry.size, mode=protocol.interpolation, align_corners=protocol.align_corners)
    if protocol.interpolation == "bicubic":
        resized = _warp(values, geometry.placed(original_size), size)
    else:
        resized = geometry.invert(values[:, 0], original_size, size)
    masks: Bool[Tensor, "n H W"] = torch.gt(resized, protocol.threshold)
    return masks


def _warp(
    values: Float[Tensor, "n 1 H W"], placed: tuple[int, int, int, int], size: tuple[int, int]
) -> Float[Tensor, "n h w"]:
    """Sample the input at the positions of the picture's pixels.

    The interpolation is bicubic (a = -0.75) with zero padding. The result equals that of OpenCV's `warpAffine` with
    `INTER_CUBIC` and `borderValue=0`, except that OpenCV rounds positions to 1/32 pixel.
    """
    top, left, height, width = placed
    rows, columns = (
        ((torch.arange(number, device=values.device) + 0.5) * (length / number) + start) * (2 / whole) - 1
        for number, length, start, whole in zip(size, (height, width), (top, left), values.shape[-2:], strict=True)
    )
    positions = torch.stack(torch.meshgrid(rows, columns, indexing="ij")[::-1], dim=-1)  # (h, w, 2), x first
    grid = positions[None].expand(len(values), -1, -1, -1)
    return F.grid_sample(values, grid, mode="bicubic", padding_mode="zeros", align_corners=False)[:, 0]
