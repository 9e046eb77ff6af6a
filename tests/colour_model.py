"""A model without weights to learn: where a picture has the colour that a sentence names is known beforehand."""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from refseg import tokenizer
from refseg.models.model import Explanation, ModelOutput, SegmentationModel, TextState

COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}
_TOKENS = [tokenizer.encode(colour)[1] for colour in COLOURS]


class ColourMaps(NamedTuple):
    """How much of each cell of 4 x 4 pixels has each colour, shape (I, 3, H/4, W/4)."""

    shares: Tensor


class ColourModel(SegmentationModel):
    """Segments the colours that a sentence names; a sentence that names none has an empty mask.

    A pixel has a colour where that channel lies at least 0.3 of 1 above the mean of the three. Every step is a sum over
    the pixels or tokens of one image or sentence, so that neither kernels, threads nor batches change a mask. Attention
    is known as well: a token that names a colour has four times the share of any other.
    """

    image_mean = (0.0, 0.0, 0.0)
    image_std = (1.0, 1.0, 1.0)

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(40.0))
        self.num_encoded_images = 0
        self.num_decoded: list[int] = []

    def encode_image(self, images: Tensor) -> ColourMaps:
        assert not self.training
        self.num_encoded_images += len(images)
        coloured = images - images.mean(1, keepdim=True) > 0.3
        return ColourMaps(F.avg_pool2d(coloured.float(), 4))

    def encode_text(self, token_ids: Tensor, token_mask: Tensor) -> TextState:
        named = (token_ids[:, :, None] == torch.tensor(_TOKENS)) & token_mask[:, :, None]
        return TextState(words=named.float(), sentence=named.any(1).float(), token_mask=token_mask)

    def decode_pairs(self, image_state: ColourMaps, text_state: TextState) -> ModelOutput:
        self.num_decoded.append(len(text_state.words))
        share = (image_state.shares * text_state.sentence[:, :, None, None]).sum(1, keepdim=True)
        return ModelOutput(self.scale * (share - 0.5))

    def explain_pairs(self, image_state: ColourMaps, text_state: TextState) -> Explanation:
        weight = (1 + 3 * text_state.words.sum(2)) * text_state.token_mask
        attention = (weight / weight.sum(1, keepdim=True))[:, None].expand(-1, len(COLOURS), -1)
        return Explanation(word_attention=attention, key_maps=image_state.shares)
