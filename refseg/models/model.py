"""The interface of every model. It has an image encoder, a text encoder, a decoder, and states that connect them."""

from typing import Any, NamedTuple

from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from refseg.models.image_encoder import ImageEncoder


class TextState(NamedTuple):
    """The features that a model computes from B sentences alone. All models use this type."""

    words: Float[Tensor, "B L E"]
    """Features of SOS, words and EOS (F_t)."""
    sentence: Float[Tensor, "B C"]
    """Global feature of the sentence (F_tg)."""
    token_mask: Bool[Tensor, "B L"]
    """True from SOS to EOS, False for padding."""


class ModelOutput(NamedTuple):
    """The result of a forward pass. It has the mask logits and the inputs of a paper's additional losses."""

    mask_logits: Float[Tensor, "B 1 h4 w4"]
    """Scores before the sigmoid at a quarter of the input's size."""
    location_logits: Float[Tensor, "B 1 h w"] | None = None
    """LTS: logits of the position prior at a sixteenth of the input's size."""
    reconstruction_error: Float[Tensor, "B"] | None = None
    """CRFormer, in training: distance between the word features and those reconstructed from the last queries."""


class Explanation(NamedTuple):
    """What a model attended to, for display. A field that the model does not have is None."""

    word_attention: Float[Tensor, "B N L"] | None = None
    """Attention of each of N tokens to each word, averaged over heads: rows sum to 1, padding has 0."""
    alpha: Float[Tensor, "B N"] | None = None
    """FCNet: the weight that calibration gives each emphasis (unbounded; 0 leaves the emphasis unchanged)."""
    location: Float[Tensor, "B h w"] | None = None
    """LTS: the position prior, 0 to 1, at a sixteenth of the input's size."""
    key_maps: Float[Tensor, "B N gh gw"] | None = None
    """The key map from which each of the N tokens was made: unbounded values on the native grid."""


def select_images(image_state: Any, image_index: Int64[Tensor, "B"]) -> Any:
    """Return the image state of B sentences. Row b of each tensor is row `image_index[b]` of the given tensor.

    Args:
        image_state: State of I images, from any model.
        image_index: The image of each sentence, 0 to I - 1.
    """
    return type(image_state)(*(tensor[image_index] for tensor in image_state))


class SegmentationModel(nn.Module):
    """A referring segmentation model with three methods, so that an image is encoded once for all its sentences.

    `encode_image` returns an image state, `encode_text` a `TextState`, and `decode` combines the two. A state is a
    NamedTuple that holds only tensors. The first axis of each tensor counts the images of an image state, or the
    sentences of a text state. Therefore any code can index, cache and export a state without knowing the model. Each
    model defines its own image state, which contains everything that needs no language.

    A model implements `encode_image`, `decode_pairs` and `explain_pairs`. The last two receive an image state with one
    row for each sentence, because `decode` and `explain` first select the image of each sentence.

    Attributes:
        image_mean: RGB mean that is subtracted from images with values from 0 to 1.
        image_std: RGB standard deviation by which images are then divided.
        image_encoder: Image encoder; usually pretrained, and trained with the backbone's learning rate.
        text_encoder: Text encoder; usually pretrained, and trained with the backbone's learning rate.
    """

    image_mean: tuple[float, float, float]
    image_std: tuple[float, float, float]
    image_encoder: ImageEncoder
    text_encoder: nn.Module

    def encode_image(self, images: Float[Tensor, "I 3 H W"]) -> Any:
        """Encode normalised images whose sides are multiples of 32, and return the model's own image state."""
        raise NotImplementedError

    def encode_text(self, token_ids: Int64[Tensor, "B L"], token_mask: Bool[Tensor, "B L"]) -> TextState:
        """Encode sentences. Removing columns that are padding in every row does not change the result."""
        words, sentence = self.text_encoder(token_ids, token_mask)
        return TextState(words=words, sentence=sentence, token_mask=token_mask)

    def decode_pairs(self, image_state: Any, text_state: TextState) -> ModelOutput:
        """Segment B pairs of an image and a sentence, and return all outputs that the losses need.

        Args:
            image_state: State of B images: row b is the image of sentence b.
            text_state: State of B sentences.
        """
        raise NotImplementedError

    def explain_pairs(self, image_state: Any, text_state: TextState) -> Explanation:
        """Return what the model attended to. `decode_pairs` describes the arguments."""
        raise NotImplementedError

    def decode_all(self, image_state: Any, text_state: TextState, image_index: Int64[Tensor, "B"]) -> ModelOutput:
        """Segment B sentences about I images, and return all outputs that the losses need.

        Args:
            image_state: State of I images.
            text_state: State of B sentences.
            image_index: The image of each sentence, 0 to I - 1.
        """
        return self.decode_pairs(select_images(image_state, image_index), text_state)

    def decode(
        self, image_state: Any, text_state: TextState, image_index: Int64[Tensor, "B"]
    ) -> Float[Tensor, "B 1 h4 w4"]:
        """Return mask logits at a quarter of the input's size. `decode_all` describes the arguments."""
        return self.decode_all(image_state, text_state, image_index).mask_logits

    def explain(self, image_state: Any, text_state: TextState, image_index: Int64[Tensor, "B"]) -> Explanation:
        """Return what the model attended to. `decode_all` describes the arguments."""
        return self.explain_pairs(select_images(image_state, image_index), text_state)

    def forward(
        self,
        images: Float[Tensor, "I 3 H W"],
        token_ids: Int64[Tensor, "B L"],
        token_mask: Bool[Tensor, "B L"],
        image_index: Int64[Tensor, "B"],
    ) -> ModelOutput:
        """Encode images and sentences, and decode them.

        Args:
            images: Normalised images, whose sides are multiples of 32.
            token_ids: SOS, words, EOS, then padding.
            token_mask: True from SOS to EOS.
            image_index: The image of each sentence, 0 to I - 1.
        """
        return self.decode_all(self.encode_image(images), self.encode_text(token_ids, token_mask), image_index)

    def parameter_groups(self) -> dict[str, list[tuple[str, nn.Parameter]]]:
        """Return the trainable parameters in two groups by learning rate: `backbone` (both encoders) and `rest`.

        As in CRIS's code, the backbone includes layers that were added to the encoders, but not their positional
        embeddings, which are found by name.
        """
        groups: dict[str, list[tuple[str, nn.Parameter]]] = {"backbone": [], "rest": []}
        for name, parameter in self.named_parameters():
            if parameter.requires_grad:
                pretrained = name.startswith(("image_encoder.", "text_encoder.")) and "positional_embedding" not in name
                groups["backbone" if pretrained else "rest"].append((name, parameter))
        return groups
