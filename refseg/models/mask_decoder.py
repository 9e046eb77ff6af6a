"""The mask decoder: pixel features attend to tokens, then become mask logits at a quarter of the input's size."""

from typing import cast

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from refseg.model_config import ModelConfig
from refseg.models.attention import MultiHeadAttention
from refseg.models.neck import ConvNormReLU, upsample


def sine_code_1d(length: int, dim: int) -> Float[Tensor, "n C"]:
    """Sine and cosine of integer positions, interleaved, base 10000 (Vaswani et al. 2017, Sec. 3.5)."""
    rate = torch.exp(torch.arange(0, dim, 2) * (-torch.log(torch.tensor(10000.0)) / dim))
    angle = torch.arange(length)[:, None] * rate
    return torch.stack([angle.sin(), angle.cos()], dim=2).flatten(1)


def sine_code_2d(grid: tuple[int, int], dim: int) -> Float[Tensor, "n C"]:
    """Sine codes of `(h, w)` positions in row order: the first half of the channels from x, the second from y."""
    h, w = grid
    x = sine_code_1d(w, dim // 2)[None].expand(h, -1, -1)
    y = sine_code_1d(h, dim // 2)[:, None].expand(-1, w, -1)
    return torch.cat([x, y], dim=2).flatten(0, 1)


class SineCodes(nn.Module):
    """The codes of a model's native grid and of its first tokens, computed once and moved with the model.

    CRIS's code makes them on the CPU in each step. Another grid, or more tokens, are computed where they are needed.
    """

    pixel_code: Tensor
    token_code: Tensor

    def __init__(self, *, grid: tuple[int, int], dim: int, num_tokens: int = 77) -> None:
        """Compute.

        Args:
            grid: `(h, w)` that most inputs have.
            dim: C, a multiple of 4.
            num_tokens: Codes of tokens kept.
        """
        super().__init__()
        self.grid, self.dim = grid, dim
        self.register_buffer("pixel_code", sine_code_2d(grid, dim), persistent=False)
        self.register_buffer("token_code", sine_code_1d(num_tokens, dim), persistent=False)

    def of_pixels(self, grid: tuple[int, int], like: Tensor) -> Float[Tensor, "n C"]:
        """Codes of `(h, w)` positions in row order, of the device and type of `like`."""
        return (self.pixel_code if grid == self.grid else sine_code_2d(grid, self.dim)).to(like)

    def of_tokens(self, tokens: Float[Tensor, "B n C"]) -> Float[Tensor, "n C"]:
        """Codes of as many tokens, of their device and type."""
        length = tokens.shape[1]
        kept = length <= self.token_code.shape[0]
        return (self.token_code[:length] if kept else sine_code_1d(length, self.dim)).to(tokens)


class DecoderLayer(nn.Module):
    """Pixels attend to each other, then to tokens, then an MLP: pre-norm, position codes on queries and keys.

    Source: FCNet Sec. 3.4, Eq. (5). CRIS's code has three more LayerNorms, on each branch's output or inside the
    MLP (`extra_norms`); the paper does not draw them, its counts need the layer, not them.
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
        """Self-attention with its residual: needs no language."""
        x = self.self_norm(pixels)
        located = x + pixel_code
        return pixels + self.dropout(self.self_out_norm(self.self_attention(located, located, x)))

    def attend_to_tokens(
        self,
        pixels: Float[Tensor, "B n C"],
        pixel_code: Float[Tensor, "n C"],
        tokens: Float[Tensor, "B K C"],
        token_code: Float[Tensor, "K C"],
        token_mask: Bool[Tensor, "B K"] | None,
    ) -> Float[Tensor, "B n C"]:
        """Cross-attention and MLP with their residuals; the tokens are used as they come, never normalised."""
        attended = self.cross_attention(self.cross_norm(pixels) + pixel_code, tokens + token_code, tokens, token_mask)
        pixels = pixels + self.dropout(self.cross_out_norm(attended))
        return pixels + self.dropout(self.mlp(self.mlp_norm(pixels)))


class WordDecoder(nn.Module):
    """Decoder layers whose memory is the words: FCNet's layers, with CRIS's memory.

    Source: CRIS's vision-language decoder (Wang et al. 2022), by its code (`TransformerDecoder`): sine codes of a
    pixel's place on queries and of a word's place on keys, never on values; the words as the text encoder gives them;
    padding gets no attention.
    """

    def __init__(self, *, layers: list[DecoderLayer], codes: SineCodes, has_final_norm: bool) -> None:
        """Build.

        Args:
            layers: At least one.
            codes: Position codes of pixels and words, each C wide.
            has_final_norm: End with a LayerNorm, as CRIS does.
        """
        super().__init__()
        self.codes = codes
        self.layers = nn.ModuleList(layers)
        self.final_norm = nn.LayerNorm(codes.dim) if has_final_norm else nn.Identity()

    def forward(
        self, x: Float[Tensor, "B C h w"], words: Float[Tensor, "B L C"], token_mask: Bool[Tensor, "B L"]
    ) -> Float[Tensor, "B C h w"]:
        """Let the pixels attend to each other and to the words."""
        pixels, _ = self._run(x, words, token_mask, with_attention=False)
        return self.final_norm(pixels).transpose(1, 2).unflatten(2, x.shape[2:])

    def word_attention(
        self, x: Float[Tensor, "B C h w"], words: Float[Tensor, "B L C"], token_mask: Bool[Tensor, "B L"]
    ) -> Float[Tensor, "B L"]:
        """How much attention each word gets, averaged over layers, heads and pixels: rows sum to 1, padding has 0."""
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
        """Pixels after the last layer, and the attention to each word by layer where `with_attention` is set."""
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
    """Pixel features at stride 16 to mask logits at stride 4: x2, 3x3 to C/2, x2, 3x3 to one.

    Source: FCNet Sec. 3.4 names one 3x3 convolution; the first is ours, fixed by the published counts.
    """

    def __init__(self, *, dim: int) -> None:
        super().__init__()
        self.refine = ConvNormReLU(dim, dim // 2, 3)
        self.predict = nn.Conv2d(dim // 2, 1, 3, padding=1)

    def forward(self, x: Float[Tensor, "B C h w"]) -> Float[Tensor, "B 1 4*h 4*w"]:
        """Grow and predict."""
        return self.predict(upsample(self.refine(upsample(x))))


class PlainMaskHead(nn.Module):
    """The paper's words alone: x4, then one 3x3 convolution. Fits the published counts beside four decoder layers.

    Source: FCNet Sec. 3.4.
    """

    def __init__(self, *, dim: int) -> None:
        super().__init__()
        self.predict = nn.Conv2d(dim, 1, 3, padding=1)

    def forward(self, x: Float[Tensor, "B C h w"]) -> Float[Tensor, "B 1 4*h 4*w"]:
        """Grow and predict."""
        return self.predict(F.interpolate(x, scale_factor=4, mode="bilinear", align_corners=False))


class SentenceFilter(nn.Module):
    """One response per position: conv(x, K(s)) + b(s), where K(s) and b(s) are one linear map of the sentence.

    Source: CRIS's code (`Projector.txt`, and its order of numbers: channels, rows, columns, then the bias); LTS's
    abstract and later papers name "relevance filtering" without a formula. CRIS runs it as one grouped convolution over
    all B * C channels; here each tap is a product with all positions, and the taps are added, shifted: the same sum.
    """

    def __init__(self, *, sentence_dim: int, dim: int, size: int) -> None:
        """Build.

        Args:
            sentence_dim: Width of the sentence feature.
            dim: C, channels of the features.
            size: Side of the filter, odd.
        """
        super().__init__()
        self.size = size
        self.generate = nn.Linear(sentence_dim, dim * size**2 + 1)

    def forward(self, x: Float[Tensor, "B C h w"], sentence: Float[Tensor, "B S"]) -> Float[Tensor, "B 1 h w"]:
        """Respond; beyond the edges there are zeros."""
        made = self.generate(sentence)
        taps = made[:, :-1].unflatten(1, (x.shape[1], -1)).transpose(1, 2)  # (B, size * size, C)
        h, w = x.shape[2:]
        responses = F.pad((taps @ x.flatten(2)).unflatten(2, (h, w)), [self.size // 2] * 4)
        shifted = [
            responses[:, row * self.size + column, row : row + h, column : column + w]
            for row in range(self.size)
            for column in range(self.size)
        ]
        return (torch.stack(shifted).sum(dim=0) + made[:, -1, None, None])[:, None]


def build_decoder_layers(config: ModelConfig) -> list[DecoderLayer]:
    """As many layers as the recipe says, with random weights."""
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
    """`(h, w)` of the features a decoder sees: a sixteenth of the input."""
    return input_size[0] // 16, input_size[1] // 16


def build_codes(config: ModelConfig, input_size: tuple[int, int]) -> SineCodes:
    """Position codes of the native grid."""
    return SineCodes(grid=feature_grid(input_size), dim=config.dim)
