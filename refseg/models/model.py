"""What every model promises: an image side, a sentence side, and a decoder that joins them."""

from typing import Any, NamedTuple

from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from refseg.models.image_encoder import ImageEncoder


class TextState(NamedTuple):
    """All that a model computes from B sentences alone."""

    words: Float[Tensor, "B L E"]
    """Features of SOS, words and EOS (F_t)."""
    sentence: Float[Tensor, "B C"]
    """Global feature of the sentence (F_tg)."""
    token_mask: Bool[Tensor, "B L"]
    """True from SOS to EOS."""


class ModelOutput(NamedTuple):
    """What a forward pass gives: the scores, and what a paper's further losses need."""

    mask_logits: Float[Tensor, "B 1 h4 w4"]
    """Scores before the sigmoid at a quarter of the input's size."""
    location_logits: Float[Tensor, "B 1 h w"] | None = None
    """LTS: the position prior before its sigmoid, at a sixteenth of the input's size."""
    reconstruction_error: Float[Tensor, "B"] | None = None
    """CRFormer, in training: how far the sentence rebuilt from the last queries is from its words."""


class Explanation(NamedTuple):
    """What a model looked at, for people; a part that the model has not is None."""

    word_attention: Float[Tensor, "B N L"] | None = None
    """How much each of N tokens heard each word, averaged over heads: rows sum to 1, padding has 0."""
    alpha: Float[Tensor, "B N"] | None = None
    """FCNet: the weight that calibration gives each emphasis (unbounded; 0 leaves it as it is)."""
    location: Float[Tensor, "B h w"] | None = None
    """LTS: the position prior, 0 to 1, at a sixteenth of the input's size."""
    key_maps: Float[Tensor, "B N gh gw"] | None = None
    """What each of the N tokens asked from: its key map, unbounded, at the grid of its weights over the whole input."""


class SegmentationModel(nn.Module):
    """A referring segmentation model in three calls, so that one image's work serves all its sentences.

    A model defines `encode_image` and `decode_all`; what never hears language goes into the first.
    The image state is a NamedTuple of the model's own kind; only its own `decode_all` reads it.

    Attributes:
        image_mean: RGB mean its pictures are normalised with, of a range of 0 to 1.
        image_std: RGB standard deviation they are normalised with.
        image_encoder: Pretrained, trained at the backbone's rate.
        text_encoder: The same.
    """

    image_mean: tuple[float, float, float]
    image_std: tuple[float, float, float]
    image_encoder: ImageEncoder
    text_encoder: nn.Module

    def encode_image(self, images: Float[Tensor, "I 3 H W"]) -> Any:
        """Encode normalised images whose sides are multiples of 32."""
        raise NotImplementedError

    def encode_text(self, token_ids: Int64[Tensor, "B L"], token_mask: Bool[Tensor, "B L"]) -> TextState:
        """Encode sentences; columns that are padding for the whole batch may be cut without any change."""
        words, sentence = self.text_encoder(token_ids, token_mask)
        return TextState(words=words, sentence=sentence, token_mask=token_mask)

    def decode_all(self, image_state: Any, text_state: Any, image_index: Int64[Tensor, "B"]) -> ModelOutput:
        """Segment, with all that training wants.

        Args:
            image_state: Of I images.
            text_state: Of B sentences.
            image_index: The image of each sentence, 0 to I - 1.
        """
        raise NotImplementedError

    def explain(self, image_state: Any, text_state: Any, image_index: Int64[Tensor, "B"]) -> Explanation:
        """What the model looked at; arguments as of `decode_all`."""
        raise NotImplementedError

    def decode(self, image_state: Any, text_state: Any, image_index: Int64[Tensor, "B"]) -> Float[Tensor, "B 1 h4 w4"]:
        """Mask logits at a quarter of the input's size; arguments as of `decode_all`."""
        return self.decode_all(image_state, text_state, image_index).mask_logits

    def forward(
        self,
        images: Float[Tensor, "I 3 H W"],
        token_ids: Int64[Tensor, "B L"],
        token_mask: Bool[Tensor, "B L"],
        image_index: Int64[Tensor, "B"],
    ) -> ModelOutput:
        """Encode both sides and decode."""
        return self.decode_all(self.encode_image(images), self.encode_text(token_ids, token_mask), image_index)

    def parameter_groups(self) -> dict[str, list[tuple[str, nn.Parameter]]]:
        """Trainable parameters by how they are trained: `backbone` (pretrained encoders) and `rest`.

        CRIS's rule: both encoders are the backbone, what is new in them too, except what its name says is a position.
        """
        groups: dict[str, list[tuple[str, nn.Parameter]]] = {"backbone": [], "rest": []}
        for name, parameter in self.named_parameters():
            if parameter.requires_grad:
                pretrained = name.startswith(("image_encoder.", "text_encoder.")) and "positional_embedding" not in name
                groups["backbone" if pretrained else "rest"].append((name, parameter))
        return groups
