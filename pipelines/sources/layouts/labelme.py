"""Reads labelme's JSON files, one per picture. Shapes have a label and optionally a description and a group."""

import base64
import binascii
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from pipelines.sources.json_stream import read_json
from pipelines.sources.regions import Region, Size, draw_box, draw_polygon, pack_mask, read_size, region_rows
from pipelines.sources.row_reader import Rows, refuse_layout, row_reader, warn_left_out
from pipelines.sources.table import RowFault
from refseg.values import short

_WITHOUT_AREA = ("point", "points", "line", "linestrip")


def rows(path: Path) -> Rows:
    """Yield the rows of one picture.

    A shape's `description` holds the sentences, one per line. Without a description, the label is used.

    Raises:
        AnnotationError: If the file is not labelme's JSON.
    """
    record = read_json(path)
    if not isinstance(record, dict) or not isinstance(record.get("shapes"), list):
        raise refuse_layout(path, short(record), "labelme's object with imagePath and shapes")
    try:
        size = read_size(record.get("imageHeight"), record.get("imageWidth"))
    except RowFault as fault:
        yield "imageHeight, imageWidth", fault
        return
    regions, left_out = [], 0
    for number, shape in enumerate(record["shapes"]):
        try:
            if isinstance(shape, dict) and shape.get("shape_type") in _WITHOUT_AREA:
                left_out += 1
            else:
                regions.append(_region(shape, size))
        except RowFault as fault:
            yield f"shapes[{number}]", fault
    warn_left_out(path, left_out, "shapes without an area (points and lines)")
    image = record.get("imagePath")
    yield from region_rows(image.replace("\\", "/") if isinstance(image, str) else image, size, regions)


def _region(shape: Any, size: Size) -> Region:
    if not isinstance(shape, dict) or not isinstance(shape.get("label"), str):
        raise RowFault(f"found {short(shape)}, expected a shape with label and points")
    described = shape.get("description")
    sentences = tuple(filter(None, map(str.strip, described.splitlines()))) if isinstance(described, str) else ()
    group = shape.get("group_id")
    drawn, box = draw_shape(shape, size)
    return Region(
        label=shape["label"],
        sentences=sentences,
        group="" if group is None else str(group),
        shape=drawn,
        box_xywh=box,
    )


def draw_shape(shape: dict[str, Any], size: Size) -> tuple[dict[str, Any], tuple[float, float, float, float] | None]:
    """Draw a polygon, rectangle, circle or mask of labelme.

    Returns:
        The run lengths, and the box (None if the shape is not a rectangle).

    Raises:
        RowFault: If the shape is of another kind, or the points do not fit the kind.
    """
    kind, points = shape.get("shape_type") or "polygon", shape.get("points")
    if kind == "polygon":
        return draw_polygon(points or [], size), None
    pairs: list[Any] = points if isinstance(points, list) and len(points) == 2 else []
    if not pairs or not all(isinstance(pair, list) and len(pair) == 2 and _are_numbers(pair) for pair in pairs):
        raise RowFault(f"found the {kind} {short(points)}, expected two corners [x, y]")
    (x, y), (other_x, other_y) = pairs
    left, top, width, height = min(x, other_x), min(y, other_y), abs(other_x - x), abs(other_y - y)
    if kind == "rectangle":
        return draw_box((left, top, width, height), size), (left, top, width, height)
    if kind == "circle":  # the points are the centre and a point on the edge
        angles = np.linspace(0, 2 * np.pi, 72, endpoint=False)
        radius = float(np.hypot(other_x - x, other_y - y))
        return draw_polygon(
            np.stack([x + radius * np.cos(angles), y + radius * np.sin(angles)], 1).tolist(), size
        ), None
    if kind == "mask":
        return _paste(shape.get("mask"), (left, top), size), None
    raise RowFault(f"found a shape of type {short(kind)}, expected polygon, rectangle, circle or mask")


def _paste(encoded: Any, corner: tuple[float, float], size: Size) -> dict[str, Any]:
    """Draw a mask that labelme stores as a PNG in base64, cropped to the box of the shape's two points."""
    try:
        with Image.open(BytesIO(base64.b64decode(encoded, validate=True)), formats=["PNG"]) as picture:
            part = np.asarray(picture.convert("L")) > 0
    except (TypeError, binascii.Error, UnidentifiedImageError, OSError, ValueError) as error:
        raise RowFault("found a mask that is not a PNG in base64, as labelme writes it") from error
    whole = np.zeros(size, np.bool_)
    top, left = int(corner[1]), int(corner[0])
    if top < 0 or left < 0 or top + part.shape[0] > size[0] or left + part.shape[1] > size[1]:
        raise RowFault(
            f"found a mask of {part.shape[1]} x {part.shape[0]} pixels at {left}, {top}, outside the picture"
        )
    whole[top : top + part.shape[0], left : left + part.shape[1]] = part
    return pack_mask(whole)


def _are_numbers(pair: list[Any]) -> bool:
    return all(type(part) in (int, float) and abs(part) < 2**31 for part in pair)


READER = row_reader(
    name="labelme", reads="labelme's JSON files, one per picture", suffixes=(".json",), rows=rows, per_image=True
)
