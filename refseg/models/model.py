"""The interface of every model: an image side, a sentence side, a decoder that joins them, and the states between."""

from typing import Any, NamedTuple

from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from refseg.models.image_encoder import ImageEncoder


class TextState(NamedTuple):
    """All that a model computes from B sentences alone; the same for every model."""

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
    """What a model attended to, for people; a part that the model does not have is None."""

    word_attention: Float[Tensor, "B N L"] | None = None
    """How much each of N tokens attends to each word, averaged over heads: rows sum to 1, padding has 0."""
    alpha: Float[Tensor, "B N"] | None = None
    """FCNet: the weight that calibration gives each emphasis (unbounded; 0 leaves it as it is)."""
    location: Float[Tensor, "B h w"] | None = None
    """LTS: the position prior, 0 to 1, at a sixteenth of the input's size."""
    key_maps: Float[Tensor, "B N gh gw"] | None = None
    """The key map of which each of the N tokens is the query: unbounded, at the grid of its weights."""


def select_images(image_state: Any, image_index: Int64[Tensor, "B"]) -> Any:
    """Return the image state of B sentences: row b of each tensor is row `image_index[b]` of the given one.

    Args:
        image_state: State of I images, from any model.
        image_index: The image of each sentence, 0 to I - 1.
    """
    return type(image_state)(*(tensor[image_index] for tensor in image_state))


class SegmentationModel(nn.Module):
    """A referring segmentation model in three calls, so that one image's work serves all its sentences.

    `encode_image` gives an image state, `encode_text` a `TextState`, and `decode` joins the two. A state is a
    NamedTuple of tensors and of nothing else, and the first axis of each of its tensors counts the images of an image
    state or the sentences of a text state. So a state is indexed, kept and exported by code that does not know the
    model. Each model has an image state of its own, which holds all that needs no language.

    A model defines `encode_image`, `decode_pairs` and `explain_pairs`. The last two get an image state with a row for
    each sentence: `decode` and `explain` have selected the image of each sentence by then.

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
        """Encode normalised images whose sides are multiples of 32; returns the model's own image state."""
        raise NotImplementedError

    def encode_text(self, token_ids: Int64[Tensor, "B L"], token_mask: Bool[Tensor, "B L"]) -> TextState:
        """Encode sentences; columns that are padding for the whole batch may be cut without any change."""
        words, sentence = self.text_encoder(token_ids, token_mask)
        return TextState(words=words, sentence=sentence, token_mask=token_mask)

    def decode_pairs(self, image_state: Any, text_state: TextState) -> ModelOutput:
        """Segment, with all that training needs.

        Args:
            image_state: State of B images: row b is the image of sentence b.
            text_state: State of B sentences.
        """
        raise NotImplementedError

    def explain_pairs(self, image_state: Any, text_state: TextState) -> Explanation:
        """Return what the model attended to; arguments as of `decode_pairs`."""
        raise NotImplementedError

    def decode_all(self, image_state: Any, text_state: TextState, image_index: Int64[Tensor, "B"]) -> ModelOutput:
        """Segment, with all that training needs.

        Args:
            image_state: State of I images.
            text_state: State of B sentences.
            image_index: The image of each sentence, 0 to I - 1.
        """
        return self.decode_pairs(select_images(image_state, image_index), text_state)

    def decode(
        self, image_state: Any, text_state: TextState, image_index: Int64[Tensor, "B"]
    ) -> Float[Tensor, "B 1 h4 w4"]:
        """Mask logits at a quarter of the input's size; arguments as of `decode_all`."""
        return self.decode_all(image_state, text_state, image_index).mask_logits

    def explain(self, image_state: Any, text_state: TextState, image_index: Int64[Tensor, "B"]) -> Explanation:
        """Return what the model attended to; arguments as of `decode_all`."""
        return self.explain_pairs(select_images(image_state, image_index), text_state)

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
