"""CRFormer: language is fused into the encoder, queried anew after each decoder layer, and rebuilt at the end.

Source: Yan et al. 2024, "Calibration & Reconstruction: Deep Integrated Language for Referring Image Segmentation"
(arXiv 2404.08281). No code was published and only its abstract and figure captions could be had.

From the paper: a fusion module inside the image encoder; several language queries made from the image; a decoder that
makes new queries from each layer's output and the original words; a loss on the words rebuilt from the last queries.

Ours: every equation below, all widths and counts, the loss's form and weight. FCNet, by the same first authors, lends
neck, query generation, decoder layer and head. No score of the paper is claimed.
"""

from collections.abc import Sequence
from typing import NamedTuple, cast

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from refseg.errors import RecipeError
from refseg.model_config import CRFormerConfig
from refseg.models.attention import MultiHeadAttention
from refseg.models.fcnet import EmphasisGeneration
from refseg.models.image_encoder import ImageEncoder, build_image_encoder
from refseg.models.mask_decoder import (
    DecoderLayer,
    MaskHead,
    SineCodes,
    build_codes,
    build_decoder_layers,
    feature_grid,
)
from refseg.models.model import Explanation, ModelOutput, SegmentationModel, TextState
from refseg.models.neck import VisionNeck
from refseg.models.text_encoder import ClipTextEncoder, build_text_encoder


class CRFormerImageState(NamedTuple):
    """What CRFormer computes from I images alone; the encoder's later stages need language."""

    features: Float[Tensor, "I C h w"]
    """The encoder's map at stride 8, before any language; without fusion the neck's F_v at stride 16."""


class VisionLanguageFusion(nn.Module):
    """Adds to a map what its positions gather from the words: V + tanh(W_2 ReLU(W_1 f)) * f.

    With IN the instance norm over positions, without weights, and d the channels of V:

        a = softmax(IN(V W_q) (F_t W_k)^T / sqrt(d)) F_t W_v
        f = GELU(W_m (GELU(V W_p) * IN(a W_o)))

    Source: CRFormer (arXiv 2404.08281) Fig. 3 names the module; its equations could not be recovered. The form is
    that of LAVT (Yang et al. 2022, "LAVT: Language-Aware Vision Transformer for Referring Image Segmentation", its
    pixel-word attention and language gate) and of its code: one head, six projections with a bias and a gate
    without (the biases of W_q, W_k, W_v and W_o vanish in IN or softmax, there as here). Two things differ from
    LAVT: the decoder gets the gated map, not f, and W_2 starts at zero, so that a pretrained encoder starts as it
    is. W_2 still has a gradient then; with W_m at zero instead, gate and f would both stay 0.
    """

    def __init__(self, *, dim: int, word_dim: int) -> None:
        """Build; at first it changes nothing.

        Args:
            dim: d, channels of the map.
            word_dim: E, width of the word features.
        """
        super().__init__()
        self.query = nn.Linear(dim, dim)
        self.key = nn.Linear(word_dim, dim)
        self.value = nn.Linear(word_dim, dim)
        self.out = nn.Linear(dim, dim)
        self.pixel = nn.Linear(dim, dim)
        self.mix = nn.Linear(dim, dim)
        self.gate_in = nn.Linear(dim, dim, bias=False)
        self.gate_out = nn.Linear(dim, dim, bias=False)
        nn.init.zeros_(self.gate_out.weight)

    def forward(
        self,
        features: Float[Tensor, "B d h w"],
        words: Float[Tensor, "B L E"],
        token_mask: Bool[Tensor, "B L"],
    ) -> Float[Tensor, "B d h w"]:
        """Fuse; the map has at least two positions, every row of `token_mask` at least one True."""
        grid = (features.shape[2], features.shape[3])
        pixels = features.flatten(2).transpose(1, 2)  # (B, h*w, d)
        attended = F.scaled_dot_product_attention(  # of one head, which ONNX wants to see
            _normalise(self.query(pixels))[:, None],
            self.key(words)[:, None],
            self.value(words)[:, None],
            attn_mask=token_mask[:, None, None, :],
        )[:, 0]
        fused = F.gelu(self.mix(F.gelu(self.pixel(pixels)) * _normalise(self.out(attended))))
        gate = self.gate_out(F.relu(self.gate_in(fused))).tanh()
        return features + (gate * fused).transpose(1, 2).unflatten(2, grid)  # in the layout that `features` has


