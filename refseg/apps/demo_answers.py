"""Defines a question about a kept picture and the answer, as they are sent over HTTP."""

import base64
import io
import math
import time
import unicodedata

import numpy as np
from PIL import Image
from pycocotools import mask as coco_masks
from pydantic import BaseModel, ConfigDict, Field

from refseg import tokenizer
from refseg.apps.demo_pictures import KeptPicture
from refseg.apps.predict import Segmenter, box_xywh
from refseg.errors import UsageError
from refseg.evaluation.explanation import SentenceExplanation
from refseg.evaluation.heat_maps import draw_explanation

_LONGEST_MAP_SIDE = 512
"""Largest side of the probability map in pixels; the model itself gives a quarter of its input's size."""


class Refusal(BaseModel):
    """The reason why a request was not answered."""

    detail: str = Field(description="What was found, what was expected, what to do.")


class UploadedPicture(BaseModel):
    """A picture that questions can be asked about."""

    image_id: str = Field(description="SHA-256 of the file's bytes; questions name it.")
    name: str = Field(description="The file's name, as sent.")
    width: int = Field(description="Pixels, upright.")
    height: int = Field(description="Pixels, upright.")
    already_encoded: bool = Field(description="The same file was encoded before and is kept.")
    unlike: str | None = Field(
        description="How the picture differs from the validation set; null if it does not, or the set is absent."
    )
    seconds: float = Field(description="Time to decode and encode it.")


class Question(BaseModel):
    """What to look for in a picture."""

    model_config = ConfigDict(extra="forbid")

    image_id: str = Field(description="Id of a picture that was uploaded.", pattern="^[0-9a-f]{64}$")
    text: str = Field(description="An expression, for example: the woman in the red coat.")
    maps: bool = Field(default=False, description="Also draw the model's attention maps, if it has any.")


class RunLengths(BaseModel):
    """A mask as COCO's compressed run lengths."""

    size: tuple[int, int] = Field(description="Height and width in pixels.")
    counts: str = Field(description="Compressed as pycocotools does.")


class Word(BaseModel):
    """A word as the model read it, with its attention."""

    word: str = Field(description="[SOS] and [EOS] begin and end each sentence.")
    weight: float = Field(description="Its share of the model's attention to words; all sum to 1.")


class Answer(BaseModel):
    """What the model found."""

    text: str = Field(description="As asked; control characters are spaces.")
    read_text: str = Field(description="As the model read it: lower case, cut where it was too long.")
    is_cut: bool = Field(description="True if the end of the text was cut.")
    covered_share: float = Field(description="Share of the picture that the mask covers, 0 to 1.")
    box_xywh: tuple[int, int, int, int] | None = Field(
        description="Left, top, width, height in pixels; null for an empty mask."
    )
    highest_probability: float = Field(description="Highest probability of a pixel, 0 to 1.")
    threshold: float = Field(description="Pixels of higher probability are object.")
    rle: RunLengths = Field(description="The mask.")
    mask_png: str = Field(description="The mask at the picture's size, white is object: PNG in base64.")
    probability_png: str = Field(description="Probability over the picture, 0 to 255, scaled down: PNG in base64.")
    words: list[Word] | None = Field(description="Attention over words; null for a model without it.")
    maps_png: str | None = Field(description="Attention maps: PNG in base64; null if not asked for or absent.")
    seconds: float = Field(description="Time to answer, without the encoding of the picture.")


def answer_question(segmenter: Segmenter, kept: KeptPicture, question: Question, *, max_characters: int) -> Answer:
    """Segment what a text names in a kept picture.

    Args:
        segmenter: Segmenter that encoded the picture.
        kept: The kept picture.
        question: The expression.
        max_characters: Maximum length of the text. A longer text is truncated, and the answer says so.

    Raises:
        UsageError: If the text has no visible character.
    """
    started = time.perf_counter()
    text = _readable(question.text[:max_characters])
    token_ids = segmenter.read_text(text)
    if not tokenizer.shows_words(text, token_ids):
        raise UsageError("the text is empty; expected an expression such as 'the woman in the red coat'")
    mask_logits = segmenter.score(kept.encoded, token_ids)
    mask = segmenter.mask(kept.encoded, mask_logits)
    probabilities = segmenter.probabilities(kept.encoded, mask_logits, _map_size(kept.encoded.size))
    explanation = segmenter.explain(kept.encoded, token_ids)
    maps = draw_explanation(kept.shown(), explanation) if question.maps else None
    encoded = coco_masks.encode(np.asfortranarray(mask, np.uint8))
    return Answer(
        text=text,
        read_text=tokenizer.decode(token_ids),
        is_cut=len(text) < len(question.text) or len(token_ids) < len(tokenizer.encode(text)),
        covered_share=float(mask.mean()),
        box_xywh=box_xywh(mask),
        highest_probability=float(probabilities.max()),
        threshold=_probability_threshold(segmenter),
        rle=RunLengths(size=kept.encoded.size, counts=encoded["counts"].decode("ascii")),
        mask_png=_png(Image.fromarray(mask)),
        probability_png=_png(Image.fromarray(np.rint(255 * probabilities).astype(np.uint8))),
        words=_words(explanation),
        maps_png=None if maps is None else _png(Image.fromarray(maps)),
        seconds=time.perf_counter() - started,
    )


def _readable(text: str) -> str:
    """Replace unpaired surrogates, which JSON can contain, by `?`, and control characters by spaces."""
    whole = text.encode("utf-8", "replace").decode("utf-8")
    return "".join(" " if unicodedata.category(letter) == "Cc" else letter for letter in whole)


def _words(explanation: SentenceExplanation) -> list[Word] | None:
    if explanation.mean_weights is None:
        return None
    pairs = zip(explanation.words, explanation.mean_weights, strict=True)
    return [Word(word=word, weight=weight) for word, weight in pairs]


def _probability_threshold(segmenter: Segmenter) -> float:
    protocol = segmenter.protocol
    return protocol.threshold if protocol.resized == "probabilities" else 1 / (1 + math.exp(-protocol.threshold))


def _map_size(size: tuple[int, int]) -> tuple[int, int]:
    scale = min(1.0, _LONGEST_MAP_SIDE / max(size))
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def _png(picture: Image.Image) -> str:
    file = io.BytesIO()
    picture.save(file, "PNG", compress_level=3)
    return base64.b64encode(file.getvalue()).decode("ascii")
