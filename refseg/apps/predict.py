"""Segment any picture a user has: a checkpoint, an image, some texts; masks at the image's own size."""

import logging
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, UInt8
from PIL import Image, ImageOps, UnidentifiedImageError

from refseg import tokenizer
from refseg.data.transforms import Geometry, normalise
from refseg.errors import ImageError, UsageError
from refseg.evaluation.explanation import SentenceExplanation, explain_sentence
from refseg.evaluation.heat_maps import draw_explanation
from refseg.evaluation.inference import masks_at_original_size
from refseg.evaluation.overlay import draw_overlay
from refseg.evaluation.protocols import find_protocol
from refseg.training.checkpoint import Checkpoint, load_checkpoint

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Prediction:
    """Masks of one image.

    Attributes:
        picture: RGB, upright.
        texts: As given.
        masks: One per text, at the picture's size: True is object.
        explanations: One per text, what the model looked at; empty where not asked for.
    """

    picture: UInt8[np.ndarray, "H W 3"]
    texts: tuple[str, ...]
    masks: Bool[np.ndarray, "n H W"]
    explanations: tuple[SentenceExplanation, ...] = ()

    @property
    def covered_shares(self) -> list[float]:
        """Share of the picture each mask covers, 0 to 1."""
        return [float(mask.mean()) for mask in self.masks]

    @property
    def boxes_xywh(self) -> list[tuple[int, int, int, int] | None]:
        """Box around each mask: left, top, width, height in pixels; None for an empty mask."""
        return [_box_xywh(mask) for mask in self.masks]

    def overlay(self, number: int) -> UInt8[np.ndarray, "H W 3"]:
        """The picture with the mask of one text drawn over it."""
        return draw_overlay(self.picture, self.masks[number])

    def explanation_picture(self, number: int) -> UInt8[np.ndarray, "h w 3"] | None:
        """Heat maps of one text's explanation; None where its model has no map."""
        return draw_explanation(self.picture, self.explanations[number])


def segment(
    checkpoint: Path | Checkpoint,
    image: Path | Image.Image,
    texts: Sequence[str],
    *,
    device: torch.device | str = "cpu",
    explain: bool = False,
) -> Prediction:
    """Find what each text names in an image. The image is encoded once.

    Args:
        checkpoint: A run's folder, a checkpoint's, or a loaded checkpoint.
        image: A file of any kind Pillow reads, or a picture.
        texts: What to look for, each on its own.
        device: Where the model runs; a loaded checkpoint says that itself.
        explain: Also say what the model looked at.

    Raises:
        UsageError: If there is no text, or one is empty.
        ImageError: If the image cannot be read.
        CheckpointError: If the checkpoint cannot be loaded.
    """
    if not texts:
        raise UsageError("found no text, expected at least one phrase such as 'the red cup on the left'")
    for number, text in enumerate(texts, 1):
        if not text.strip():
            raise UsageError(f"text {number} is empty; expected a phrase such as 'the red cup on the left'")
    picture = read_picture(image) if isinstance(image, Path) else _to_rgb(image)
    if isinstance(checkpoint, Path):
        checkpoint = load_checkpoint(checkpoint, device)
    model, recipe = checkpoint.model, checkpoint.recipe
    device = next(model.parameters()).device
    geometry = Geometry(kind=recipe.data.geometry, size=recipe.data.input_size, mean=model.image_mean)
    protocol = find_protocol(recipe.eval.protocol)
    resized = geometry.apply_image(torch.from_numpy(picture).permute(2, 0, 1))
    masks, explanations = [], []
    size = (picture.shape[0], picture.shape[1])
    with torch.inference_mode():
        image_state = model.encode_image(normalise(resized[None].to(device), model.image_mean, model.image_std))
        # One text at a time: a large picture's probabilities take more memory than the model.
        for text in texts:
            own_ids = _token_ids(text, recipe.data.num_tokens)
            token_ids = torch.tensor([own_ids], device=device)
            text_state = model.encode_text(token_ids, torch.ones_like(token_ids, dtype=torch.bool))
            mask_logits = model.decode(image_state, text_state, torch.zeros(1, dtype=torch.int64, device=device))
            mask = masks_at_original_size(mask_logits, original_size=size, geometry=geometry, protocol=protocol)
            masks.append(mask[0].cpu().numpy())
            if explain:
                found = explain_sentence(model, image_state, own_ids, geometry=geometry, picture_size=size)
                explanations.append(found)
    return Prediction(picture=picture, texts=tuple(texts), masks=np.stack(masks), explanations=tuple(explanations))


def read_picture(path: Path) -> UInt8[np.ndarray, "H W 3"]:
    """Read an image of any kind as upright RGB: EXIF rotation applied, transparency laid on white.

    Raises:
        ImageError: If there is no such file, or it is not an image, or is damaged or too large to be meant.
    """
    try:
        with warnings.catch_warnings():
            # Pillow warns from 89 megapixels and refuses from 179; a warning is no reason to fail.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path) as picture:
                return _to_rgb(picture)
    except FileNotFoundError as error:
        raise ImageError(f"{path}: no such file; expected an image") from error
    except UnidentifiedImageError as error:
        raise ImageError(f"{path}: not an image of a kind that Pillow reads; expected JPEG, PNG, WebP, ...") from error
    except Image.DecompressionBombError as error:
        raise ImageError(f"{path}: too large ({error}); scale it down first") from error
    except (OSError, SyntaxError, ValueError) as error:  # what Pillow's readers raise on damaged files
        raise ImageError(f"{path}: cannot be read as an image ({error}); take an undamaged file") from error


def _to_rgb(picture: Image.Image) -> UInt8[np.ndarray, "H W 3"]:
    upright = ImageOps.exif_transpose(picture)
    if upright.mode.startswith("I") or upright.mode == "F":
        # 16-bit and float greyscale: Pillow would clip at 255 and leave white.
        grey = np.asarray(upright).astype(np.float64)
        top = 65535 if grey.max() > 255 else 255
        upright = Image.fromarray((grey.clip(0, top) * (255 / top)).astype(np.uint8))
    if upright.has_transparency_data:
        rgba = upright.convert("RGBA")
        upright = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    return np.array(upright.convert("RGB"))


def _token_ids(text: str, num_tokens: int) -> tuple[int, ...]:
    token_ids = tokenizer.encode(text)
    if len(token_ids) > num_tokens:
        kept = tokenizer.truncate(token_ids, num_tokens)
        logger.warning("the model reads %d tokens: %r is cut to %r", num_tokens, text, tokenizer.decode(kept[1:-1]))
        return kept
    return token_ids


def _box_xywh(mask: Bool[np.ndarray, "H W"]) -> tuple[int, int, int, int] | None:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return None
    return (
        int(columns[0]),
        int(rows[0]),
        int(columns[-1] - columns[0] + 1),
        int(rows[-1] - rows[0] + 1),
    )
