"""LTS ("Locate then Segment") first predicts where the object is, and then segments it.

Source: Jing et al. 2021, "Locate then Segment: A Strong Pipeline for Referring Image Segmentation" (CVPR,
arXiv 2103.16284). Only its abstract and its descriptions in later papers were available.

From these sources: features that fuse image and sentence; a cross-modal interaction, by filtering or by a transformer,
that gives a position prior; the prior joined to the fused features; a light segmentation network of convolutions; a
loss on the prior beside the loss on the mask; a ConvNet and a bidirectional GRU as encoders.

Not from the paper: all widths and formulas, the default encoders, the target of the prior and the weight of its loss.
They follow code of the same time (MCN) and code that adopted the fusion of LTS (CRIS).
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
    """Locates the object by relevance filtering. The sentence generates a filter for the fused features.

    Source: LTS's abstract and papers that cite it name the filtering; its form is that of CRIS's projector.
    """

    def __init__(self, *, sentence_dim: int, dim: int, size: int) -> None:
        """Create the filter.

        Args:
            sentence_dim: Width of the sentence feature.
            dim: C, number of channels of the fused features.
            size: Side of the filter, an odd number.
        """
        super().__init__()
        self.filter = SentenceFilter(sentence_dim=sentence_dim, dim=dim, size=size)

    def forward(self, fused: Float[Tensor, "B C h w"], text_state: TextState) -> Float[Tensor, "B 1 h w"]:
        """Return the logits of the position prior."""
        return self.filter(fused, text_state.sentence)


class TransformerLocator(nn.Module):
    """Locates the object with a transformer. Pixels attend to each other and to the words, and are then scored.

    Source: LTS's abstract and papers that cite it name the transformer; its layer is that of FCNet and CRIS.
    """

    def __init__(self, *, decoder: WordDecoder, dim: int) -> None:
        """Compose the decoder with a linear score.

        Args:
            decoder: Layers in which the pixels attend to the words.
            dim: C, width of the decoder.
        """
        super().__init__()
        self.decoder = decoder
        self.score = nn.Conv2d(dim, 1, 1)

    def forward(self, fused: Float[Tensor, "B C h w"], text_state: TextState) -> Float[Tensor, "B 1 h w"]:
        """Return the logits of the position prior."""
        return self.score(self.decoder(fused, text_state.words, text_state.token_mask))


class PriorSegmenter(nn.Module):
    """Computes mask logits at a quarter of the input's size from fused features and the position prior.

    Source: LTS says that the prior is joined to the features and refined by convolutions. The rest is not from the
    paper: an atrous pyramid (Chen et al. 2017, "Rethinking Atrous Convolution for Semantic Image Segmentation") with
    the rates of MCN's code, and then twice an up-sampling by 2 with a 3x3 convolution. In training, the batch norm of
    the pyramid's image branch needs at least two sentences per process.
    """

    def __init__(self, *, dim: int, rates: tuple[int, ...] = (6, 12, 18)) -> None:
        """Create the pyramid and the convolutions after it.

        Args:
            dim: C, number of channels of the fused features; the pyramid is half as wide.
            rates: Dilation rates of the pyramid's 3 x 3 convolutions.
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
        """Return the mask logits.

        Args:
            fused: Fused features of image and sentence.
            prior: Position prior, 0 to 1.
        """
        x = torch.cat([fused, prior], dim=1)
        image = self.image_branch(x.mean(dim=(2, 3), keepdim=True)).expand(-1, -1, *x.shape[2:])
        x = self.merge(torch.cat([*(branch(x) for branch in self.branches), image], dim=1))
        return self.predict(upsample(self.refine(upsample(x))))


class LTS(SegmentationModel):
    """The LTS model.

    The sentence feature is CLIP's projection without a further layer (512 wide with ResNet-101, 1024 with ResNet-50). A
    linear layer would add nothing, because the gate and the locator begin with a linear map of their own. Language is
    first used in the neck. Sentences of an image share the image encoder and the neck's first convolutions.
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
        """Compose the model from its parts.

        Args:
            image_encoder: Computes maps at strides 8, 16 and 32 from images.
            text_encoder: Computes word and sentence features from token ids.
            neck: Fuses maps and sentence into features at stride 16; must have a gate.
            locator: Computes the logits of the position prior from the fused features and the sentence.
            segmenter: Computes mask logits from the fused features and the position prior.
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
        """Locate and segment. `SegmentationModel` describes the arguments.

        The gradient of the mask loss also flows into the locator.
        """
        fused = self.neck.fuse(image_state, text_state.sentence)
        location_logits = self.locator(fused, text_state)
        return ModelOutput(self.segmenter(fused, location_logits.sigmoid()), location_logits)

    def explain_pairs(self, image_state: NeckLevels, text_state: TextState) -> Explanation:
        """Return the position prior and a single map of word weights (N = 1).

        With the transformer locator, the weights are the pixels' attention to each word. With the filter and the
        bidirectional GRU, they are the shares of the words in the sentence feature. With the filter and CLIP, there are
        no weights.
        """
        fused = self.neck.fuse(image_state, text_state.sentence)
        attended = None
        if isinstance(self.locator, TransformerLocator):
            attended = self.locator.decoder.word_attention(fused, text_state.words, text_state.token_mask)[:, None]
        elif isinstance(self.text_encoder, BiGruTextEncoder):
            attended = self.text_encoder.word_weights(text_state.words, text_state.token_mask)[:, None]
        return Explanation(word_attention=attended, location=self.locator(fused, text_state).sigmoid()[:, 0])

    def parameter_groups(self) -> dict[str, list[tuple[str, nn.Parameter]]]:
        """Return the parameter groups. A bidirectional GRU has no pretrained weights, so it belongs to `rest`."""
        groups = super().parameter_groups()
        if isinstance(self.text_encoder, BiGruTextEncoder):
            groups["rest"] += [entry for entry in groups["backbone"] if entry[0].startswith("text_encoder.")]
            groups["backbone"] = [entry for entry in groups["backbone"] if not entry[0].startswith("text_encoder.")]
        return groups


def build_lts(config: LTSConfig, *, input_size: tuple[int, int]) -> LTS:
    """Build LTS with random weights.

    Args:
        config: The recipe's `[model]` section.
        input_size: `(height, width)` in pixels for which the image encoder is built, multiples of 32.

    Raises:
        RecipeError: If the locator is a transformer and differs in width from the word features.
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
