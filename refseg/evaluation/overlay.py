"""Draws masks over a picture: the prediction as a fill, the target as an outline."""

import numpy as np
from jaxtyping import Bool, UInt8
from numpy.typing import NDArray
from PIL import Image, ImageFilter

FILL = (0, 224, 255)
"""RGB colour of the prediction; people who do not see red and green can distinguish it from `OUTLINE`."""
OUTLINE = (255, 214, 10)
"""RGB colour of the target's outline, which has a dark edge so that it is visible on bright pictures."""
_EDGE = (20, 20, 20)


def draw_overlay(
    picture: UInt8[np.ndarray, "H W 3"],
    predicted: Bool[np.ndarray, "H W"],
    target: Bool[np.ndarray, "H W"] | None = None,
) -> UInt8[np.ndarray, "H W 3"]:
    """Draw a prediction and, if given, its target.

    Args:
        picture: RGB image.
        predicted: Predicted mask, filled with half-transparent cyan; pixels outside it are not changed.
        target: Target mask, outlined in yellow along the inside of its border.
    """
    drawn = picture.copy()
    drawn[predicted] = (0.45 * picture[predicted] + 0.55 * np.array(FILL)).astype(np.uint8)
    width = max(1, round(max(picture.shape[:2]) / 320))
    drawn[_border(predicted, width)] = FILL
    if target is not None:
        drawn[_border(target, 3 * width)] = _EDGE
        drawn[_border(target, 2 * width)] = OUTLINE
    return drawn


def _border(mask: Bool[np.ndarray, "H W"], width: int) -> NDArray[np.bool_]:
    """Return the pixels of a mask within `width` pixels of its outside; the picture's edge counts as outside."""
    padded = Image.fromarray(np.pad(mask, width))
    eroded = padded.convert("L").filter(ImageFilter.MinFilter(2 * width + 1))
    inner: NDArray[np.bool_] = np.asarray(eroded)[width:-width, width:-width] > 0
    return mask & ~inner