def _normalise(x: Float[Tensor, "B n d"]) -> Float[Tensor, "B n d"]:
    """Each channel of each sample to mean 0 and variance 1 over the positions."""
    return F.instance_norm(x.transpose(1, 2)).transpose(1, 2)


class QueryGeneration(nn.Module):
    """Language queries from vision features: Q = CrossAttn(Flatten(Conv(V)), F_t, F_t).

    Source: CRFormer's abstract and Fig. 4 name the module; this is FCNet's emphasis generation (its Sec. 3.2,
    Eq. (4)) with its key convolution: N_q channels are the tokens.
    """

    def __init__(self, *, key_conv: nn.Module, emphasis_generation: EmphasisGeneration) -> None:
        """Compose.

        Args:
            key_conv: V to N_q key maps.
            emphasis_generation: Makes queries of key maps, which attend to the words.
        """
        super().__init__()
        self.key_conv = key_conv
        self.egm = emphasis_generation

    def forward(self, features: Float[Tensor, "B C h w"], text: TextState) -> Float[Tensor, "B N C"]:
        """Give the queries."""
        return self.egm(self.egm.flatten(self.key_conv(features)), text.words, text.token_mask)

    def explain(self, features: Float[Tensor, "B C h w"], text: TextState) -> Explanation:
        """The key map of each query, and how much the query attends to each word."""
        keys = self.egm.flatten(self.key_conv(features))
        return Explanation(
            word_attention=self.egm.word_attention(keys, text.words, text.token_mask),
            key_maps=keys.unflatten(2, self.egm.grid),
        )


class QueryCalibration(nn.Module):
    """New queries after a decoder layer: Q_i = LN(Q_{i-1} + G_i(V_i, F_t)), or G_i(V_i, F_t) alone.

    Source: CRFormer's abstract and Fig. 5: each layer's output and the original language features make new
    queries, "which gradually updates the language features". The sum and its norm are ours.
    """

    def __init__(self, *, generation: QueryGeneration, dim: int, residual: bool) -> None:
        """Build.

        Args:
            generation: G_i, with weights of its own.
            dim: C.
            residual: Add to the queries before; else the new ones replace them, without a norm.
        """
        super().__init__()
        self.generation = generation
        self.norm = nn.LayerNorm(dim) if residual else None

    def forward(
        self, queries: Float[Tensor, "B N C"], features: Float[Tensor, "B C h w"], text: TextState
    ) -> Float[Tensor, "B N C"]:
        """Make Q_i of Q_{i-1} and V_i."""
        made = self.generation(features, text)
        return made if self.norm is None else self.norm(queries + made)


class LanguageReconstruction(nn.Module):
    """Rebuilds the word features from the last queries; the error says how much of the sentence they lost.

        R = CrossAttn(P_1..L, Q, Q);  F^ = MLP(LN(R))
        error = mean over the sentence's tokens of || F^ / |F^| - stopgrad(F_t / |F_t|) ||^2

    Source: CRFormer (arXiv 2404.08281), abstract: the last layer's queries reconstruct the input language.
    Learned positions P as queries, the MLP, unit lengths and the squared distance (0 to 4) are ours. So is
    stopping the gradient at F_t: else the text encoder could make all words alike, which is easy to rebuild.
    """

    def __init__(self, *, dim: int, word_dim: int, num_heads: int, ffn_dim: int, num_positions: int) -> None:
        """Build.

        Args:
            dim: C, width of the queries.
            word_dim: E, width of the word features.
            num_heads: Must divide `dim`.
            ffn_dim: Hidden width of the MLP.
            num_positions: Tokens of the longest sentence that can be rebuilt.
        """
        super().__init__()
        self.positions = nn.Parameter(torch.empty(num_positions, dim))
        self.attention = MultiHeadAttention(dim=dim, num_heads=num_heads)
        self.norm = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, ffn_dim), nn.ReLU(inplace=True), nn.Linear(ffn_dim, word_dim))
        nn.init.normal_(self.positions, std=0.02)

    def forward(
        self, queries: Float[Tensor, "B N C"], words: Float[Tensor, "B L E"], token_mask: Bool[Tensor, "B L"]
    ) -> Float[Tensor, "B"]:
        """The error of each sentence; no gradient goes to `words`.

        Raises:
            RecipeError: If sentences are longer than the table of positions.
        """
        length = words.shape[1]
        if length > len(self.positions):
            raise RecipeError(
                f"model.reconstruction_positions: found {len(self.positions)}, expected {length} or more, the tokens "
                "of the longest sentence; raise it to data.num_tokens"
            )
        positions = self.positions[:length].expand(len(words), -1, -1)
        rebuilt = self.mlp(self.norm(self.attention(positions, queries, queries)))
        distance = (F.normalize(rebuilt, dim=2) - F.normalize(words.detach(), dim=2)).square().sum(dim=2)
        return (distance * token_mask).sum(dim=1) / token_mask.sum(dim=1)


