"""Geometry between original pixels and the network's input, for images, masks and scores alike; normalisation.

Images are resized as Pillow's BILINEAR does (antialiased, uint8), masks as its NEAREST does: what the published
pipelines train with. There is no augmentation: "left" and "tall" must stay true.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
"""Of RGB from 0 to 1, as OpenAI's CLIP was trained."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Geometry:
    """How an original image fits the network's input, and how scores go back.

    Attributes:
        kind: `letterbox` keeps the aspect, centres, and fills the border with the mean colour (CRIS); `stretch` fills
            the input (LAVT).
        size: `(height, width)` of the network's input, in pixels.
        mean: Mean colour behind the border, RGB from 0 to 1: that of the normalisation, so that the border is zero.
    """

    kind: Literal["letterbox", "stretch"]
    size: tuple[int, int]
    mean: tuple[float, float, float] = CLIP_MEAN

    def placed(self, original_size: tuple[int, int]) -> tuple[int, int, int, int]:
        """Where the picture lies in the input: `(top, left, height, width)` in pixels.

        Args:
            original_size: `(height, width)` of the image in pixels.
        """
        if self.kind == "stretch":
            return (0, 0, *self.size)
        scale = min(self.size[0] / original_size[0], self.size[1] / original_size[1])
        # A picture of a pixel's height and a thousand's width still has a row in the input.
        height, width = (max(1, round(scale * side)) for side in original_size)
        return (self.size[0] - height) // 2, (self.size[1] - width) // 2, height, width

    def apply_image(self, image: UInt8[Tensor, "3 h w"]) -> UInt8[Tensor, "3 H W"]:
        """Resize an image. The result's memory is `(H, W, 3)`; fastest where the image's is `(h, w, 3)` too."""
        top, left, height, width = self.placed((image.shape[1], image.shape[2]))
        # The batch axis is put in front of (h, w, 3): behind a permuted (3, h, w) torch takes a path half as fast.
        channels_last = image.permute(1, 2, 0)[None].permute(0, 3, 1, 2)
        resized = F.interpolate(channels_last, (height, width), mode="bilinear", antialias=True)[0]
        if (height, width) == self.size:
            return resized
        border = torch.tensor([round(255 * channel) for channel in self.mean], dtype=torch.uint8)
        boxed = border.expand(*self.size, 3).clone(memory_format=torch.contiguous_format).permute(2, 0, 1)
        boxed[:, top : top + height, left : left + width] = resized
        return boxed

    def apply_mask(self, counts: NDArray[np.uint32], original_size: tuple[int, int]) -> UInt8[np.ndarray, "H W"]:
        """Draw a mask at the input's size straight from its run lengths; the border is 0.

        Args:
            counts: COCO's run lengths: column-major, zeros first.
            original_size: `(height, width)` of the mask in pixels.
        """
        top, left, height, width = self.placed(original_size)
        columns = np.repeat((np.arange(len(counts)) & 1).astype(np.uint8), counts).reshape(original_size[::-1])
        # Gathering whole lines of memory is far cheaper than picking from each, so: columns, transpose, rows.
        picked = np.ascontiguousarray(columns[_nearest(original_size[1], width)].T)
        boxed = np.zeros(self.size, np.uint8)
        boxed[top : top + height, left : left + width] = picked[_nearest(original_size[0], height)]
        return boxed

    def invert(self, scores: Float[Tensor, "N H W"], original_size: tuple[int, int]) -> Float[Tensor, "N h w"]:
        """Bring scores (logits or probabilities) from the input's size to the original's, bilinearly.

        Args:
            scores: At the input's size; the border is cut off.
            original_size: `(height, width)` of the image in pixels.
        """
        assert tuple(scores.shape[-2:]) == self.size, "scores are brought to the input's size first"
        top, left, height, width = self.placed(original_size)
        inside = scores[None, :, top : top + height, left : left + width]
        return F.interpolate(inside, original_size, mode="bilinear", align_corners=False)[0]


def normalise(
    images: UInt8[Tensor, "I 3 H W"], mean: tuple[float, float, float], std: tuple[float, float, float]
) -> Float[Tensor, "I 3 H W"]:
    """Turn 0 to 255 into float32 with the given mean and deviation (of 0 to 1), on the device the images are on."""
    # One multiply and one add, whose constants are folded in double precision.
    scale = torch.tensor([1 / (255 * s) for s in std], device=images.device)
    shift = torch.tensor([-m / s for m, s in zip(mean, std, strict=True)], device=images.device)
    return torch.addcmul(shift[:, None, None], images.float(), scale[:, None, None])


@lru_cache(maxsize=4096)
def _nearest(length: int, resized: int) -> NDArray[np.int32]:
    """Which of `length` pixels each of `resized` takes. Pillow itself is asked: at ties its rounding is no formula."""
    line = Image.fromarray(np.arange(length, dtype=np.int32)[None])
    return np.array(line.resize((resized, 1), Image.Resampling.NEAREST))[0]
