"""Defines a batch, which consists of a few flat tensors. Expressions of the same image share one copy of it."""

from typing import NamedTuple

from jaxtyping import Bool, Int64, UInt8
from torch import Tensor


class Batch(NamedTuple):
    """The input of one training or evaluation step. It has I images and B expressions, with I <= B.

    Images and masks are uint8. `transforms.normalise` converts images to floats on the device. `image_index` is the
    identity if each expression has its own copy of the picture (k = 1).
    """

    images: UInt8[Tensor, "I 3 H W"]
    """RGB, 0 to 255, resized by the geometry, padded with the mean colour."""
    image_index: Int64[Tensor, "B"]
    """The image of each expression, 0 to I - 1."""
    masks: UInt8[Tensor, "B H W"]
    """Targets at the network's size: 1 is object, 0 is not."""
    token_ids: Int64[Tensor, "B L"]
    """CLIP BPE ids: SOS, words, EOS (kept when truncated), then zeros."""
    token_mask: Bool[Tensor, "B L"]
    """True from SOS to EOS. The ids alone cannot tell padding, because id 0 is also a word ('!')."""
    row_index: Int64[Tensor, "B"]
    """Row of the ref in the loader's index, which gives the ids, original size and original mask."""
    sentence_index: Int64[Tensor, "B"]
    """Position of the sentence within its ref."""
    is_pad: Bool[Tensor, "B"]
    """True for repeats that only fill the last batch and count neither in the loss nor in a score."""
    num_global: Int64[Tensor, ""]
    """Number of expressions in the global batch, over all ranks and without padding: the denominator of the loss."""
