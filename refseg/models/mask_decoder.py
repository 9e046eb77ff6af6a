"""The mask decoder. Pixel features attend to tokens, and a head computes logits at a quarter of the input's size."""

from typing import cast

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from refseg.model_config import ModelConfig
from refseg.models.attention import MultiHeadAttention
from refseg.models.neck import ConvNormReLU, upsample


def sine_code_1d(length: int, dim: int) -> Float[Tensor, "n C"]:
    """Return interleaved sines and cosines of the positions 0 to `length - 1`, C = `dim` wide.

    Source: Vaswani et al. 2017, "Attention Is All You Need", Sec. 3.5, with base 10000.
    """
    rate = torch.exp(torch.arange(0, dim, 2) * (-torch.log(torch.tensor(10000.0)) / dim))
    angle = torch.arange(length)[:, None] * rate
    return torch.stack([angle.sin(), angle.cos()], dim=2).flatten(1)


def sine_code_2d(grid: tuple[int, int], dim: int) -> Float[Tensor, "n C"]:
    """Return sine codes of all positions of an `(h, w)` grid in row order.

    The first half of the `dim` channels encodes the column x, the second half the row y.
    """
    h, w = grid
    x = sine_code_1d(w, dim // 2)[None].expand(h, -1, -1)
    y = sine_code_1d(h, dim // 2)[:, None].expand(-1, w, -1)
    return torch.cat([x, y], dim=2).flatten(0, 1)


class SineCodes(nn.Module):
    """Keeps the sine codes of a model's native grid and of its first tokens as buffers.

    The codes are computed once and move with the model. CRIS's code computes them on the CPU in each step. The codes of
    another grid, or of more tokens, are computed on each call.
    """

    pixel_code: Tensor
    token_code: Tensor

    def __init__(self, *, grid: tuple[int, int], dim: int, num_tokens: int = 77) -> None:
        """Compute the codes to keep.

        Args:
            grid: Native grid `(h, w)`, which most inputs have.
            dim: C, width of the codes, a multiple of 4.
            num_tokens: Number of tokens whose codes are kept.
        """
        super().__init__()
        self.grid, self.dim = grid, dim
        self.register_buffer("pixel_code", sine_code_2d(grid, dim), persistent=False)
        self.register_buffer("token_code", sine_code_1d(num_tokens, dim), persistent=False)

    def of_pixels(self, grid: tuple[int, int], like: Tensor) -> Float[Tensor, "n C"]:
        """Return the codes of all positions of an `(h, w)` grid in row order, with the device and type of `like`."""
        return (self.pixel_code if grid == self.grid else sine_code_2d(grid, self.dim)).to(like)

    def of_tokens(self, tokens: Float[Tensor, "B n C"]) -> Float[Tensor, "n C"]:
        """Return the codes of n tokens, with the device and type of `tokens`."""
        length = tokens.shape[1]
        kept = length <= self.token_code.shape[0]
        return (self.token_code[:length] if kept else sine_code_1d(length, self.dim)).to(tokens)


class DecoderLayer(nn.Module):
    """A decoder layer. Pixels attend to each other, then to tokens, and pass through an MLP.

    Each branch begins with a norm, and position codes are added to queries and keys.

    Source: FCNet Sec. 3.4, Eq. (5). CRIS's code has three more LayerNorms (`extra_norms`): after each attention and
    inside the MLP. The paper does not show them, and its parameter counts, which fix the number of layers, do not
    decide the question.
    """

    def __init__(self, *, dim: int, num_heads: int, ffn_dim: int, dropout: float, extra_norms: bool) -> None:
        super().__init__()
        self.self_norm = nn.LayerNorm(dim)
        self.self_attention = MultiHeadAttention(dim=dim, num_heads=num_heads, dropout=dropout)
        self.self_out_norm = nn.LayerNorm(dim) if extra_norms else nn.Identity()
        self.cross_norm = nn.LayerNorm(dim)
        self.cross_attention = MultiHeadAttention(dim=dim, num_heads=num_heads, dropout=dropout)
        self.cross_out_norm = nn.LayerNorm(dim) if extra_norms else nn.Identity()
        self.mlp_norm = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(
            nn.Linear(dim, ffn_dim),
            nn.ReLU(inplace=True),
            nn.Dropout(dropout),
            nn.LayerNorm(ffn_dim) if extra_norms else nn.Identity(),
            nn.Linear(ffn_dim, dim),
        )
        self.dropout = nn.Dropout(dropout)

    def attend_to_pixels(
        self, pixels: Float[Tensor, "B n C"], pixel_code: Float[Tensor, "n C"]
    ) -> Float[Tensor, "B n C"]:
        """Apply self-attention with its residual. This step needs no language."""
        x = self.self_norm(pixels)
        with_positions = x + pixel_code
        return pixels + self.dropout(self.self_out_norm(self.self_attention(with_positions, with_positions, x)))

    def attend_to_tokens(
        self,
        pixels: Float[Tensor, "B n C"],
        pixel_code: Float[Tensor, "n C"],
        tokens: Float[Tensor, "B K C"],
        token_code: Float[Tensor, "K C"],
        token_mask: Bool[Tensor, "B K"] | None,
    ) -> Float[Tensor, "B n C"]:
        """Apply cross-attention and MLP with their residuals. The tokens are not normalised.

        Args:
            pixels: Pixel features.
            pixel_code: Position codes of the pixels.
            tokens: Tokens to attend to.
            token_code: Position codes of the tokens.
            token_mask: True where a token may be attended to. None means everywhere.
        """
        attended = self.cross_attention(self.cross_norm(pixels) + pixel_code, tokens + token_code, tokens, token_mask)
        pixels = pixels + self.dropout(self.cross_out_norm(attended))
        return pixels + self.dropout(self.mlp(self.mlp_norm(pixels)))


class WordDecoder(nn.Module):
    """A stack of decoder layers whose pixels attend to the words.

    Source: CRIS's vision-language decoder (Wang et al. 2022), after its code (`TransformerDecoder`). Sine codes of
    pixel positions are added to the queries and those of word positions to the keys, but not to the values. The word
    features are not projected, and padding gets no attention.
    """

    def __init__(self, *, layers: list[DecoderLayer], codes: SineCodes, has_final_norm: bool) -> None:
        """Compose the decoder from its layers.

        Args:
            layers: Decoder layers, at least one.
            codes: Position codes of pixels and words, each C wide.
            has_final_norm: True to apply a LayerNorm after the last layer, as CRIS does.
        """
        super().__init__()
        self.codes = codes
        self.layers = nn.ModuleList(layers)
        self.final_norm = nn.LayerNorm(codes.dim) if has_final_norm else nn.Identity()

    def forward(
        self, x: Float[Tensor, "B C h w"], words: Float[Tensor, "B L C"], token_mask: Bool[Tensor, "B L"]
    ) -> Float[Tensor, "B C h w"]:
        """Return the pixel features after they attended to each other and to the words in each layer."""
        pixels, _ = self._run(x, words, token_mask, with_attention=False)
        return self.final_norm(pixels).transpose(1, 2).unflatten(2, x.shape[2:])

    def word_attention(
        self, x: Float[Tensor, "B C h w"], words: Float[Tensor, "B L C"], token_mask: Bool[Tensor, "B L"]
    ) -> Float[Tensor, "B L"]:
        """Return the attention to each word, averaged over layers, heads and pixels.

        Rows sum to 1, and padding has 0.
        """
        _, attended = self._run(x, words, token_mask, with_attention=True)
        return sum(attended[1:], attended[0]) / len(attended)

    def _run(
        self,
        x: Float[Tensor, "B C h w"],
        words: Float[Tensor, "B L C"],
        token_mask: Bool[Tensor, "B L"],
        *,
        with_attention: bool,
    ) -> tuple[Float[Tensor, "B n C"], list[Float[Tensor, "B L"]]]:
        """Return the pixel features after the last layer.

        If `with_attention` is True, also return each layer's attention to the words.
        """
        pixels = x.flatten(2).transpose(1, 2)
        pixel_code = self.codes.of_pixels((x.shape[2], x.shape[3]), x)
        word_code = self.codes.of_tokens(words)
        attended: list[Tensor] = []
        for layer in cast("list[DecoderLayer]", list(self.layers)):
            pixels = layer.attend_to_pixels(pixels, pixel_code)
            if with_attention:
                queries = layer.cross_norm(pixels) + pixel_code
                attended.append(layer.cross_attention.weights(queries, words + word_code, token_mask).mean(dim=(1, 2)))
            pixels = layer.attend_to_tokens(pixels, pixel_code, words, word_code, token_mask)
        return pixels, attended


class MaskHead(nn.Module):
    """Computes mask logits at stride 4 from pixel features at stride 16.

    The steps are: up-sampling by 2, a 3x3 convolution to C/2 channels, up-sampling by 2, a 3x3 convolution to one.

    Source: FCNet Sec. 3.4 names one 3x3 convolution. The other one is added here, because the published parameter
    counts require it.
    """

    def __init__(self, *, dim: int) -> None:
        super().__init__()
        self.refine = ConvNormReLU(dim, dim // 2, 3)
        self.predict = nn.Conv2d(dim // 2, 1, 3, padding=1)

    def forward(self, x: Float[Tensor, "B C h w"]) -> Float[Tensor, "B 1 4*h 4*w"]:
        """Return the mask logits."""
        return self.predict(upsample(self.refine(upsample(x))))


class PlainMaskHead(nn.Module):
    """Computes mask logits by up-sampling by 4 and one 3x3 convolution, which is all that the paper names.

    Source: FCNet Sec. 3.4. This head with four decoder layers fits the published parameter counts, too.
    """

    def __init__(self, *, dim: int) -> None:
        super().__init__()
        self.predict = nn.Conv2d(dim, 1, 3, padding=1)

    def forward(self, x: Float[Tensor, "B C h w"]) -> Float[Tensor, "B 1 4*h 4*w"]:
        """Return the mask logits."""
        return self.predict(F.interpolate(x, scale_factor=4, mode="bilinear", align_corners=False))


class SentenceFilter(nn.Module):
    """Filters features with a kernel generated from the sentence, conv(x, K(s)) + b(s).

    K(s) and b(s) are one linear map of the sentence feature s.

    Source: CRIS's code (`Projector.txt`), including the order of the map's outputs: channels, rows, columns, then the
    bias. LTS's abstract and later papers name "relevance filtering" without a formula. CRIS computes a grouped
    convolution over all B * C channels. Here each tap of the kernel is multiplied with all positions at once, and the
    results are shifted by the tap's offset and added, which gives the same sum.
    """

    def __init__(self, *, sentence_dim: int, dim: int, size: int) -> None:
        """Create the linear map that generates the kernel and the bias.

        Args:
            sentence_dim: Width of the sentence feature.
            dim: C, number of channels of the features.
            size: Side of the kernel, an odd number.
        """
        super().__init__()
        self.size = size
        self.generate = nn.Linear(sentence_dim, dim * size**2 + 1)

    def forward(self, x: Float[Tensor, "B C h w"], sentence: Float[Tensor, "B S"]) -> Float[Tensor, "B 1 h w"]:
        """Return the response of the filter at each position.

        The input features are padded with zeros at the border.
        """
        generated = self.generate(sentence)
        taps = generated[:, :-1].unflatten(1, (x.shape[1], -1)).transpose(1, 2)  # (B, size * size, C)
        h, w = x.shape[2:]
        responses = F.pad((taps @ x.flatten(2)).unflatten(2, (h, w)), [self.size // 2] * 4)
        shifted = [
            responses[:, row * self.size + column, row : row + h, column : column + w]
            for row in range(self.size)
            for column in range(self.size)
        ]
        return (torch.stack(shifted).sum(dim=0) + generated[:, -1, None, None])[:, None]


def build_decoder_layers(config: ModelConfig) -> list[DecoderLayer]:
    """Build the decoder layers of a recipe's `[model]` section, with random weights."""
    return [
        DecoderLayer(
            dim=config.dim,
            num_heads=config.num_heads,
            ffn_dim=config.ffn_dim,
            dropout=config.dropout,
            extra_norms=config.extra_norms,
        )
        for _ in range(config.num_decoder_layers)
    ]


def feature_grid(input_size: tuple[int, int]) -> tuple[int, int]:
    """Return `(h, w)` of the decoder's features, a sixteenth of the input's size."""
    return input_size[0] // 16, input_size[1] // 16


def build_codes(config: ModelConfig, input_size: tuple[int, int]) -> SineCodes:
    """Build the position codes of the native grid for a recipe's `[model]` section."""
    return SineCodes(grid=feature_grid(input_size), dim=config.dim)
