"""A batch: few flat tensors, images stored once and shared by their expressions."""

from typing import NamedTuple

from jaxtyping import Bool, Int64, UInt8
from torch import Tensor


class Batch(NamedTuple):
    """What the loader hands to the model: I images, B expressions, I <= B.

    Images and masks stay uint8 until they are on the device: `normalise` in `transforms.py` makes floats there.
    `image_index` is the identity where each expression has its own copy of the picture (k = 1).
    """

    images: UInt8[Tensor, "I 3 H W"]
    """RGB, 0 to 255, resized by the geometry, padded with the mean colour."""
    image_index: Int64[Tensor, "B"]
    """Which image each expression speaks of, 0 to I - 1."""
    masks: UInt8[Tensor, "B H W"]
    """Targets at the network's size: 1 is object, 0 is not."""
    token_ids: Int64[Tensor, "B L"]
    """CLIP BPE ids: SOS, words, EOS (kept when cut), then zeros."""
    token_mask: Bool[Tensor, "B L"]
    """True from SOS to EOS. Id 0 is a word ('!'), so this and not the ids says what is padding."""
    row_index: Int64[Tensor, "B"]
    """Row of the ref in the loader's index: leads to ids, original size and original mask."""
    sentence_index: Int64[Tensor, "B"]
    """Position of the sentence within its ref."""
    is_pad: Bool[Tensor, "B"]
    """True for repeats that only fill the last batch: no loss, no score."""
    num_global: Int64[Tensor, ""]
    """Expressions that are not padding in the whole global batch, over all ranks: the loss's denominator."""
