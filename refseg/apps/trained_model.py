"""A trained model as an object. It segments what texts name in a picture."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from refseg.addresses import local_path
from refseg.apps.predict import Prediction, segment
from refseg.errors import ImageError
from refseg.training.checkpoint import Checkpoint

Picture: TypeAlias = Path | str | Image.Image | np.ndarray | Tensor
"""A file that Pillow reads, a Pillow image, or RGB from 0 to 255: a uint8 array `(H, W, 3)`, or a uint8 tensor
`(3, H, W)` such as that of a sample."""


class TrainedModel:
    """The model that `refseg.load_model` returns.

    Attributes:
        checkpoint: The network in evaluation mode (`checkpoint.model`), its settings (`checkpoint.recipe`), and the
            record of its training (`checkpoint.state`).
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        """Keep a checkpoint.

        Args:
            checkpoint: A loaded checkpoint, on the device on which the model runs.
        """
        self.checkpoint = checkpoint

    def segment(
        self, image: Picture, texts: str | Iterable[str], *, probabilities: bool = False, explain: bool = False
    ) -> Prediction:
        """Segment what each text names in an image. The image is encoded once.

        Args:
            image: A picture in one of the forms of `Picture`.
            texts: One phrase or several phrases. Each phrase gets its own mask.
            probabilities: Also keep the probability of each pixel, 4 bytes per pixel and text.
            explain: True to also return what the model attended to.

        Returns:
            Masks at the picture's own size, with boxes, shares and overlays, in the order of the texts.

        Raises:
            UsageError: If there is no text, or one is empty or not a string.
            ImageError: If the image cannot be read, is not a picture, or its pixels are of another shape or type.
        """
        several = isinstance(texts, Iterable) and not isinstance(texts, str | bytes | Mapping)
        chosen: list[str] = list(texts) if several else [texts]  # type: ignore[list-item]  # `segment` checks each
        return segment(self.checkpoint, _opened(image), chosen, probabilities=probabilities, explain=explain)

    def __repr__(self) -> str:
        state, folder = self.checkpoint.state, self.checkpoint.folder
        return f"<TrainedModel {state.recipe.model.name} of {state.lineage.dataset}, step {state.step}: {folder}>"


def _opened(image: Picture) -> Path | Image.Image:
    """Convert a picture to a form that `segment` accepts."""
    if isinstance(image, str):
        return local_path(image)
    if isinstance(image, Tensor | np.ndarray) and 0 in image.shape:
        raise ImageError(f"image: found shape {tuple(image.shape)}, which has no pixel; expected at least one")
    if isinstance(image, Tensor) and image.ndim == 3 and image.shape[0] == 3 and image.dtype == torch.uint8:
        return Image.fromarray(image.permute(1, 2, 0).contiguous().cpu().numpy())
    if isinstance(image, np.ndarray) and image.ndim == 3 and image.shape[2] == 3 and image.dtype == np.uint8:
        return Image.fromarray(np.ascontiguousarray(image))
    if isinstance(image, Tensor | np.ndarray):
        raise ImageError(
            f"image: found {type(image).__name__} of shape {tuple(image.shape)} and type {image.dtype}, expected a "
            "uint8 array (H, W, 3) or a uint8 tensor (3, H, W), RGB from 0 to 255"
        )
    if not isinstance(image, Path | Image.Image):
        raise ImageError(
            f"image: found {type(image).__name__}, expected a path, a picture of Pillow's, or pixels as an array or a "
            "tensor"
        )
    return image
