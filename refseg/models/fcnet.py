"""FCNet: vision guides the fusion, language guides the calibration.

Source: Yan et al. 2024, "Fuse & Calibrate: A bi-directional Vision-Language Guided Framework for Referring Image
Segmentation" (arXiv 2405.11205). No code was published; what the text leaves open follows CRIS's code or was fixed
by the published counts, and is named where it stands.
"""

from typing import cast

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from refseg.models.attention import MultiHeadAttention
from refseg.models.image_encoder import ImageEncoder
from refseg.models.mask_decoder import DecoderLayer, MaskHead, sine_code_1d, sine_code_2d
from refseg.models.model import ModelOutput, SegmentationModel
from refseg.models.neck import VisionNeck
from refseg.models.states import ImageState, TextState
from refseg.models.text_encoder import ClipTextEncoder


class EmphasisGeneration(nn.Module):
    """Key vision features ask the words: F_e = CrossAttn(F'_vk, F_t, F_t).

    Source: FCNet Sec. 3.2, Eq. (4). The K channels of the key map are the tokens, each a vector of all its
    positions, so that the attention map is K x L as the paper says. No residual and no norm: the paper names none.
    Heads are ours (8).
    """

    def __init__(self, *, num_positions: int, word_dim: int, dim: int, num_heads: int) -> None:
        """Build.

        Args:
            num_positions: m, positions of the native grid (900 at 480 px): ties the weights to it.
            word_dim: E, width of the word features.
            dim: C, width of the emphasis features.
            num_heads: Must divide `dim`.
        """
        super().__init__()
        self.attention = MultiHeadAttention(dim=dim, num_heads=num_heads, query_dim=num_positions, memory_dim=word_dim)

    def forward(
        self,
        key_maps: Float[Tensor, "B K m"],
        words: Float[Tensor, "B L E"],
        token_mask: Bool[Tensor, "B L"],
    ) -> Float[Tensor, "B K C"]:
        """Give the K emphasis features."""
        return self.attention(key_maps, words, words, token_mask)


class EmphasisCalibration(nn.Module):
    """The sentence weighs the emphasis features: f_c = f_e + alpha * f_e.

    Source: FCNet Sec. 3.3, Fig. 3. K copies of F_tg are joined to F_e along the channels (width 2C: only that
    needs copies, and it fits the counts); self-attention; one linear score alpha per token, without a sigmoid.
    The decoder must not normalise F_c: that would erase alpha up to its sign.
    """

    def __init__(self, *, dim: int, num_heads: int) -> None:
        super().__init__()
        self.attention = MultiHeadAttention(dim=2 * dim, num_heads=num_heads)
        self.score = nn.Linear(2 * dim, 1)

    def forward(self, emphasis: Float[Tensor, "B K C"], sentence: Float[Tensor, "B C"]) -> Float[Tensor, "B K C"]:
        """Calibrate the K emphasis features."""
        joined = torch.cat([emphasis, sentence[:, None].expand_as(emphasis)], dim=2)
        alpha = self.score(self.attention(joined, joined, joined))  # (B, K, 1)
        return emphasis + alpha * emphasis


