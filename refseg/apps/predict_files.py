"""Writes masks, overlays and heat maps of `refseg predict`, each under a name that no other result has."""

import hashlib
import itertools
import json
import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from refseg.apps.options import PredictOptions
from refseg.apps.picture_files import RESULT_KINDS, PictureFile, find_pictures
from refseg.apps.predict import Prediction, check_texts, decode_picture, segment
from refseg.aside import file_aside
from refseg.errors import ImageError
from refseg.json_text import parse_json
from refseg.training.checkpoint import Checkpoint, load_checkpoint

_KEY = "refseg"
"""Key of the PNG's text that records the picture, sentence and checkpoint of a result."""
_LONGEST_STEM = 180
"""Largest number of bytes of a stem; with what is added, names stay within the 255 that file systems allow."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictionFiles:
    """The files of one sentence.

    Attributes:
        mask: The mask, in which the object is 255 and the rest 0.
        overlay: The picture with the outline of the mask.
        explain: The heat maps. None if there are none.
    """

    mask: Path
    overlay: Path
    explain: Path | None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PictureResult:
    """The result of one picture.

    Attributes:
        image: Path or URL of the picture.
        prediction: The masks. None if the picture cannot be read.
        files: The files of each text, in the order of the texts.
        error: Reason why the picture cannot be read. Empty if it was read.
    """

    image: str
    prediction: Prediction | None = None
    files: tuple[PredictionFiles, ...] = ()
    error: str = ""


def predict_pictures(options: PredictOptions) -> Iterator[PictureResult]:
    """Segment what each text names in each picture, and write masks, overlays and heat maps.

    A picture that cannot be read is reported in its result, and the others are segmented nevertheless.

    Yields:
        The result of each picture, once its files are written.

    Raises:
        UsageError: If a text has no visible character, or a folder contains no picture.
        MissingImageError: If the path of a picture does not exist. Nothing is written in this case.
        CheckpointError: If the checkpoint cannot be loaded.
        OSError: If a file cannot be written.
    """
    check_texts(options.texts)
    pictures = find_pictures(options.images)
    checkpoint = load_checkpoint(options.checkpoint, "cuda" if torch.cuda.is_available() else "cpu")
    for picture in pictures:
        try:
            data = picture.read()
            pixels = decode_picture(data, name=picture.address)
        except ImageError as error:
            yield PictureResult(image=picture.address, error=str(error))
            continue
        prediction = segment(checkpoint, Image.fromarray(pixels), options.texts, explain=options.explain)
        files = _write_prediction(options.out, picture, data, prediction, checkpoint)
        yield PictureResult(image=picture.address, prediction=prediction, files=files)


def _write_prediction(
    out: Path, picture: PictureFile, data: bytes, prediction: Prediction, checkpoint: Checkpoint
) -> tuple[PredictionFiles, ...]:
    """Write the results of one picture.

    The files are named after the picture, for example `photo.mask.png`. With several sentences, the names are
    `photo-1.mask.png` and so on. A file of another picture, sentence or checkpoint is never replaced. Instead, the next
    free number is used. Repeating the same call replaces the files of the earlier call.

    Args:
        out: Folder to write to. It is created if it does not exist.
        picture: The picture.
        data: Bytes of the picture's file.
        prediction: Prediction for this picture.
        checkpoint: Checkpoint that predicted it.

    Returns:
        The files of each sentence.

    Raises:
        OSError: If a file cannot be written.
    """
    out.mkdir(parents=True, exist_ok=True)
    stem = os.fsencode(picture.stem)[:_LONGEST_STEM].decode(errors="ignore")
    source = {
        "picture_sha256": hashlib.sha256(data).hexdigest(),
        "checkpoint": str(checkpoint.folder.resolve()),
        "step": checkpoint.step,
    }
    written = []
    for number, text in enumerate(prediction.texts):
        facts = {**source, "text": text}
        first = stem if len(prediction.texts) == 1 else f"{stem}-{number + 1}"
        name = _claim_name(out, first, stem, facts)
        files = PredictionFiles(
            mask=out / f"{name}.mask.png",
            overlay=out / f"{name}.overlay.png",
            explain=out / f"{name}.explain.png" if prediction.explanations else None,
        )
        _write(files.overlay, prediction.overlay(number), facts)
        heat_maps = prediction.explanation_picture(number) if files.explain else None
        if files.explain and heat_maps is not None:
            _write(files.explain, heat_maps, facts)
        else:
            files = PredictionFiles(mask=files.mask, overlay=files.overlay, explain=None)
        _write(files.mask, prediction.masks[number].astype(np.uint8) * 255, facts)
        written.append(files)
    return tuple(written)


def _claim_name(out: Path, first: str, stem: str, facts: dict[str, Any]) -> str:
    """Find the first name that is free or is used for this result, and reserve it by an empty mask file."""
    for name in itertools.chain([first], (f"{stem}-{number}" for number in itertools.count(2))):
        taken = [path for kind in RESULT_KINDS if (path := out / f"{name}.{kind}.png").exists()]
        if any(_facts_of(path) != facts for path in taken):
            continue
        if taken:
            return name
        try:
            (out / f"{name}.mask.png").touch(exist_ok=False)
        except FileExistsError:  # another process has just taken it
            continue
        return name
    raise AssertionError("numbers do not end")


def _facts_of(path: Path) -> object:
    """Return the record in a PNG. Return None if there is none."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's warning about 89 megapixels
            with Image.open(path, formats=["PNG"]) as picture:
                return parse_json(picture.info.get(_KEY, "null"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None


def _write(path: Path, pixels: Any, facts: dict[str, Any]) -> None:
    """Write a PNG completely or not at all."""
    info = PngInfo()
    info.add_text(_KEY, json.dumps(facts))
    with file_aside(path) as aside:
        Image.fromarray(pixels).save(aside, "PNG", pnginfo=info)
