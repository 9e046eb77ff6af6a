"""CRFormer fuses language into the image encoder, updates its queries in the decoder, and reconstructs the words.

Source: Yan et al. 2024, "Calibration & Reconstruction: Deep Integrated Language for Referring Image Segmentation"
(arXiv 2404.08281). No code was published, and only the abstract and the figure captions were available.

From the paper: a fusion module inside the image encoder; several language queries generated from the image; a decoder
that generates new queries from each layer's output and the original words; and a loss on the words that are
reconstructed from the last queries.

Not from the paper: every equation below, all widths and counts, and the form and weight of the loss. Neck, query
generation, decoder layer and head are those of FCNet, by the same first authors. No score of the paper is claimed.
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
    """The part of CRFormer's computation that needs only I images. The encoder's later stages need language."""

    features: Float[Tensor, "I C h w"]
    """The encoder's map at stride 8, before any fusion; without fusion modules the neck's F_v at stride 16."""


class VisionLanguageFusion(nn.Module):
    """Adds attended word features to the positions of a map: V + tanh(W_2 ReLU(W_1 f)) * f.

    IN is the instance norm over positions, without weights, and d is the number of channels of V:

        a = softmax(IN(V W_q) (F_t W_k)^T / sqrt(d)) F_t W_v
        f = GELU(W_m (GELU(V W_p) * IN(a W_o)))

    Source: CRFormer (arXiv 2404.08281), Fig. 3, names the module; its equations were not available. The form is the
    pixel-word attention and the language gate of LAVT (Yang et al. 2022, "LAVT: Language-Aware Vision Transformer for
    Referring Image Segmentation"), after LAVT's code: one head, six projections with a bias, and a gate without one.
    The biases of W_q, W_k, W_v and W_o have no effect, because IN or the softmax removes them; this holds for LAVT,
    too.

    Two things differ from LAVT. The decoder receives the gated map, not f. W_2 starts at zero, so that a pretrained
    encoder is unchanged at the start. The gradient of W_2 is not zero in this state. If W_m started at zero instead,
    both the gate and f would be 0 and would get no gradient.
    """

    def __init__(self, *, dim: int, word_dim: int) -> None:
        """Create the projections and the gate. In its initial state the gate does not change the map.

        Args:
            dim: d, number of channels of the map.
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
        """Return the fused map.

        Args:
            features: Map V of each sentence, with at least two positions.
            words: Word features F_t.
            token_mask: True for words. Each row must contain at least one True.
        """
        grid = (features.shape[2], features.shape[3])
        pixels = features.flatten(2).transpose(1, 2)  # (B, h*w, d)
        attended = F.scaled_dot_product_attention(  # with an explicit axis for the single head, which ONNX requires
            _normalise(self.query(pixels))[:, None],
            self.key(words)[:, None],
            self.value(words)[:, None],
            attn_mask=token_mask[:, None, None, :],
        )[:, 0]
        fused = F.gelu(self.mix(F.gelu(self.pixel(pixels)) * _normalise(self.out(attended))))
        gate = self.gate_out(F.relu(self.gate_in(fused))).tanh()
        return features + (gate * fused).transpose(1, 2).unflatten(2, grid)  # keeps the memory layout of `features`


def _normalise(x: Float[Tensor, "B n d"]) -> Float[Tensor, "B n d"]:
    """Normalise each channel of each sample to mean 0 and variance 1 over the positions."""
    return F.instance_norm(x.transpose(1, 2)).transpose(1, 2)


class QueryGeneration(nn.Module):
    """Generates language queries from vision features: Q = CrossAttn(Flatten(Conv(V)), F_t, F_t).

    Source: CRFormer's abstract and Fig. 4 name the module. The form is FCNet's emphasis generation (FCNet Sec. 3.2,
    Eq. (4)) with its key convolution, whose N_q output channels become the tokens.
    """

    def __init__(self, *, key_conv: nn.Module, emphasis_generation: EmphasisGeneration) -> None:
        """Compose the module from its two parts.

        Args:
            key_conv: Convolution that computes N_q key maps from V.
            emphasis_generation: Attention that turns the key maps into queries which have attended to the words.
        """
        super().__init__()
        self.key_conv = key_conv
        self.egm = emphasis_generation

    def forward(self, features: Float[Tensor, "B C h w"], text: TextState) -> Float[Tensor, "B N C"]:
        """Return the N queries of each sentence."""
        return self.egm(self.egm.flatten(self.key_conv(features)), text.words, text.token_mask)

    def explain(self, features: Float[Tensor, "B C h w"], text: TextState) -> Explanation:
        """Return the key map of each query, and the query's attention to each word."""
        keys = self.egm.flatten(self.key_conv(features))
        return Explanation(
            word_attention=self.egm.word_attention(keys, text.words, text.token_mask),
            key_maps=keys.unflatten(2, self.egm.grid),
        )


class QueryCalibration(nn.Module):
    """Computes new queries after a decoder layer: Q_i = LN(Q_{i-1} + G_i(V_i, F_t)), or G_i(V_i, F_t) alone.

    Source: CRFormer's abstract and Fig. 5: new queries are generated from each layer's output and the original
    language features, "which gradually updates the language features". The sum and its norm are not from the paper.
    """

    def __init__(self, *, generation: QueryGeneration, dim: int, residual: bool) -> None:
        """Compose the module from its query generation, and add a norm if `residual`.

        Args:
            generation: G_i, with weights of its own.
            dim: C, width of the queries.
            residual: True to add the new queries to the previous ones. False to replace them, without a norm.
        """
        super().__init__()
        self.generation = generation
        self.norm = nn.LayerNorm(dim) if residual else None

    def forward(
        self, queries: Float[Tensor, "B N C"], features: Float[Tensor, "B C h w"], text: TextState
    ) -> Float[Tensor, "B N C"]:
        """Return Q_i, computed from Q_{i-1} and V_i."""
        made = self.generation(features, text)
        return made if self.norm is None else self.norm(queries + made)


class LanguageReconstruction(nn.Module):
    """Reconstructs the word features from the last queries. The error measures the lost information.

        R = CrossAttn(P_1..L, Q, Q);  F^ = MLP(LN(R))
        error = mean over the sentence's tokens of || F^ / |F^| - stopgrad(F_t / |F_t|) ||^2

    Source: CRFormer (arXiv 2404.08281), abstract: the last layer's queries reconstruct the input language.
    The learned positions P as queries, the MLP, the normalisation to unit length and the squared distance (0 to 4) are
    not from the paper. Neither is the stopped gradient at F_t: without it, the text encoder could make all words
    similar, which are easy to reconstruct.
    """

    def __init__(self, *, dim: int, word_dim: int, num_heads: int, ffn_dim: int, num_positions: int) -> None:
        """Create the position table, the attention and the MLP.

        Args:
            dim: C, width of the queries.
            word_dim: E, width of the word features.
            num_heads: Number of attention heads, a divisor of `dim`.
            ffn_dim: Hidden width of the MLP.
            num_positions: Number of tokens of the longest sentence that can be reconstructed.
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
        """Return the error of each sentence. No gradient flows to `words`.

        Raises:
            RecipeError: If a sentence has more tokens than the position table has rows.
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
    """The CRFormer model.

    With fusion, `encode_image` ends at stride 8, and the rest of the encoder runs once for each sentence. In training,
    the batch norms in this rest then receive B maps. Each image occurs once per sentence in the batch.
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
        """Compose the model from its parts.

        Args:
            image_encoder: Computes maps at strides 8, 16 and 32 from images, stage by stage.
            text_encoder: Computes word features from token ids. Its sentence projection is not used and is frozen.
            fusions: One fusion module for each of the three maps, or none.
            neck: Fuses the maps into V_0 with C channels at stride 16.
            generation: Generates the queries Q_0.
            calibrations: Modules that compute Q_1, Q_2, ... after the decoder layers. Either none, so that all layers
                use Q_0; or one fewer than layers; or, with a reconstruction, which reads the last queries, one for
                each layer.
            layers: Decoder layers, at least one.
            head: Computes mask logits from pixel features.
            reconstruction: Reconstructs the words in training. If None, there is no reconstruction loss.
            codes: Position codes of pixels and tokens, C wide.
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
        """Encode normalised images whose sides are multiples of 32, up to the first step that needs language."""
        if self.fusions:
            return CRFormerImageState(self.image_encoder.to_c2(images))
        return CRFormerImageState(self.neck(*self.image_encoder(images)))

    def decode_pairs(self, image_state: CRFormerImageState, text_state: TextState) -> ModelOutput:
        """Segment, and in training reconstruct the words. `SegmentationModel` describes the arguments."""
        fused = self._fuse(image_state.features, text_state)
        features, queries = self._until_last_layer(fused, text_state)
        features = self._decode_layer(len(self.layers) - 1, features, queries)
        normed = self.final_norm(features.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        mask_logits = self.head(normed)
        if self.reconstruction is None or not self.training:
            return ModelOutput(mask_logits)
        if self.calibrations:  # only the reconstruction uses the queries after the last layer
            queries = self.calibrations[-1](queries, features, text_state)
        error = self.reconstruction(queries, text_state.words, text_state.token_mask)
        return ModelOutput(mask_logits, reconstruction_error=error)

    def explain_pairs(self, image_state: CRFormerImageState, text_state: TextState) -> Explanation:
        """Explain how the queries of the last decoder layer were generated. `decode_pairs` describes the arguments."""
        features = self._fuse(image_state.features, text_state)
        generation, last = self.generation, len(self.layers) - 1
        if self.calibrations and last > 0:
            features, _ = self._until_last_layer(features, text_state)
            generation = cast("QueryCalibration", self.calibrations[last - 1]).generation
        return generation.explain(features, text_state)

    def _fuse(self, features: Float[Tensor, "B C2 h2 w2"], text: TextState) -> Float[Tensor, "B C h w"]:
        """Return V_0 of each sentence."""
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
        """Return V_{n-1} and Q_{n-1}, the inputs of the last of n decoder layers."""
        queries = self.generation(features, text)
        for number in range(len(self.layers) - 1):
            features = self._decode_layer(number, features, queries)
            if self.calibrations:
                queries = self.calibrations[number](queries, features, text)
        return features, queries

    def _decode_layer(
        self, number: int, features: Float[Tensor, "B C h w"], queries: Float[Tensor, "B N C"]
    ) -> Float[Tensor, "B C h w"]:
        """Run one decoder layer, FCNet Eq. (5), and return V_{number+1}."""
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
        input_size: `(height, width)` in pixels for which the model is built, multiples of 32. The native grid of the
            key maps is a sixteenth of it.
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
