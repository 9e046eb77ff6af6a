"""LTS: locate the object, then segment it.

Source: Jing et al. 2021, "Locate then Segment: A Strong Pipeline for Referring Image Segmentation" (CVPR,
arXiv 2103.16284), known here by its abstract and by what later papers say of it. From these are: fused features of both
sides; a cross-modal interaction, by filtering or by a transformer, that gives a position prior; the prior joined to the
fused features; a light segmentation network of convolutions; a loss on the prior beside the mask's; a ConvNet and a
bidirectional GRU as encoders. Ours, after the code of its time (MCN) and of those who took up its fusion (CRIS): all
widths and formulas, the encoders of the default, what the prior learns and how much that weighs.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from refseg.model_config import LTSConfig
from refseg.models.image_encoder import ImageEncoder, build_image_encoder
from refseg.models.mask_decoder import SentenceFilter, WordDecoder, build_codes, build_decoder_layers
from refseg.models.model import Explanation, ModelOutput, SegmentationModel, TextState
from refseg.models.neck import ConvNormReLU, NeckLevels, TextGate, VisionNeck, upsample
from refseg.models.text_encoder import BiGruTextEncoder, ClipTextEncoder, build_text_encoder, refuse_other_width


class FilterLocator(nn.Module):
    """Relevance filtering: a filter made from the sentence answers where the fused features suit it.

    Source: LTS's abstract and those who cite it name the filtering; its form is that of CRIS's projector.
    """

    def __init__(self, *, sentence_dim: int, dim: int, size: int) -> None:
        """Build.

        Args:
            sentence_dim: Width of the sentence feature.
            dim: C, channels of the fused features.
            size: Side of the filter, odd.
        """
        super().__init__()
        self.filter = SentenceFilter(sentence_dim=sentence_dim, dim=dim, size=size)

    def forward(self, fused: Float[Tensor, "B C h w"], text_state: TextState) -> Float[Tensor, "B 1 h w"]:
        """Scores before the sigmoid."""
        return self.filter(fused, text_state.sentence)


class TransformerLocator(nn.Module):
    """A transformer: the pixels attend to each other and to the words, then each gets a score of its own.

    Source: LTS's abstract and those who cite it name the transformer; the layer is FCNet's and CRIS's.
    """

    def __init__(self, *, decoder: WordDecoder, dim: int) -> None:
        """Compose.

        Args:
            decoder: Layers in which the pixels attend to the words.
            dim: C, its width.
        """
        super().__init__()
        self.decoder = decoder
        self.score = nn.Conv2d(dim, 1, 1)

    def forward(self, fused: Float[Tensor, "B C h w"], text_state: TextState) -> Float[Tensor, "B 1 h w"]:
        """Scores before the sigmoid."""
        return self.score(self.decoder(fused, text_state.words, text_state.token_mask))


class PriorSegmenter(nn.Module):
    """Fused features and position prior to mask logits at a quarter of the input's size.

    Source: LTS says that the prior is joined to the features and refined by convolutions. An atrous pyramid (Chen et
    al. 2017, "Rethinking Atrous Convolution for Semantic Image Segmentation") with the rates of MCN's code, then x2,
    3x3, x2, 3x3, is ours. In training, the batch norm of its image branch needs two sentences or more in a process.
    """

    def __init__(self, *, dim: int, rates: tuple[int, ...] = (6, 12, 18)) -> None:
        """Build.

        Args:
            dim: C, channels of the fused features; the pyramid is half as wide.
            rates: Of the 3 x 3 convolutions.
        """
        super().__init__()
        width = dim // 2
        self.branches = nn.ModuleList(
            [
                ConvNormReLU(dim + 1, width, 1),
                *(ConvNormReLU(dim + 1, width, 3, dilation=rate) for rate in rates),
            ]
        )
        self.image_branch = ConvNormReLU(dim + 1, width, 1)
        self.merge = ConvNormReLU((len(rates) + 2) * width, width, 1)
        self.refine = ConvNormReLU(width, width, 3)
        self.predict = nn.Conv2d(width, 1, 3, padding=1)

    def forward(self, fused: Float[Tensor, "B C h w"], prior: Float[Tensor, "B 1 h w"]) -> Float[Tensor, "B 1 4*h 4*w"]:
        """Segment.

        Args:
            fused: Features.
            prior: 0 to 1.
        """
        x = torch.cat([fused, prior], dim=1)
        image = self.image_branch(x.mean(dim=(2, 3), keepdim=True)).expand(-1, -1, *x.shape[2:])
        x = self.merge(torch.cat([*(branch(x) for branch in self.branches), image], dim=1))
        return self.predict(upsample(self.refine(upsample(x))))


class LTS(SegmentationModel):
    """LTS composed of its parts.

    The sentence feature is CLIP's projection as it is (512 wide beside ResNet-101, 1024 beside ResNet-50): one more
    linear map before the gate's and the locator's own would add nothing.
    Language enters in the neck, so that encoder and the neck's first convolutions are all that sentences can share.
    """

    def __init__(
        self,
        *,
        image_encoder: ImageEncoder,
        text_encoder: ClipTextEncoder | BiGruTextEncoder,
        neck: VisionNeck,
        locator: FilterLocator | TransformerLocator,
        segmenter: PriorSegmenter,
    ) -> None:
        """Compose.

        Args:
            image_encoder: Images to maps at strides 8, 16 and 32.
            text_encoder: Token ids to word and sentence features.
            neck: Maps and sentence to fused features at stride 16; with a gate.
            locator: Where the object is.
            segmenter: What the object is, given where.
        """
        super().__init__()
        self.image_encoder = image_encoder
        self.text_encoder = text_encoder
        self.image_mean, self.image_std = image_encoder.image_mean, image_encoder.image_std
        self.neck = neck
        self.locator = locator
        self.segmenter = segmenter

    def encode_image(self, images: Float[Tensor, "I 3 H W"]) -> NeckLevels:
        """Encode normalised images whose sides are multiples of 32."""
        return self.neck.levels(*self.image_encoder(images))

    def decode_pairs(self, image_state: NeckLevels, text_state: TextState) -> ModelOutput:
        """Locate and segment; arguments as in `SegmentationModel`. The mask's loss reaches the locator, too."""
        fused = self.neck.fuse(image_state, text_state.sentence)
        location_logits = self.locator(fused, text_state)
        return ModelOutput(self.segmenter(fused, location_logits.sigmoid()), location_logits)

    def explain_pairs(self, image_state: NeckLevels, text_state: TextState) -> Explanation:
        """The prior, and (N = 1) the words that the pixels attended to, or that the bi-GRU's sentence is made of."""
        fused = self.neck.fuse(image_state, text_state.sentence)
        attended = None
        if isinstance(self.locator, TransformerLocator):
            attended = self.locator.decoder.word_attention(fused, text_state.words, text_state.token_mask)[:, None]
        elif isinstance(self.text_encoder, BiGruTextEncoder):
            attended = self.text_encoder.word_weights(text_state.words, text_state.token_mask)[:, None]
        return Explanation(word_attention=attended, location=self.locator(fused, text_state).sigmoid()[:, 0])

    def parameter_groups(self) -> dict[str, list[tuple[str, nn.Parameter]]]:
        """As for every model, but a bi-GRU starts from nothing and is no backbone."""
        groups = super().parameter_groups()
        if isinstance(self.text_encoder, BiGruTextEncoder):
            groups["rest"] += [entry for entry in groups["backbone"] if entry[0].startswith("text_encoder.")]
            groups["backbone"] = [entry for entry in groups["backbone"] if not entry[0].startswith("text_encoder.")]
        return groups


