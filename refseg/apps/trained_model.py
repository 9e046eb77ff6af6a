"""A trained model as an object: any picture and any texts in, masks out."""

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
"""A file of any kind that Pillow reads, a picture of Pillow's, or RGB from 0 to 255: a uint8 array `(H, W, 3)`, or a
uint8 tensor `(3, H, W)` such as a sample's."""


class TrainedModel:
    """What `refseg.load_model` gives.

    Attributes:
        checkpoint: The network in evaluation mode (`checkpoint.model`), its settings (`checkpoint.recipe`), and what it
            was trained on (`checkpoint.state`).
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        """Wrap.

        Args:
            checkpoint: Loaded, on the device where it is to run.
        """
        self.checkpoint = checkpoint

    def segment(
        self, image: Picture, texts: str | Iterable[str], *, probabilities: bool = False, explain: bool = False
    ) -> Prediction:
        """Find what each text names in an image; the image is encoded once.

        Args:
            image: See `Picture`.
            texts: One phrase, or several, each looked for on its own.
            probabilities: Also keep the probability of each pixel, 4 bytes a pixel and text.
            explain: Also say what the model looked at.

        Returns:
            Masks at the picture's own size, with boxes, shares and overlays; in the order of the texts.

        Raises:
            UsageError: If there is no text, or one is empty or no text.
            ImageError: If the image cannot be read, is no picture, or its pixels are of another shape or type.
        """
        several = isinstance(texts, Iterable) and not isinstance(texts, str | bytes | Mapping)
        chosen: list[str] = list(texts) if several else [texts]  # type: ignore[list-item]  # `segment` looks at each
        return segment(self.checkpoint, _opened(image), chosen, probabilities=probabilities, explain=explain)

    def __repr__(self) -> str:
        state, folder = self.checkpoint.state, self.checkpoint.folder
        return f"<TrainedModel {state.recipe.model.name} of {state.lineage.dataset}, step {state.step}: {folder}>"


def _opened(image: Picture) -> Path | Image.Image:
    """As `segment` takes it."""
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
