"""CRIS in this framework. It is the baseline for FCNet and LTS, and it is trained by the same code.

Source: Wang et al. 2022, "CRIS: CLIP-Driven Referring Image Segmentation" (CVPR), and its public code. The parameter
counts equal those of that code exactly (146,849,121 with ResNet-50, 161,251,681 with ResNet-101). The paper's
text-to-pixel contrastive loss is the binary cross-entropy of each pixel's logit, which all models here use.

Three things differ. Any encoder can be used, and the widths of sentence and image features are independent. Padding is
found by the end token and not by id 0, which is a word piece. Each image is encoded once for all its sentences.
"""

from jaxtyping import Float
from torch import Tensor, nn

from refseg.model_config import CRISConfig
from refseg.models.image_encoder import ImageEncoder, build_image_encoder
from refseg.models.mask_decoder import SentenceFilter, WordDecoder, build_codes, build_decoder_layers
from refseg.models.model import Explanation, ModelOutput, SegmentationModel, TextState
from refseg.models.neck import ConvNormReLU, NeckLevels, TextGate, VisionNeck, upsample
from refseg.models.text_encoder import ClipTextEncoder, build_text_encoder, refuse_other_width


class Projector(nn.Module):
    """Computes mask logits at stride 4 from pixel features at stride 16, with a filter generated from the sentence.

    Source: CRIS's text-to-pixel contrastive learning, in the form of its code (`Projector`). Where the paper has a
    product of pixel and sentence features, the code has a 3 x 3 filter generated from the sentence.
    """

    def __init__(self, *, sentence_dim: int, dim: int) -> None:
        """Create the convolutions and the filter.

        Args:
            sentence_dim: Width of the sentence feature.
            dim: C, number of channels of the pixel features. The second convolution halves it.
        """
        super().__init__()
        self.refine = ConvNormReLU(dim, dim, 3)
        self.narrow = ConvNormReLU(dim, dim // 2, 3)
        self.mix = nn.Conv2d(dim // 2, dim // 2, 1)
        self.filter = SentenceFilter(sentence_dim=sentence_dim, dim=dim // 2, size=3)

    def forward(self, x: Float[Tensor, "B C h w"], sentence: Float[Tensor, "B S"]) -> Float[Tensor, "B 1 4*h 4*w"]:
        """Up-sample the features twice, and filter them by the sentence."""
        return self.filter(self.mix(self.narrow(upsample(self.refine(upsample(x))))), sentence)


class CRIS(SegmentationModel):
    """The CRIS model.

    Language is first used in the neck. Sentences of an image share the image encoder and the neck's first convolutions.
    """

    def __init__(
        self,
        *,
        image_encoder: ImageEncoder,
        text_encoder: ClipTextEncoder,
        neck: VisionNeck,
        decoder: WordDecoder,
        projector: Projector,
    ) -> None:
        """Compose the model from its parts.

        Args:
            image_encoder: Computes maps at strides 8, 16 and 32 from images.
            text_encoder: Computes word features, as wide as the decoder, and sentence features from token ids.
            neck: Fuses maps and sentence into features at stride 16; must have a gate.
            decoder: Layers in which these features attend to the words.
            projector: Computes mask logits by a filter generated from the sentence.
        """
        super().__init__()
        self.image_encoder = image_encoder
        self.text_encoder = text_encoder
        self.image_mean, self.image_std = image_encoder.image_mean, image_encoder.image_std
        self.neck = neck
        self.decoder = decoder
        self.projector = projector

    def encode_image(self, images: Float[Tensor, "I 3 H W"]) -> NeckLevels:
        """Encode normalised images whose sides are multiples of 32."""
        return self.neck.levels(*self.image_encoder(images))

    def decode_pairs(self, image_state: NeckLevels, text_state: TextState) -> ModelOutput:
        """Segment. `SegmentationModel` describes the arguments."""
        fused = self.neck.fuse(image_state, text_state.sentence)
        attended = self.decoder(fused, text_state.words, text_state.token_mask)
        return ModelOutput(self.projector(attended, text_state.sentence))

    def explain_pairs(self, image_state: NeckLevels, text_state: TextState) -> Explanation:
        """Return the attention to each word, averaged over pixels and layers. The image has a single map (N = 1)."""
        fused = self.neck.fuse(image_state, text_state.sentence)
        attended = self.decoder.word_attention(fused, text_state.words, text_state.token_mask)
        return Explanation(word_attention=attended[:, None])


def build_cris(config: CRISConfig, *, input_size: tuple[int, int]) -> CRIS:
    """Build CRIS with random weights.

    Args:
        config: The recipe's `[model]` section.
        input_size: `(height, width)` in pixels for which the image encoder is built, multiples of 32.

    Raises:
        RecipeError: If the word features and the decoder differ in width.
    """
    image_encoder = build_image_encoder(config.image_encoder, input_size)
    text_encoder = build_text_encoder(config.image_encoder, config.dim)
    refuse_other_width(text_encoder, config.dim, reader="the decoder")
    layers = build_decoder_layers(config)
    sentence_dim = text_encoder.output_dim
    return CRIS(
        image_encoder=image_encoder,
        text_encoder=text_encoder,
        neck=VisionNeck(
            in_dims=image_encoder.channels,
            dim=config.dim,
            gate=TextGate(sentence_dim=sentence_dim, dim=2 * config.dim),
        ),
        decoder=WordDecoder(
            layers=layers,
            codes=build_codes(config, input_size),
            has_final_norm=True,
        ),
        projector=Projector(sentence_dim=sentence_dim, dim=config.dim),
    )
