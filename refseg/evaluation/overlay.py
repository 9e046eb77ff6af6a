"""Draws masks over a picture as outlines, so that the object stays visible. Defines the colours of masks."""

import numpy as np
from jaxtyping import Bool, UInt8
from numpy.typing import NDArray
from PIL import Image, ImageFilter

TARGET = (255, 214, 10)
PREDICTION = (0, 224, 255)
GAIN = (77, 178, 255)
LOSS = (255, 159, 28)
"""RGB of what pages draw over pictures; `look.css` has the same. Target and prediction, and gain and loss, differ for
readers who lack one kind of cone, too."""
_EDGE = (20, 20, 20)


def draw_overlay(picture: UInt8[np.ndarray, "H W 3"], predicted: Bool[np.ndarray, "H W"]) -> UInt8[np.ndarray, "H W 3"]:
    """Outline a mask in cyan, with a dark edge that is visible on bright pictures. Other pixels do not change.

    Args:
        picture: RGB.
        predicted: The mask. The cyan outline is drawn inside the border of the mask, and the dark edge outside.
    """
    drawn = picture.copy()
    width = max(1, round(max(picture.shape[:2]) / 240))
    around = np.asarray(Image.fromarray(predicted).convert("L").filter(ImageFilter.MaxFilter(2 * width + 1))) > 0
    drawn[around & ~predicted] = _EDGE
    drawn[_border(predicted, 3 * width)] = _EDGE
    drawn[_border(predicted, 2 * width)] = PREDICTION
    return drawn


def _border(mask: Bool[np.ndarray, "H W"], width: int) -> NDArray[np.bool_]:
    """Return the mask's pixels within `width` pixels of a pixel outside it. The picture's edge counts as outside."""
    padded = Image.fromarray(np.pad(mask, width))
    eroded = padded.convert("L").filter(ImageFilter.MinFilter(2 * width + 1))
    inner: NDArray[np.bool_] = np.asarray(eroded)[width:-width, width:-width] > 0
    return mask & ~inner
