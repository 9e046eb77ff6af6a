"""Computes, for one sentence, the model's attention weights over the words and maps over the image."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional as F

from refseg import tokenizer
from refseg.data.transforms import Geometry, normalise
from refseg.models.model import SegmentationModel

LONGEST_SIDE = 256
"""Length of the longer side of a map in pixels."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SentenceExplanation:
    """The explanation of one sentence, for N tokens (FCNet's emphases) that attend to W words.

    A field that the model does not have is None.

    Attributes:
        words: The words that the model read, with `[SOS]` and `[EOS]`. The tokens of one word are joined.
        word_weights: Attention of each token to each word, averaged over heads. Each row sums to 1.
        alpha: Weight that FCNet's calibration assigns to each emphasis. The emphasis is multiplied by 1 + alpha.
        key_maps: Key map of each token over the picture, each scaled to the range from 0 to 1.
        location: LTS's position prior, 0 to 1.
    """

    words: tuple[str, ...]
    word_weights: Float[np.ndarray, "N W"] | None
    alpha: Float[np.ndarray, "N"] | None
    key_maps: Float[np.ndarray, "N h w"] | None
    location: Float[np.ndarray, "h w"] | None

    @property
    def mean_weights(self) -> list[float] | None:
        """Mean weight of each word over all tokens. The weights sum to 1."""
        return None if self.word_weights is None else [float(weight) for weight in self.word_weights.mean(axis=0)]

    @property
    def order(self) -> list[int]:
        """Indices of the tokens by decreasing alpha, or in ascending order if there is no alpha."""
        if self.alpha is not None:
            return np.argsort(-self.alpha, kind="stable").tolist()
        return [] if self.word_weights is None else list(range(len(self.word_weights)))

    def table(self, *, num_tokens: int = 8) -> str:
        """Return a text table of the weights of words for the tokens of highest alpha, in percent.

        The text is empty if the model has no word weights.
        """
        if self.word_weights is None:
            return ""
        shown = self.order[:num_tokens] if len(self.word_weights) > 1 else []
        width = max(map(len, (*self.words, "alpha")))
        lines = [f"{'':{width}}{'mean':>7}" + "".join(f"{f'#{token}':>7}" for token in shown)]
        if self.alpha is not None:
            lines.append(f"{'alpha':{width}}{'':7}" + "".join(f"{self.alpha[token]:>+7.2f}" for token in shown))
        for word, mean, weights in zip(self.words, self.mean_weights or [], self.word_weights.T, strict=True):
            lines.append(f"{word:{width}}{mean:>7.0%}" + "".join(f"{weights[token]:>7.0%}" for token in shown))
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """Return words, weights and alpha as JSON types. The maps are not included."""
        return {
            "words": list(self.words),
            "word_weights": None if self.word_weights is None else np.round(self.word_weights, 4).tolist(),
            "mean_weights": None if self.mean_weights is None else [round(weight, 4) for weight in self.mean_weights],
            "alpha": None if self.alpha is None else np.round(self.alpha, 4).tolist(),
        }


Explain = Callable[[UInt8[Tensor, "3 h w"], str, tuple[int, int]], SentenceExplanation]
"""A function that explains a sentence about a stored picture; its third argument is the size of the original."""


@torch.inference_mode()
def explain_sentence(
    model: SegmentationModel,
    image_state: Any,
    token_ids: Sequence[int],
    *,
    geometry: Geometry,
    picture_size: tuple[int, int],
) -> SentenceExplanation:
    """Compute what a model attended to for a sentence.

    Args:
        model: Model in evaluation mode.
        image_state: State of one image, from `model.encode_image`.
        token_ids: Token ids of the sentence with SOS and EOS, no longer than the model accepts.
        geometry: Geometry by which the picture was fitted into the network's input.
        picture_size: `(height, width)` of the picture in pixels.
    """
    device = next(model.parameters()).device
    ids = torch.tensor([list(token_ids)], device=device)
    text_state = model.encode_text(ids, torch.ones_like(ids, dtype=torch.bool))
    found = model.explain(image_state, text_state, torch.zeros(1, dtype=torch.int64, device=device))
    words = tokenizer.group_words(token_ids)
    ends = np.cumsum([count for _, count in words])
    weights = None
    if found.word_attention is not None:
        pieces = found.word_attention[0].float().cpu().numpy()
        weights = np.stack([part.sum(axis=1) for part in np.split(pieces, ends[:-1], axis=1)], axis=1)
    key_maps = location = None
    if found.key_maps is not None:
        key_maps = _over_picture(found.key_maps[0], geometry, picture_size)
        low, high = key_maps.min(axis=(1, 2), keepdims=True), key_maps.max(axis=(1, 2), keepdims=True)
        key_maps = (key_maps - low) / np.maximum(high - low, 1e-12)
    if found.location is not None:
        location = _over_picture(found.location, geometry, picture_size)[0].clip(0, 1)
    return SentenceExplanation(
        words=tuple(word for word, _ in words),
        word_weights=weights,
        alpha=None if found.alpha is None else found.alpha[0].float().cpu().numpy(),
        key_maps=key_maps,
        location=location,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Explainer:
    """Explains sentences about any picture.

    Attributes:
        model: Model in evaluation mode.
        geometry: Geometry with which the model was trained.
        num_tokens: Number of token ids to which longer sentences are truncated.
    """

    model: SegmentationModel
    geometry: Geometry
    num_tokens: int

    @torch.inference_mode()
    def __call__(
        self, picture: UInt8[Tensor, "3 h w"], sentence: str, picture_size: tuple[int, int]
    ) -> SentenceExplanation:
        """Encode the picture and explain the sentence.

        Args:
            picture: RGB image, 0 to 255.
            sentence: Sentence to explain.
            picture_size: `(height, width)` of the original picture. The stored picture may be smaller.
        """
        resized = self.geometry.apply_image(picture, picture_size)[None]
        device = next(self.model.parameters()).device
        images = normalise(resized.to(device), self.model.image_mean, self.model.image_std)
        return explain_sentence(
            self.model,
            self.model.encode_image(images),
            tokenizer.truncate(tokenizer.encode(sentence), self.num_tokens),
            geometry=self.geometry,
            picture_size=picture_size,
        )


def _over_picture(
    maps: Float[Tensor, "N gh gw"], geometry: Geometry, picture_size: tuple[int, int]
) -> Float[np.ndarray, "N h w"]:
    """Cut the letterbox border from maps of the network's input, and resize them to the picture's aspect ratio.

    The longer side of the result has `LONGEST_SIDE` pixels.
    """
    at_input = F.interpolate(maps[None].float(), geometry.size, mode="bilinear", align_corners=False)[0]
    top, left, height, width = geometry.placed(picture_size)
    inside = at_input[None, :, top : top + height, left : left + width]
    scale = LONGEST_SIDE / max(picture_size)
    shown = (max(1, round(picture_size[0] * scale)), max(1, round(picture_size[1] * scale)))
    over: Float[np.ndarray, "N h w"] = (
        F.interpolate(inside, shown, mode="bilinear", align_corners=False)[0].cpu().numpy()
    )
    return over