def build_lts(config: LTSConfig, *, input_size: tuple[int, int]) -> LTS:
    """Build LTS with random weights.

    Args:
        config: The recipe's `[model]` section.
        input_size: `(height, width)` the image encoder is made for, multiples of 32.

    Raises:
        RecipeError: If a transformer is to attend to words that are not as wide as it is.
    """
    image_encoder = build_image_encoder(config.image_encoder, input_size)
    text_encoder = (
        build_text_encoder(config.image_encoder, config.dim)
        if config.text_encoder == "clip"
        else BiGruTextEncoder(dim=config.dim)
    )
    return LTS(
        image_encoder=image_encoder,
        text_encoder=text_encoder,
        neck=VisionNeck(
            in_dims=image_encoder.channels,
            dim=config.dim,
            gate=TextGate(sentence_dim=text_encoder.output_dim, dim=2 * config.dim),
        ),
        locator=_build_locator(config, text_encoder, input_size),
        segmenter=PriorSegmenter(dim=config.dim),
    )


def _build_locator(
    config: LTSConfig, text_encoder: ClipTextEncoder | BiGruTextEncoder, input_size: tuple[int, int]
) -> FilterLocator | TransformerLocator:
    if config.locator == "filter":
        return FilterLocator(sentence_dim=text_encoder.output_dim, dim=config.dim, size=config.filter_size)
    refuse_other_width(text_encoder, config.dim, reader="the locator")
    layers = build_decoder_layers(config)
    codes = build_codes(config, input_size)
    return TransformerLocator(decoder=WordDecoder(layers=layers, codes=codes, has_final_norm=False), dim=config.dim)
