"""From a model's scores to binary masks, by a protocol's rules."""

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
    """What is asked of a model: the three calls of `refseg.models`, and its normalisation.

    Attributes:
        training: As in `nn.Module`.
        image_mean: RGB mean of its input, of a range of 0 to 1.
        image_std: RGB standard deviation.
    """

    training: bool
    image_mean: tuple[float, float, float]
    image_std: tuple[float, float, float]

    def train(self, mode: bool = True) -> nn.Module:
        """As in `nn.Module`."""

    def encode_image(self, images: Float[Tensor, "I 3 H W"]) -> Any:
        """Normalised images to an image state."""

    def encode_text(self, token_ids: Int64[Tensor, "B L"], token_mask: Bool[Tensor, "B L"]) -> Any:
        """Sentences to a text state."""

    def decode(self, image_state: Any, text_state: Any, image_index: Int64[Tensor, "B"]) -> Float[Tensor, "B 1 h w"]:
        """Both states to mask logits; `image_index` names the image of each sentence."""


def compared_masks(
    mask_logits: Float[Tensor, "n 1 h w"], *, original_size: tuple[int, int], geometry: Geometry, protocol: Protocol
) -> Bool[Tensor, "n H W"]:
    """Binary masks of sentences of one image, at the size at which the protocol compares them.

    Args:
        mask_logits: Of n sentences, at any fraction of the input's size.
        original_size: `(height, width)` of the image in pixels.
        geometry: How the image was brought to the network's input.
        protocol: Names size, interpolation and threshold.
    """
    return _masks(mask_logits, protocol.compared_size(original_size), original_size, geometry, protocol)


def masks_at_original_size(
    mask_logits: Float[Tensor, "n 1 h w"], *, original_size: tuple[int, int], geometry: Geometry, protocol: Protocol
) -> Bool[Tensor, "n H W"]:
    """Binary masks of sentences of one image, at the image's own size whatever the protocol compares.

    Arguments as of `compared_masks`.
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
    """Sample the input at the places where the picture's pixels came to lie, bicubically (a = -0.75), zeros around.

    What OpenCV's `warpAffine` does with `INTER_CUBIC` and `borderValue=0`, whose places are rounded to 1/32 pixel.
    """
    top, left, height, width = placed
    rows, columns = (
        ((torch.arange(number, device=values.device) + 0.5) * (length / number) + start) * (2 / whole) - 1
        for number, length, start, whole in zip(size, (height, width), (top, left), values.shape[-2:], strict=True)
    )
    places = torch.stack(torch.meshgrid(rows, columns, indexing="ij")[::-1], dim=-1)  # (h, w, 2), x first
    grid = places[None].expand(len(values), -1, -1, -1)
    return F.grid_sample(values, grid, mode="bicubic", padding_mode="zeros", align_corners=False)[:, 0]
