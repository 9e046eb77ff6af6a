"""Reads CVAT's export "CVAT for images 1.1": XML with polygons, boxes and masks, and sentences in attributes."""

from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import BinaryIO
from xml.etree import ElementTree

import numpy as np

from pipelines.sources.layouts.coco import CAPTIONS
from pipelines.sources.regions import Region, Size, draw_box, draw_polygon, pack_mask, read_size, region_rows
from pipelines.sources.row_reader import Rows, find_split, refuse_layout, row_reader, warn_left_out
from pipelines.sources.source_file import open_source
from pipelines.sources.table import RowFault
from refseg.errors import AnnotationError
from refseg.values import one_line, short

_SHAPES = ("polygon", "box", "mask")
_TEXTS = (*CAPTIONS, "text")


def rows(path: Path) -> Rows:
    """Yield the rows of each picture.

    An attribute holds a shape's sentences, one per line. Without this attribute, the shape's label is used.

    A picture's `subset` (`Train`, `Validation`) is the split. Shapes of other kinds make no row. A warning states the
    number of these shapes.

    Raises:
        AnnotationError: If the file is not CVAT's XML.
    """
    left_out = 0
    for image in _images(path):
        place = f"image {short(image.get('name'))}"
        try:
            size = read_size(_number(image.get("height")), _number(image.get("width")))
        except RowFault as fault:
            yield place, fault
            continue
        regions = []
        for number, shape in enumerate(image):
            if shape.tag not in _SHAPES:
                left_out += shape.tag not in ("tag", "attribute")
                continue
            try:
                regions.append(_region(shape, size))
            except RowFault as fault:
                yield f"{place} {shape.tag}[{number}]", fault
        subset = image.get("subset") or ""
        split = {"split": find_split(PurePosixPath(subset)) or subset} if subset and subset.lower() != "default" else {}
        for where, row in region_rows(image.get("name"), size, regions):
            yield f"{place} {where}", row if isinstance(row, RowFault) else row | split
    warn_left_out(path, left_out, f"shapes that are not {', '.join(_SHAPES)}")


def _images(path: Path) -> Iterator[ElementTree.Element]:
    """Yield the `image` elements. Only one is in memory at a time."""
    try:
        with open_source(path, is_xml=True) as file:
            yield from _parse(file, path)
    except ElementTree.ParseError as error:
        raise AnnotationError(f"{path}: cannot be read as XML ({one_line(error)}); export it again") from error


def _parse(file: BinaryIO, path: Path) -> Iterator[ElementTree.Element]:
    root = None
    for event, element in ElementTree.iterparse(file, events=("start", "end")):
        if root is None:
            root = element
            if root.tag != "annotations":
                raise refuse_layout(path, f"<{root.tag}>", "CVAT's <annotations>")
        if event == "start" and element.tag == "track":
            raise refuse_layout(path, "<track>", "<image>: export the task as CVAT for images 1.1, not for video")
        if event == "end" and element.tag == "image":
            yield element
            root.clear()


def _region(shape: ElementTree.Element, size: Size) -> Region:
    box = None
    if shape.tag == "polygon":
        pairs = [part.split(",") for part in (shape.get("points") or "").split(";")]
        drawn = draw_polygon([[_float(number) for number in pair] for pair in pairs], size)
    elif shape.tag == "box":
        left, top, right, bottom = (_float(shape.get(name)) for name in ("xtl", "ytl", "xbr", "ybr"))
        if _float(shape.get("rotation") or "0"):
            raise RowFault(f"found a box with rotation {shape.get('rotation')}, expected none; draw it as a polygon")
        box = (left, top, right - left, bottom - top)
        drawn = draw_box(box, size)
    else:
        drawn = _paste(shape, size)
    texts = [
        line.strip()
        for attribute in shape.iter("attribute")
        if (attribute.get("name") or "").lower() in _TEXTS
        for line in (attribute.text or "").splitlines()
    ]
    group = shape.get("group_id") or ""
    return Region(
        label=shape.get("label") or "",
        sentences=tuple(filter(None, texts)),
        group="" if group == "0" else group,
        shape=drawn,
        box_xywh=box,
    )


def _paste(shape: ElementTree.Element, size: Size) -> dict[str, object]:
    """Draw a mask from run lengths over the rows of a box. The first run consists of zeros."""
    left, top, width, height = (_number(shape.get(name)) for name in ("left", "top", "width", "height"))
    runs = [_number(run) for run in (shape.get("rle") or "").split(",")]
    whole = np.zeros(size, np.bool_)
    is_inside = 0 <= left <= left + width <= size[1] and 0 <= top <= top + height <= size[0]
    if not is_inside:
        raise RowFault(
            f"found a mask whose box is {width} x {height} pixels at {left}, {top}, expected a box inside the image "
            f"({size[1]} x {size[0]})"
        )
    if min(runs) < 0 or sum(runs) != width * height:
        raise RowFault(
            f"found run lengths with sum {sum(runs)} and minimum {min(runs)}, expected sum {width * height} (the box "
            f"is {width} x {height} pixels) and minimum 0 or more"
        )
    part = np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(height, width)
    whole[top : top + height, left : left + width] = part
    return pack_mask(whole)


def _number(text: str | None) -> int:
    try:
        number = float(text or "")
    except ValueError:
        number = float("nan")
    if not number.is_integer() or abs(number) >= 2**31:
        raise RowFault(f"found {short(text)}, expected a whole number")
    return int(number)


def _float(text: str | None) -> float:
    try:
        number = float(text or "")
    except ValueError:
        number = float("nan")
    if not abs(number) < 2**31:
        raise RowFault(f"found {short(text)}, expected a number")
    return number


READER = row_reader(name="cvat", reads="CVAT for images 1.1, XML", suffixes=(".xml",), rows=rows)
