"""Reads ReasonSeg as LISA publishes it: one labelme file per picture, with questions and regions to ignore."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError
from pycocotools import mask as coco_mask

from pipelines.sources.json_stream import read_json
from pipelines.sources.layouts.labelme import draw_shape
from pipelines.sources.regions import Size, pack_mask, read_size
from pipelines.sources.row_reader import Rows, refuse_layout, row_reader
from pipelines.sources.source_file import open_source
from pipelines.sources.table import RowFault
from refseg.errors import AnnotationError
from refseg.json_text import parse_json
from refseg.values import short

logger = logging.getLogger(__name__)

_TARGET, _IGNORED = 1, 255
_LABELS = {"target": _TARGET, "ignore": _IGNORED}


def rows(path: Path) -> Rows:
    """Yield one row per text of the picture. All texts name the same target.

    As in LISA's code, shapes are drawn over each other, from the largest to the smallest. Shapes with the label
    `target` are the object, those with `ignore` are not scored, and those with `flag` are left out. Edges are drawn
    with COCO's rule; LISA's code draws them one pixel wider.

    The picture is beside the file and has the same name with `.jpg`. If the file does not state the picture's size, it
    is read from the picture. A file that is not UTF-8 is read as Windows-1252, as in LISA's code, and a warning is
    logged.

    Raises:
        AnnotationError: If the file is not ReasonSeg's JSON.
    """
    record = _read(path)
    if not isinstance(record, dict) or not isinstance(record.get("shapes"), list) or "text" not in record:
        raise refuse_layout(path, short(record), "ReasonSeg's object with text and shapes")
    picture = f"{path.name.partition('.json')[0]}.jpg"
    try:
        size = _size(record, path.parent / picture)
        drawn = _draw(record["shapes"], size)
    except RowFault as fault:
        yield "shapes", fault
        return
    target = _runs(drawn == _TARGET) if (drawn == _TARGET).any() else None
    ignored = _runs(drawn == _IGNORED) if (drawn == _IGNORED).any() else None
    texts = record["text"] if isinstance(record["text"], list) else [record["text"]]
    facts = {"image": picture, "height": size[0], "width": size[1], "ignore": ignored}
    for number, text in enumerate(texts):
        yield f"text[{number}]", {**facts, "sentence": text, **({"rle": target} if target else {"no_target": True})}


def _read(path: Path) -> Any:
    try:
        return read_json(path)
    except AnnotationError as error:
        if not isinstance(error.__cause__, UnicodeDecodeError):
            raise
    with open_source(path) as file:
        data = file.read()
    try:
        record = parse_json(data.decode("cp1252"))
    except ValueError as error:
        raise AnnotationError(f"{path}: is neither UTF-8 nor Windows-1252 that is JSON; save it as UTF-8") from error
    logger.warning("%s: is not UTF-8 and was read as Windows-1252", path)
    return record


def _size(record: dict[str, Any], picture: Path) -> Size:
    if record.get("imageHeight") is not None:
        return read_size(record["imageHeight"], record.get("imageWidth"))
    try:
        with Image.open(picture) as opened:
            return read_size(opened.height, opened.width)
    except (OSError, UnidentifiedImageError) as error:
        raise RowFault(
            f"found no imageHeight, and no picture {picture.name} beside the file to read it from"
        ) from error


def _draw(shapes: list[Any], size: Size) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Draw labels `(H, W)`: 1 for the target, 255 for ignored pixels and 0 elsewhere."""
    drawn: list[tuple[int, int, dict[str, Any]]] = []
    for number, shape in enumerate(shapes):
        label = str(shape.get("label")).lower() if isinstance(shape, dict) else None
        if label == "flag":
            continue
        if label not in _LABELS:
            raise RowFault(f"found shapes[{number}] {short(shape)}, expected the label target, ignore or flag")
        packed, _ = draw_shape(shape, size)
        drawn.append((int(coco_mask.area(packed)), _LABELS[label], packed))
    canvas = np.zeros(size, np.uint8)
    for _, value, packed in sorted(drawn, key=lambda part: -part[0]):
        canvas[coco_mask.decode(packed) > 0] = value
    return canvas


def _runs(mask: np.ndarray[Any, np.dtype[np.bool_]]) -> dict[str, Any]:
    packed = pack_mask(mask)
    return {"size": list(packed["size"]), "counts": packed["counts"].decode()}


READER = row_reader(
    name="reasonseg", reads="ReasonSeg's JSON files, one per picture", suffixes=(".json",), rows=rows, per_image=True
)
