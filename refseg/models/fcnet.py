"""FCNet. The image guides the fusion of both modalities, and the sentence guides the calibration.

Source: Yan et al. 2024, "Fuse & Calibrate: A bi-directional Vision-Language Guided Framework for Referring Image
Segmentation" (arXiv 2405.11205). No code was published. Choices that the paper leaves open follow CRIS's code or the
published parameter counts; each is named in the docstring of its module.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, cast

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from refseg.errors import CheckpointError, RecipeError
from refseg.model_config import FCNetConfig
from refseg.models.attention import MultiHeadAttention
from refseg.models.image_encoder import ImageEncoder, build_image_encoder
from refseg.models.mask_decoder import (
    DecoderLayer,
    MaskHead,
    PlainMaskHead,
    SineCodes,
    build_codes,
    build_decoder_layers,
    feature_grid,
    sine_code_1d,
)
from refseg.models.model import Explanation, ModelOutput, SegmentationModel, TextState
from refseg.models.neck import ConvNormReLU, VisionNeck
from refseg.models.text_encoder import ClipTextEncoder, build_text_encoder, refuse_other_width


class EmphasisGeneration(nn.Module):
    """Emphasis generation (EGM), in which key vision features attend to the words: F_e = CrossAttn(F'_vk, F_t, F_t).

    Source: FCNet Sec. 3.2, Eq. (4). Each of the K channels of the key map is a token, whose vector holds the channel's
    values at all positions; so the attention map is K x L, as the paper says. There is no residual and no norm, because
    the paper names none. Two things are not from the paper. There are 8 heads, as in VLT's code; the paper's single map
    of K x L would also allow 1. And key maps of another grid are resized to the grid of the queries' weights.

    Attributes:
        grid: `(h, w)` of the queries' weights. State dicts also store the grid. A state dict with another grid is
            refused.
    """

    native_grid: Tensor

    def __init__(
        self, *, grid: tuple[int, int], word_dim: int, dim: int, num_heads: int, word_code: bool = False
    ) -> None:
        """Create the attention. The width of its queries is the number of grid positions.

        Args:
            grid: `(h, w)` of the key maps at the native size, 30 x 30 at 480 px: m = h * w.
            word_dim: E, width of the word features.
            dim: C, width of the emphasis features.
            num_heads: Number of attention heads, a divisor of `dim`.
            word_code: Add a sine code of the word's position to the keys, as CRIS's decoder does; Eq. (4) has none.
        """
        super().__init__()
        self.grid = grid
        self.register_buffer("native_grid", torch.tensor(grid))
        self.word_code = word_code
        self.attention = MultiHeadAttention(
            dim=dim, num_heads=num_heads, query_dim=grid[0] * grid[1], memory_dim=word_dim
        )

    def flatten(self, key_maps: Float[Tensor, "I K h w"]) -> Float[Tensor, "I K m"]:
        """Flatten key maps to tokens.

        Maps of another grid are first resized to the native grid, as an approximation.
        """
        if key_maps.shape[2:] != self.grid:
            key_maps = F.interpolate(key_maps, size=self.grid, mode="bilinear", antialias=True, align_corners=False)
        return key_maps.flatten(2)

    def forward(
        self, keys: Float[Tensor, "B K m"], words: Float[Tensor, "B L E"], token_mask: Bool[Tensor, "B L"]
    ) -> Float[Tensor, "B K C"]:
        """Return the K emphasis features of each sentence."""
        return self.attention(keys, self._with_positions(words), words, token_mask)

    def word_attention(
        self, keys: Float[Tensor, "B K m"], words: Float[Tensor, "B L E"], token_mask: Bool[Tensor, "B L"]
    ) -> Float[Tensor, "B K L"]:
        """Return the attention of each emphasis to each word, averaged over heads. Rows sum to 1, and padding has 0."""
        return self.attention.weights(keys, self._with_positions(words), token_mask).mean(dim=1)

    def _with_positions(self, words: Float[Tensor, "B L E"]) -> Float[Tensor, "B L E"]:
        return words + sine_code_1d(words.shape[1], words.shape[2]).to(words) if self.word_code else words

    def _load_from_state_dict(self, state_dict: Mapping[str, Tensor], prefix: str, *rest: Any) -> None:
        """Refuse weights of another grid and name both grids.

        A comparison of shapes is not sufficient, because grids of 40 x 30 and 30 x 40 have the same number of
        positions.

        Raises:
            CheckpointError: If the grids differ.
        """
        found = state_dict.get(f"{prefix}native_grid")
        if found is not None and tuple(found.tolist()) != self.grid:
            raise CheckpointError(
                f"{prefix}native_grid: found weights for key maps of {_grid_text(found.tolist())}, expected "
                f"{_grid_text(self.grid)}; build the model for the size the weights were trained at, or convert them "
                f"with refseg.models.fcnet.resize_native_grid(state, {self.grid})"
            )
        super()._load_from_state_dict(state_dict, prefix, *rest)


def _grid_text(grid: Sequence[int]) -> str:
    return f"{grid[0]} x {grid[1]} (input {16 * grid[0]} x {16 * grid[1]})"


def resize_native_grid(state: Mapping[str, Tensor], grid: tuple[int, int]) -> dict[str, Tensor]:
    """Convert weights to another input size by resizing each query kernel from the native grid to the new one.

    This is not from the paper. A query is a sum over the positions of the grid. Therefore each kernel is multiplied by
    the old number of positions and divided by the new one, so that both sums approximate the same integral. The result
    is an approximation from which training can start. To evaluate trained weights at another size, do not convert them.
    The model then resizes the key maps, which has a smaller error.

    Args:
        state: A model's state dict with any number of `EmphasisGeneration` modules.
        grid: The new `(h, w)`, a sixteenth of the input's size.

    Returns:
        A new state dict. All other tensors are unchanged.

    Raises:
        CheckpointError: If the state dict has no native grid.
    """
    resized = dict(state)
    prefixes = [name.removesuffix("native_grid") for name in state if name.endswith("native_grid")]
    if not prefixes:
        raise CheckpointError("the state dict has no native_grid, expected a model with emphasis generation")
    for prefix in prefixes:
        h, w = state[f"{prefix}native_grid"].tolist()
        kernels = state[f"{prefix}attention.query.weight"].unflatten(1, (1, h, w))
        kernels = F.interpolate(kernels, size=grid, mode="bilinear", antialias=True, align_corners=False)
        resized[f"{prefix}attention.query.weight"] = kernels.flatten(1) * (h * w / (grid[0] * grid[1]))
        resized[f"{prefix}native_grid"] = torch.tensor(grid)
    return resized


class EmphasisCalibration(nn.Module):
    """Emphasis calibration (ECM), in which the sentence weights the emphasis features: f_c = f_e + alpha * f_e.

    Source: FCNet Sec. 3.3, Fig. 3. K copies of F_tg are concatenated to F_e along the channels; the width of 2C is the
    one that fits the published counts. Self-attention follows, then one linear score alpha per token, without a
    sigmoid. If the copies were additional tokens instead, all emphases would attend to the same copies, and the module
    would have a quarter of the parameters. The decoder must not normalise F_c: a norm would remove all of alpha except
    its sign.
    """

    def __init__(
        self,
        *,
        dim: int,
        num_heads: int,
        concat: Literal["channel", "token"] = "channel",
        alpha: Literal["linear", "sigmoid"] = "linear",
    ) -> None:
        """Create the self-attention and the linear score.

        Args:
            dim: C, width of the emphasis features.
            num_heads: Number of attention heads, a divisor of the attention's width.
            concat: How the copies are joined. `channel` concatenates them to each emphasis (2C wide), and `token` adds
                them as K tokens.
            alpha: Range of alpha. `linear` is unbounded, and `sigmoid` is between 0 and 1 (as in VLT's balance module).
        """
        super().__init__()
        self.concat = concat
        self.has_sigmoid = alpha == "sigmoid"
        width = {"channel": 2 * dim, "token": dim}[concat]
        self.attention = MultiHeadAttention(dim=width, num_heads=num_heads)
        self.score = nn.Linear(width, 1)

    def alpha(self, emphasis: Float[Tensor, "B K C"], sentence: Float[Tensor, "B C"]) -> Float[Tensor, "B K"]:
        """Return the weight of each emphasis, which is unbounded if linear. 0 leaves the emphasis unchanged."""
        copies = sentence[:, None].expand_as(emphasis)
        if self.concat == "channel":
            queries = joined = torch.cat([emphasis, copies], dim=2)
        else:
            queries, joined = emphasis, torch.cat([emphasis, copies], dim=1)
        alpha = self.score(self.attention(queries, joined, joined))[:, :, 0]
        return alpha.sigmoid() if self.has_sigmoid else alpha

    def forward(self, emphasis: Float[Tensor, "B K C"], sentence: Float[Tensor, "B C"]) -> Float[Tensor, "B K C"]:
        """Return the K calibrated emphasis features."""
        return emphasis + self.alpha(emphasis, sentence)[:, :, None] * emphasis


class FCNetImageState(NamedTuple):
    """The part of FCNet's computation that needs only I images, with h = H / 16 and w = W / 16."""

    pixels: Float[Tensor, "I h w C"]
    """Pixel features after the decoder's first self-attention, the last step that needs no language."""
    key_maps: Float[Tensor, "I K m"]
    """Key vision features as K tokens of m = h * w values on the native grid; K = m = 0 without EGM."""


class FCNet(SegmentationModel):
    """The FCNet model.

    No step up to and including the first decoder layer's self-attention needs language. Therefore one `FCNetImageState`
    is computed for all sentences of an image. The result is the same as encoding the image again for each sentence.
    """

    key_conv: nn.Module | None
    global_projection: nn.Linear | None
    egm: EmphasisGeneration | None
    ecm: EmphasisCalibration | None

    def __init__(
        self,
        *,
        image_encoder: ImageEncoder,
        text_encoder: ClipTextEncoder,
        neck: VisionNeck,
        key_conv: nn.Module | None,
        emphasis_generation: EmphasisGeneration | None,
        global_projection: nn.Linear | None,
        emphasis_calibration: EmphasisCalibration | None,
        layers: list[DecoderLayer],
        head: nn.Module,
        codes: SineCodes,
    ) -> None:
        """Compose the model from its parts.

        Args:
            image_encoder: Computes maps at strides 8, 16 and 32 from images.
            text_encoder: Computes word and sentence features from token ids.
            neck: Fuses the maps into F_v with C channels at stride 16.
            key_conv: Convolution that computes the N_k key maps from F_v. None without EGM.
            emphasis_generation: The EGM. None for the ablation of Table 2 without EGM, where the decoder attends to the
                words.
            global_projection: Linear map from the sentence feature to F_tg, C wide. None if the sentence feature is
                used unchanged or not used.
            emphasis_calibration: The ECM. None for the ablation of Table 2 without ECM, where F_c = F_e.
            layers: Decoder layers, at least one.
            head: Computes mask logits at four times the size of the pixel features.
            codes: Position codes of pixels and tokens, C wide.
        """
        super().__init__()
        self.image_encoder = image_encoder
        self.text_encoder = text_encoder
        self.image_mean, self.image_std = image_encoder.image_mean, image_encoder.image_std
        self.neck = neck
        # Parts that an ablation does not use are not built, or are frozen, because they would get no gradient.
        self.egm = emphasis_generation
        self.ecm = emphasis_calibration
        self.key_conv = key_conv
        self.global_projection = global_projection
        if emphasis_calibration is None:
            text_encoder.text_projection.requires_grad_(False)
        self.layers = nn.ModuleList(layers)
        self.final_norm = nn.LayerNorm(codes.dim)
        self.head = head
        self.codes = codes

    def encode_image(self, images: Float[Tensor, "I 3 H W"]) -> FCNetImageState:
        """Encode normalised images whose sides are multiples of 32."""
        fused = self.neck(*self.image_encoder(images))
        grid = (fused.shape[2], fused.shape[3])
        if self.egm is not None and self.key_conv is not None:
            keys = self.egm.flatten(self.key_conv(fused))
        else:
            keys = fused.new_zeros(fused.shape[0], 0, 0)
        pixels = fused.flatten(2).transpose(1, 2)
        pixels = self._decoder_layers[0].attend_to_pixels(pixels, self.codes.of_pixels(grid, pixels))
        return FCNetImageState(pixels=pixels.unflatten(1, grid), key_maps=keys)

    def encode_text(self, token_ids: Int64[Tensor, "B L"], token_mask: Bool[Tensor, "B L"]) -> TextState:
        """Encode sentences. Removing columns that are padding in every row does not change the result."""
        state = super().encode_text(token_ids, token_mask)
        if self.global_projection is None:
            return state
        return state._replace(sentence=self.global_projection(state.sentence))

    def decode_pairs(self, image_state: FCNetImageState, text_state: TextState) -> ModelOutput:
        """Segment. `SegmentationModel` describes the arguments."""
        grid = (image_state.pixels.shape[1], image_state.pixels.shape[2])
        pixels = image_state.pixels.flatten(1, 2)
        if self.egm is None:
            tokens, mask = text_state.words, text_state.token_mask
        else:
            tokens, mask = self.egm(image_state.key_maps, text_state.words, text_state.token_mask), None
            if self.ecm is not None:
                tokens = self.ecm(tokens, text_state.sentence)
        pixel_code = self.codes.of_pixels(grid, pixels)
        token_code = self.codes.of_tokens(tokens)
        for number, layer in enumerate(self._decoder_layers):
            if number > 0:  # `encode_image` has already run the first layer's self-attention
                pixels = layer.attend_to_pixels(pixels, pixel_code)
            pixels = layer.attend_to_tokens(pixels, pixel_code, tokens, token_code, mask)
        x = self.final_norm(pixels).transpose(1, 2).unflatten(2, grid)
        return ModelOutput(self.head(x))

    def explain_pairs(self, image_state: FCNetImageState, text_state: TextState) -> Explanation:
        """Return the emphases' attention to the words, alpha and the key maps.

        A field is None if its module is missing.
        """
        if self.egm is None:
            return Explanation()
        arguments = (image_state.key_maps, text_state.words, text_state.token_mask)
        return Explanation(
            word_attention=self.egm.word_attention(*arguments),
            alpha=self.ecm.alpha(self.egm(*arguments), text_state.sentence) if self.ecm is not None else None,
            key_maps=image_state.key_maps.unflatten(2, self.egm.grid),
        )

    @property
    def _decoder_layers(self) -> list[DecoderLayer]:
        return cast("list[DecoderLayer]", list(self.layers))


def build_fcnet(config: FCNetConfig, *, input_size: tuple[int, int]) -> FCNet:
    """Build FCNet with random weights.

    Args:
        config: The recipe's `[model]` section.
        input_size: `(height, width)` in pixels for which the model is built, multiples of 32. FCNet's native grid is a
            sixteenth of it.

    Raises:
        RecipeError: If a feature of CLIP that is used without a projection is not as wide as the decoder.
    """
    image_encoder = build_image_encoder(config.image_encoder, input_size)
    text_encoder = build_text_encoder(config.image_encoder, config.dim)
    if not config.egm:
        refuse_other_width(text_encoder, config.dim, reader="without egm the decoder")
    keeps_sentence = config.sentence_projection == "clip"
    if keeps_sentence and text_encoder.output_dim != config.dim:
        raise RecipeError(
            f'model.sentence_projection: found "clip", whose feature is {text_encoder.output_dim} wide with '
            f'{config.image_encoder}; expected "linear", or model.dim = {text_encoder.output_dim}'
        )
    # The order in which the modules are created decides which random weights each one gets.
    return FCNet(
        image_encoder=image_encoder,
        text_encoder=text_encoder,
        neck=VisionNeck(in_dims=image_encoder.channels, dim=config.dim),
        emphasis_generation=EmphasisGeneration(
            grid=feature_grid(input_size),
            word_dim=text_encoder.width,
            dim=config.dim,
            num_heads=config.egm_heads or config.num_heads,
            word_code=config.egm_word_code == "sine",
        )
        if config.egm
        else None,
        emphasis_calibration=EmphasisCalibration(
            dim=config.dim, num_heads=config.num_heads, concat=config.ecm_concat, alpha=config.alpha
        )
        if config.ecm
        else None,
        layers=build_decoder_layers(config),
        head=MaskHead(dim=config.dim) if config.head == "slim" else PlainMaskHead(dim=config.dim),
        key_conv=_build_key_conv(config) if config.egm else None,
        global_projection=nn.Linear(text_encoder.output_dim, config.dim) if config.ecm and not keeps_sentence else None,
        codes=build_codes(config, input_size),
    )


def _build_key_conv(config: FCNetConfig) -> nn.Module:
    if config.key_conv == "norm_relu":
        return ConvNormReLU(config.dim, config.num_key_channels, 3)
    return nn.Conv2d(config.dim, config.num_key_channels, 3, padding=1)
