"""Segments, with a checkpoint, what texts name in a picture. Masks have the size of the picture."""

import io
import logging
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torch.nn import functional as F

from refseg import tokenizer
from refseg.addresses import local_path
from refseg.config import Recipe
from refseg.data.transforms import Geometry, normalise
from refseg.errors import ImageError, MissingImageError, UsageError
from refseg.evaluation.explanation import SentenceExplanation, explain_sentence
from refseg.evaluation.heat_maps import draw_explanation
from refseg.evaluation.inference import masks_at_original_size
from refseg.evaluation.overlay import draw_overlay
from refseg.evaluation.protocols import Protocol, find_protocol
from refseg.models.model import SegmentationModel
from refseg.training.checkpoint import Checkpoint, load_checkpoint

logger = logging.getLogger(__name__)

_SHOWN = 200
"""Largest number of characters of a text in a message."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Prediction:
    """The masks of one image.

    Attributes:
        picture: The image, as upright RGB.
        texts: The texts, as given.
        masks: A mask for each text, at the picture's size. True is object.
        explanations: What the model attended to, for each text. Empty if it was not requested.
        probabilities: A probability map for each text, at the picture's size, 0 to 1. None if it was not requested.
    """

    picture: UInt8[np.ndarray, "H W 3"]
    texts: tuple[str, ...]
    masks: Bool[np.ndarray, "n H W"]
    explanations: tuple[SentenceExplanation, ...] = ()
    probabilities: Float[np.ndarray, "n H W"] | None = None

    def __repr__(self) -> str:
        height, width = self.picture.shape[:2]
        found = ", ".join(f"{text!r} {share:.1%}" for text, share in zip(self.texts, self.covered_shares, strict=True))
        return f"<Prediction on a picture of {height} x {width} pixels: {found}>"

    @property
    def covered_shares(self) -> list[float]:
        """The share of the picture that each mask covers, 0 to 1."""
        return [float(mask.mean()) for mask in self.masks]

    @property
    def boxes_xywh(self) -> list[tuple[int, int, int, int] | None]:
        """The box around each mask, as left, top, width and height in pixels. None for an empty mask."""
        return [box_xywh(mask) for mask in self.masks]

    def overlay(self, number: int) -> UInt8[np.ndarray, "H W 3"]:
        """Return the picture with the outline of the mask of one text."""
        return draw_overlay(self.picture, self.masks[number])

    def explanation_picture(self, number: int) -> UInt8[np.ndarray, "h w 3"] | None:
        """Return the heat maps of one text's explanation. Return None if the model has no maps.

        Raises:
            UsageError: If no explanations were requested.
        """
        if not self.explanations:
            raise UsageError("found no explanations, expected one for each text; segment with explain=True")
        return draw_explanation(self.picture, self.explanations[number])


def segment(
    checkpoint: Path | Checkpoint,
    image: Path | Image.Image,
    texts: Sequence[str],
    *,
    device: torch.device | str = "cpu",
    explain: bool = False,
    probabilities: bool = False,
) -> Prediction:
    """Segment what each text names in an image. The image is encoded once.

    Args:
        checkpoint: Folder of a run or of a checkpoint, or a loaded checkpoint.
        image: A file that Pillow reads, or a picture.
        texts: Phrases, each of which gets its own mask.
        device: Device on which the model runs. It is ignored for a loaded checkpoint.
        explain: Also return what the model attended to.
        probabilities: Also keep the probability of each pixel, 4 bytes per pixel and text.

    Raises:
        UsageError: If there is no text, or one is empty or not a string.
        ImageError: If the image cannot be read.
        CheckpointError: If the checkpoint cannot be loaded.
    """
    check_texts(texts)
    picture = read_picture(local_path(image)) if isinstance(image, Path) else _to_rgb(image)
    if isinstance(checkpoint, Path):
        checkpoint = load_checkpoint(checkpoint, device)
    segmenter = Segmenter(model=checkpoint.model, recipe=checkpoint.recipe)
    encoded = segmenter.encode(picture)
    masks, explanations, maps = [], [], []
    # One text at a time, since the probabilities of a large picture take more memory than the model.
    for text in texts:
        token_ids = segmenter.read_text(text)
        mask_logits = segmenter.score(encoded, token_ids)
        masks.append(segmenter.mask(encoded, mask_logits))
        if explain:
            explanations.append(segmenter.explain(encoded, token_ids))
        if probabilities:
            maps.append(segmenter.probabilities(encoded, mask_logits, encoded.size))
    return Prediction(
        picture=picture,
        texts=tuple(texts),
        masks=np.stack(masks),
        explanations=tuple(explanations),
        probabilities=np.stack(maps) if probabilities else None,
    )


def check_texts(texts: Sequence[str]) -> None:
    """Refuse texts without words.

    Raises:
        UsageError: If there is no text, or one is empty or not a text.
    """
    if not texts:
        raise UsageError("found no text, expected at least one phrase such as 'the red cup on the left'")
    for number, text in enumerate(texts, 1):
        if not isinstance(text, str):
            raise UsageError(f"text {number}: found {text!r:.60}, expected a phrase such as 'the red cup on the left'")
        if not text.strip():
            raise UsageError(f"text {number} is empty; expected a phrase such as 'the red cup on the left'")
        if not tokenizer.shows_words(text, tokenizer.encode(text)):
            raise UsageError(
                f"text {number}: found {text!a:.60}, without a visible character; expected a phrase such as "
                "'the red cup on the left'"
            )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class EncodedPicture:
    """A picture that a model encoded once for all texts.

    Attributes:
        state: The image state, whose type depends on the model.
        size: `(height, width)` of the picture in pixels.
    """

    state: Any
    size: tuple[int, int]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Segmenter:
    """The separate steps from a picture and texts to masks. A picture is encoded once for all its texts.

    Attributes:
        model: The model, in evaluation mode.
        recipe: Recipe of the model: input size, geometry, tokens, and the protocol by which masks are made.
    """

    model: SegmentationModel
    recipe: Recipe

    @property
    def geometry(self) -> Geometry:
        """The geometry by which pictures are resized to the network's input."""
        return Geometry(kind=self.recipe.data.geometry, size=self.recipe.data.input_size, mean=self.model.image_mean)

    @property
    def protocol(self) -> Protocol:
        """The rule by which scores become a mask."""
        return find_protocol(self.recipe.eval.protocol)

    @torch.inference_mode()
    def encode(self, picture: UInt8[np.ndarray, "H W 3"]) -> EncodedPicture:
        """Encode an RGB picture. This step needs most of the time."""
        resized = self.geometry.apply_image(torch.from_numpy(picture).permute(2, 0, 1))
        images = normalise(resized[None].to(self._device), self.model.image_mean, self.model.image_std)
        return EncodedPicture(state=self.model.encode_image(images), size=(picture.shape[0], picture.shape[1]))

    def read_text(self, text: str) -> tuple[int, ...]:
        """Return token ids with SOS and EOS.

        A sentence that is too long for the model is truncated, which is logged.
        """
        token_ids, num_tokens = tokenizer.encode(text), self.recipe.data.num_tokens
        kept = tokenizer.truncate(token_ids, num_tokens)
        if len(kept) < len(token_ids):
            shown = text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
            logger.warning("the model reads %d tokens: %r is cut to %r", num_tokens, shown, tokenizer.decode(kept))
        return kept

    @torch.inference_mode()
    def score(self, encoded: EncodedPicture, token_ids: Sequence[int]) -> Float[Tensor, "1 1 h w"]:
        """Return the mask logits of one sentence, at the resolution of the model's output."""
        ids = torch.tensor([list(token_ids)], device=self._device)
        text_state = self.model.encode_text(ids, torch.ones_like(ids, dtype=torch.bool))
        return self.model.decode(encoded.state, text_state, torch.zeros(1, dtype=torch.int64, device=self._device))

    @torch.inference_mode()
    def mask(self, encoded: EncodedPicture, mask_logits: Float[Tensor, "1 1 h w"]) -> Bool[np.ndarray, "H W"]:
        """Return the mask at the picture's size, by the recipe's protocol."""
        masks = masks_at_original_size(
            mask_logits, original_size=encoded.size, geometry=self.geometry, protocol=self.protocol
        )
        mask: Bool[np.ndarray, "H W"] = masks[0].cpu().numpy()
        return mask

    @torch.inference_mode()
    def probabilities(
        self, encoded: EncodedPicture, mask_logits: Float[Tensor, "1 1 h w"], size: tuple[int, int]
    ) -> Float[np.ndarray, "H W"]:
        """Return the probability of object, 0 to 1, over the picture at `size`: `(height, width)` in pixels."""
        values = F.interpolate(mask_logits.float().sigmoid(), self.geometry.size, mode="bilinear", align_corners=False)
        over: Float[np.ndarray, "H W"] = self.geometry.invert(values[:, 0], encoded.size, size)[0].cpu().numpy()
        return over

    def explain(self, encoded: EncodedPicture, token_ids: Sequence[int]) -> SentenceExplanation:
        """Return what the model attended to for one sentence."""
        return explain_sentence(self.model, encoded.state, token_ids, geometry=self.geometry, picture_size=encoded.size)

    @property
    def _device(self) -> torch.device:
        return next(self.model.parameters()).device