class FCNet(SegmentationModel):
    """FCNet composed of its parts.

    The image's part never hears language, up to and including the first decoder layer's self-attention; so one
    `ImageState` serves all sentences of an image, with the same result as encoding it for each.
    """

    key_conv: nn.Conv2d | None
    global_projection: nn.Linear | None
    egm: EmphasisGeneration | None
    ecm: EmphasisCalibration | None

    def __init__(
        self,
        *,
        image_encoder: ImageEncoder,
        text_encoder: ClipTextEncoder,
        neck: VisionNeck,
        emphasis_generation: EmphasisGeneration | None,
        emphasis_calibration: EmphasisCalibration | None,
        layers: list[DecoderLayer],
        head: MaskHead,
        dim: int,
        num_key_channels: int,
        native_grid: tuple[int, int],
    ) -> None:
        """Compose.

        Args:
            image_encoder: Images to maps at strides 8, 16 and 32.
            text_encoder: Token ids to word and sentence features.
            neck: Maps to F_v, C wide, at stride 16.
            emphasis_generation: EGM; None for Table 2's row without it: the decoder then hears the words.
            emphasis_calibration: ECM; None for Table 2's row without it: F_c = F_e.
            layers: Decoder layers, at least one.
            head: Pixel features to mask logits.
            dim: C.
            num_key_channels: N_k, the emphasis features.
            native_grid: `(h, w)` the EGM's queries are made for; other grids are resized to it.
        """
        super().__init__()
        self.image_encoder = image_encoder
        self.text_encoder = text_encoder
        self.image_mean, self.image_std = image_encoder.image_mean, image_encoder.image_std
        self.neck = neck
        self.native_grid = native_grid
        self.egm = emphasis_generation
        self.ecm = emphasis_calibration
        # Parts that an ablation leaves without use are not built: they would get no gradient.
        self.key_conv = nn.Conv2d(dim, num_key_channels, 3, padding=1) if emphasis_generation else None
        self.global_projection = nn.Linear(text_encoder.output_dim, dim) if emphasis_calibration else None
        if emphasis_calibration is None:
            text_encoder.text_projection.requires_grad_(False)
        self.layers = nn.ModuleList(layers)
        self.final_norm = nn.LayerNorm(dim)
        self.head = head
        self.dim = dim

    def encode_image(self, images: Float[Tensor, "I 3 H W"]) -> ImageState:
        """Encode normalised images whose sides are multiples of 32."""
        fused = self.neck(*self.image_encoder(images))
        grid = (fused.shape[2], fused.shape[3])
        if self.key_conv is not None:
            # Sec. 3.2 fixes the queries' length to the native grid; another input is resized to it here (ours).
            keys = self.key_conv(fused)
            if grid != self.native_grid:
                keys = F.interpolate(keys, size=self.native_grid, mode="bilinear", antialias=True, align_corners=False)
            keys = keys.flatten(2)
        else:
            keys = fused.new_zeros(len(fused), 0, 0)
        pixels = fused.flatten(2).transpose(1, 2)
        code = self._pixel_code(grid, pixels)
        return ImageState(pixels=self._decoder_layers[0].hear_pixels(pixels, code), key_maps=keys, grid=grid)

    def encode_text(self, token_ids: Int64[Tensor, "B L"], token_mask: Bool[Tensor, "B L"]) -> TextState:
        """Encode sentences; columns that are padding for the whole batch may be cut without any change."""
        words, sentence = self.text_encoder(token_ids, token_mask)
        if self.global_projection is not None:
            sentence = self.global_projection(sentence)
        return TextState(words=words, sentence=sentence, token_mask=token_mask)

    def decode_all(
        self, image_state: ImageState, text_state: TextState, image_index: Int64[Tensor, "B"]
    ) -> ModelOutput:
        """Segment; arguments as in `SegmentationModel`."""
        pixels = image_state.pixels[image_index]
        if self.egm is None:
            tokens, mask = text_state.words, text_state.token_mask
        else:
            tokens, mask = (
                self.egm(image_state.key_maps[image_index], text_state.words, text_state.token_mask),
                None,
            )
            if self.ecm is not None:
                tokens = self.ecm(tokens, text_state.sentence)
        pixel_code = self._pixel_code(image_state.grid, pixels)
        token_code = sine_code_1d(tokens.shape[1], self.dim).to(tokens)
        for number, layer in enumerate(self._decoder_layers):
            if number > 0:  # the first layer's self-attention is the image's part
                pixels = layer.hear_pixels(pixels, pixel_code)
            pixels = layer.hear_tokens(pixels, pixel_code, tokens, token_code, mask)
        x = self.final_norm(pixels).transpose(1, 2).unflatten(2, image_state.grid)
        return ModelOutput(self.head(x))

    @property
    def _decoder_layers(self) -> list[DecoderLayer]:
        return cast("list[DecoderLayer]", list(self.layers))

    def _pixel_code(self, grid: tuple[int, int], like: Tensor) -> Float[Tensor, "n C"]:
        return sine_code_2d(grid, self.dim).to(like)
