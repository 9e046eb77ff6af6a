"""Pixels that hear each other and the words of a sentence, layer after layer."""

from typing import cast

from jaxtyping import Bool, Float
from torch import Tensor, nn

from refseg.models.mask_decoder import DecoderLayer, SineCodes


class WordDecoder(nn.Module):
    """Decoder layers whose memory is the words: FCNet's layers, with CRIS's memory.

    Source: CRIS's vision-language decoder (Wang et al. 2022), by its code (`TransformerDecoder`): sine codes of a
    pixel's place on queries and of a word's place on keys, never on values; the words as the text encoder gives them;
    padding is not heard.
    """

    def __init__(self, *, layers: list[DecoderLayer], codes: SineCodes, has_final_norm: bool) -> None:
        """Build.

        Args:
            layers: At least one.
            codes: Of the places of pixels and words, C wide.
            has_final_norm: End with a LayerNorm, as CRIS does.
        """
        super().__init__()
        self.codes = codes
        self.layers = nn.ModuleList(layers)
        self.final_norm = nn.LayerNorm(codes.dim) if has_final_norm else nn.Identity()

    def forward(
        self, x: Float[Tensor, "B C h w"], words: Float[Tensor, "B L C"], token_mask: Bool[Tensor, "B L"]
    ) -> Float[Tensor, "B C h w"]:
        """Let the pixels hear."""
        pixels, _ = self._run(x, words, token_mask, is_watched=False)
        return self.final_norm(pixels).transpose(1, 2).unflatten(2, x.shape[2:])

    def word_attention(
        self, x: Float[Tensor, "B C h w"], words: Float[Tensor, "B L C"], token_mask: Bool[Tensor, "B L"]
    ) -> Float[Tensor, "B L"]:
        """How much each word was heard, averaged over layers, heads and pixels: rows sum to 1, padding has 0."""
        _, heard = self._run(x, words, token_mask, is_watched=True)
        return sum(heard[1:], heard[0]) / len(heard)

    def _run(
        self,
        x: Float[Tensor, "B C h w"],
        words: Float[Tensor, "B L C"],
        token_mask: Bool[Tensor, "B L"],
        *,
        is_watched: bool,
    ) -> tuple[Float[Tensor, "B n C"], list[Float[Tensor, "B L"]]]:
        """Pixels after the last layer, and what each layer heard where that is wanted."""
        pixels = x.flatten(2).transpose(1, 2)
        pixel_code = self.codes.of_pixels((x.shape[2], x.shape[3]), x)
        word_code = self.codes.of_tokens(words)
        heard: list[Tensor] = []
        for layer in cast("list[DecoderLayer]", list(self.layers)):
            pixels = layer.hear_pixels(pixels, pixel_code)
            if is_watched:
                asking = layer.cross_norm(pixels) + pixel_code
                heard.append(layer.cross_attention.weights(asking, words + word_code, token_mask).mean(dim=(1, 2)))
            pixels = layer.hear_tokens(pixels, pixel_code, words, word_code, token_mask)
        return pixels, heard
