"""What an encoder hands to the decoder: the image's part and the sentence's part, computed apart."""

from typing import NamedTuple

from jaxtyping import Bool, Float
from torch import Tensor


class ImageState(NamedTuple):
    """All that a model computes from I images alone; shared by every expression of an image.

    n is h * w with h = H / 16, w = W / 16.
    """

    pixels: Float[Tensor, "I n C"]
    """Pixel features after the decoder's first self-attention, the last step that hears no language."""
    key_maps: Float[Tensor, "I K m"]
    """FCNet's key vision features as K tokens of m = native h * w numbers."""
    grid: tuple[int, int]
    """`(h, w)` of the pixel features."""


class TextState(NamedTuple):
    """All that a model computes from B sentences alone."""

    words: Float[Tensor, "B L E"]
    """Features of SOS, words and EOS (F_t)."""
    sentence: Float[Tensor, "B C"]
    """Global feature of the sentence (F_tg)."""
    token_mask: Bool[Tensor, "B L"]
    """True from SOS to EOS."""