@dataclass(frozen=True, slots=True, kw_only=True)
class PictureSize:
    """The largest size of a picture.

    Attributes:
        pixels: Number of pixels.
        side: Pixels of the longer side. The time to resize a line of millions of pixels exceeds that of its area.
        aspect: The longer side over the shorter one. The network would see a longer strip as less than a pixel wide.
    """

    pixels: int
    side: int
    aspect: float

    def check(self, name: str, width: int, height: int) -> None:
        """Check that a picture of `width` x `height` pixels is not larger.

        Raises:
            ImageError: If it is larger.
        """
        found = f"{name}: found {width} x {height} pixels, expected at most"
        if width * height > self.pixels:
            raise ImageError(f"{found} {self.pixels / 1e6:g} million; scale it down first")
        if max(width, height) > self.side:
            raise ImageError(f"{found} {self.side:,} a side; scale it down first")
        if max(width, height) > self.aspect * min(width, height):
            raise ImageError(f"{found} {self.aspect:g} times as long as wide; cut it into pieces first")


def read_picture(path: Path) -> UInt8[np.ndarray, "H W 3"]:
    """Read an image as upright RGB. The EXIF rotation is applied, and transparent areas become white.

    Raises:
        ImageError: If the file does not exist or is not an image. If the image is damaged or unreasonably large.
    """
    return _read(path, name=str(path), kinds=None, largest=None)