class CRFormer(SegmentationModel):
    """CRFormer composed of its parts.

    With fusion the image's own part ends at stride 8: the rest of the encoder runs once for each sentence. In
    training its batch norms then see B maps, an image as often as it has sentences in the batch.
    """

    def __init__(
        self,
        *,
        image_encoder: ImageEncoder,
        text_encoder: ClipTextEncoder,
        fusions: Sequence[VisionLanguageFusion],
        neck: VisionNeck,
        generation: QueryGeneration,
        calibrations: Sequence[QueryCalibration],
        layers: Sequence[DecoderLayer],
        head: MaskHead,
        reconstruction: LanguageReconstruction | None,
        codes: SineCodes,
    ) -> None:
        """Compose.

        Args:
            image_encoder: Images to maps at strides 8, 16 and 32, stage by stage.
            text_encoder: Token ids to word features; its sentence projection has no use here and is frozen.
            fusions: One for each of the three maps, or none.
            neck: Maps to V_0, C wide, at stride 16.
            generation: Makes Q_0.
            calibrations: Make Q_1, Q_2, ... after the layers: none, so that Q_0 serves all; one fewer than layers;
                or as many, if there is a reconstruction to read the last.
            layers: Decoder layers, at least one.
            head: Pixel features to mask logits.
            reconstruction: Rebuilds the words in training; None for no such loss.
            codes: Of the places of pixels and tokens, C wide.
        """
        super().__init__()
        assert len(fusions) in (0, 3)
        assert len(calibrations) in (0, len(layers) - 1 + (reconstruction is not None))
        self.image_encoder = image_encoder
        self.text_encoder = text_encoder
        self.image_mean, self.image_std = image_encoder.image_mean, image_encoder.image_std
        self.fusions = nn.ModuleList(fusions)
        self.neck = neck
        self.generation = generation
        self.calibrations = nn.ModuleList(calibrations)
        self.layers = nn.ModuleList(layers)
        self.final_norm = nn.LayerNorm(codes.dim)
        self.head = head
        self.reconstruction = reconstruction
        self.codes = codes
        text_encoder.text_projection.requires_grad_(False)

    def encode_image(self, images: Float[Tensor, "I 3 H W"]) -> CRFormerImageState:
        """Encode normalised images whose sides are multiples of 32, as far as no language is needed."""
        if self.fusions:
            return CRFormerImageState(self.image_encoder.to_c2(images))
        return CRFormerImageState(self.neck(*self.image_encoder(images)))

    def decode_pairs(self, image_state: CRFormerImageState, text_state: TextState) -> ModelOutput:
        """Segment; in training, rebuild the words too. Arguments as in `SegmentationModel`."""
        fused = self._fuse(image_state.features, text_state)
        features, queries = self._until_last_layer(fused, text_state)
        features = self._decode_layer(len(self.layers) - 1, features, queries)
        normed = self.final_norm(features.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        mask_logits = self.head(normed)
        if self.reconstruction is None or not self.training:
            return ModelOutput(mask_logits)
        if self.calibrations:  # the last queries are made for the reconstruction alone
            queries = self.calibrations[-1](queries, features, text_state)
        error = self.reconstruction(queries, text_state.words, text_state.token_mask)
        return ModelOutput(mask_logits, reconstruction_error=error)

    def explain_pairs(self, image_state: CRFormerImageState, text_state: TextState) -> Explanation:
        """How the queries of the last decoder layer were made; arguments as of `decode_pairs`."""
        features = self._fuse(image_state.features, text_state)
        generation, last = self.generation, len(self.layers) - 1
        if self.calibrations and last > 0:
            features, _ = self._until_last_layer(features, text_state)
            generation = cast("QueryCalibration", self.calibrations[last - 1]).generation
        return generation.explain(features, text_state)

    def _fuse(self, features: Float[Tensor, "B C2 h2 w2"], text: TextState) -> Float[Tensor, "B C h w"]:
        """V_0 of each sentence."""
        if not self.fusions:
            return features
        fuse2, fuse3, fuse4 = self.fusions
        c2 = fuse2(features, text.words, text.token_mask)
        c3 = fuse3(self.image_encoder.to_c3(c2), text.words, text.token_mask)
        c4 = fuse4(self.image_encoder.to_c4(c3), text.words, text.token_mask)
        return self.neck(*self.image_encoder.finish((c2, c3, c4)))

    def _until_last_layer(
        self, features: Float[Tensor, "B C h w"], text: TextState
    ) -> tuple[Float[Tensor, "B C h w"], Float[Tensor, "B N C"]]:
        """V_{n-1} and Q_{n-1}, which the last of n layers joins."""
        queries = self.generation(features, text)
        for number in range(len(self.layers) - 1):
            features = self._decode_layer(number, features, queries)
            if self.calibrations:
                queries = self.calibrations[number](queries, features, text)
        return features, queries

    def _decode_layer(
        self, number: int, features: Float[Tensor, "B C h w"], queries: Float[Tensor, "B N C"]
    ) -> Float[Tensor, "B C h w"]:
        """V_{number+1}: a decoder layer, FCNet Eq. (5)."""
        layer = cast("DecoderLayer", self.layers[number])
        grid = (features.shape[2], features.shape[3])
        pixel_code = self.codes.of_pixels(grid, features)
        token_code = self.codes.of_tokens(queries)
        pixels = layer.attend_to_pixels(features.flatten(2).transpose(1, 2), pixel_code)
        pixels = layer.attend_to_tokens(pixels, pixel_code, queries, token_code, None)
        return pixels.transpose(1, 2).unflatten(2, grid)


def build_crformer(config: CRFormerConfig, *, input_size: tuple[int, int]) -> CRFormer:
    """Build CRFormer with random weights.

    Args:
        config: The recipe's `[model]` section.
        input_size: `(height, width)` the model is made for, multiples of 32: its native grid is a sixteenth of it.
    """
    image_encoder = build_image_encoder(config.image_encoder, input_size)
    text_encoder = build_text_encoder(config.image_encoder, config.dim)
    dim, word_dim = config.dim, text_encoder.width
    reconstructs = config.reconstruction_weight > 0

    def generation() -> QueryGeneration:
        return QueryGeneration(
            key_conv=nn.Conv2d(dim, config.num_queries, 3, padding=1),
            emphasis_generation=EmphasisGeneration(
                grid=feature_grid(input_size),
                word_dim=word_dim,
                dim=dim,
                num_heads=config.num_heads,
            ),
        )

    num_calibrations = config.num_decoder_layers - 1 + reconstructs if config.calibration else 0
    return CRFormer(
        image_encoder=image_encoder,
        text_encoder=text_encoder,
        fusions=[VisionLanguageFusion(dim=width, word_dim=word_dim) for width in image_encoder.channels]
        if config.fusion
        else [],
        neck=VisionNeck(in_dims=image_encoder.channels, dim=dim),
        generation=generation(),
        calibrations=[
            QueryCalibration(generation=generation(), dim=dim, residual=config.residual)
            for _ in range(num_calibrations)
        ],
        layers=build_decoder_layers(config),
        head=MaskHead(dim=dim),
        reconstruction=LanguageReconstruction(
            dim=dim,
            word_dim=word_dim,
            num_heads=config.num_heads,
            ffn_dim=config.ffn_dim,
            num_positions=config.reconstruction_positions,
        )
        if reconstructs
        else None,
        codes=build_codes(config, input_size),
    )
