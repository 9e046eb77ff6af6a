"""From a model's scores to a binary mask at the image's own size, by a protocol's rules."""

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


def masks_at_original_size(
    mask_logits: Float[Tensor, "n 1 h w"], *, original_size: tuple[int, int], geometry: Geometry, protocol: Protocol
) -> Bool[Tensor, "n H W"]:
    """Binary masks of sentences of one image.

    The probabilities, not the logits and not the binary mask, are resized: to the network's input and from there,
    without the border, to the image.

    Args:
        mask_logits: Of n sentences, at any fraction of the input's size.
        original_size: `(height, width)` of the image in pixels.
        geometry: How the image was brought to the network's input.
        protocol: Names threshold and comparison.
    """
    probabilities = F.interpolate(
        mask_logits.float().sigmoid(), geometry.size, mode=protocol.interpolation, align_corners=False
    )
    at_original_size: Float[Tensor, "n H W"] = geometry.invert(probabilities[:, 0], original_size)
    masks: Bool[Tensor, "n H W"] = torch.gt(at_original_size, protocol.threshold)
    return masks