def decode_picture(
    data: bytes, *, name: str, kinds: Sequence[str] | None = None, largest: PictureSize | None = None
) -> UInt8[np.ndarray, "H W 3"]:
    """Decode an image as `read_picture` does. For untrusted images, set the limits.

    Args:
        data: The file's bytes.
        name: For messages.
        kinds: Pillow's names of the file formats that are accepted. No other reader is called. If None, all formats are
            accepted.
        largest: Largest accepted size. A larger image is refused after reading its header, before memory is allocated.
            None means Pillow's own limit.

    Raises:
        ImageError: If the data are not an image of these formats. If the image is damaged, too large or too elongated.
    """
    return _read(io.BytesIO(data), name=name, kinds=kinds, largest=largest)


def _read(
    source: Path | io.BytesIO, *, name: str, kinds: Sequence[str] | None, largest: PictureSize | None
) -> UInt8[np.ndarray, "H W 3"]:
    try:
        with warnings.catch_warnings():
            # Pillow warns about files that it can read: damaged EXIF, more than 89 megapixels. It refuses 179.
            warnings.simplefilter("ignore")
            with Image.open(source, formats=kinds) as picture:
                if largest is not None:
                    largest.check(name, picture.width, picture.height)
                return _to_rgb(picture)
    except FileNotFoundError as error:
        raise MissingImageError(f"{name}: no such file; expected an image") from error
    except IsADirectoryError as error:
        raise MissingImageError(f"{name}: is a folder; expected an image") from error
    except UnidentifiedImageError as error:
        expected = "JPEG, PNG, WebP, ..." if kinds is None else ", ".join(kinds)
        raise ImageError(f"{name}: not an image of a kind that is read here; expected {expected}") from error
    except Image.DecompressionBombError as error:
        limit = f"; expected at most {largest.pixels / 1e6:g} million pixels" if largest is not None else ""
        raise ImageError(f"{name}: too large ({error}){limit}; scale it down first") from error
    except (OSError, SyntaxError, ValueError) as error:  # Pillow's readers raise these for damaged files
        raise ImageError(f"{name}: cannot be read as an image ({error}); take an undamaged file") from error


def _to_rgb(picture: Image.Image) -> UInt8[np.ndarray, "H W 3"]:
    upright = ImageOps.exif_transpose(picture)
    if upright.mode.startswith("I") or upright.mode == "F":
        # 16-bit and float greyscale, which Pillow would clip at 255. Floats are 0 to 1, or have the range of integers.
        grey = np.nan_to_num(np.asarray(upright).astype(np.float64))
        whites = (1, 255, 65535) if upright.mode == "F" else (255, 65535)
        top = next((white for white in whites if grey.max() <= white), 65535)
        upright = Image.fromarray((grey.clip(0, top) * (255 / top)).astype(np.uint8))
    if upright.has_transparency_data:
        rgba = upright.convert("RGBA")
        upright = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    return np.array(upright.convert("RGB"))


def box_xywh(mask: Bool[np.ndarray, "H W"]) -> tuple[int, int, int, int] | None:
    """Return the box around a mask as left, top, width and height in pixels. Return None for an empty mask."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return None
    return (
        int(columns[0]),
        int(rows[0]),
        int(columns[-1] - columns[0] + 1),
        int(rows[-1] - rows[0] + 1),
    )
