"""Reads Label Studio's JSON export: brushes, polygons and rectangles, each with text fields or a label."""

import re
from collections import defaultdict
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import numpy as np
from numpy.typing import NDArray

from pipelines.sources.json_stream import JsonList
from pipelines.sources.regions import Region, Size, draw_box, draw_polygon, pack_mask, read_size, region_rows
from pipelines.sources.row_reader import Rows, refuse_layout, row_reader, warn_left_out
from pipelines.sources.table import RowFault
from refseg.values import short, whole_number

_CHANNELS = 4  # a brush is stored as a picture of red, green, blue and alpha
_SHAPES = ("brush", "polygon", "rectangle")


def rows(path: Path) -> Rows:
    """Yield the rows of each task. A region's text fields hold the sentences. Without text, the label is used.

    A task with several annotations is a fault unless one of them is marked as ground truth. Tasks without an annotation
    and shapes of other kinds make no row. Warnings state the numbers of both.

    Raises:
        AnnotationError: If the file is not Label Studio's JSON export.
    """
    without, other_shapes = 0, 0
    for number, task in enumerate(JsonList(path, items="tasks")):
        place = f"task {short(task.get('id'))}" if isinstance(task, dict) else f"[{number}]"
        if not isinstance(task, dict) or "annotations" not in task:
            expected = "tasks with data and annotations, Label Studio's export as JSON (not JSON-MIN)"
            raise refuse_layout(path, f"{place} {short(task)}", expected)
        try:
            annotation = _choose_annotation(task["annotations"])
            if annotation is None:
                without += 1
                continue
            image = find_image(task)
        except RowFault as fault:
            yield place, fault
            continue
        regions: list[Region] = []
        size: Size | None = None
        results = [result for result in annotation["result"] if isinstance(result, dict)]
        texts = _read_texts(results)
        for result in results:
            if str(result.get("type", "")).removesuffix("labels") not in _SHAPES:
                other_shapes += "points" in str(result.get("type")) or "ellipse" in str(result.get("type"))
                continue
            try:
                size = read_size(result.get("original_height"), result.get("original_width"))
                regions.append(_region(result, size, texts.get(str(result.get("id")), ())))
            except RowFault as fault:
                yield f"{place} region {short(result.get('id'))}", fault
        if size is not None:
            yield from ((f"{place} {where}", row) for where, row in region_rows(image, size, regions))
    warn_left_out(path, without, "tasks without an annotation")
    warn_left_out(path, other_shapes, f"regions that are not {', '.join(_SHAPES)}")


def find_image(task: dict[str, Any]) -> str:
    """Return the original name of a task's picture, without the prefix that Label Studio adds to uploads.

    Raises:
        RowFault: If the task has no picture, or more than one.
    """
    data = task.get("data")
    texts = [text for text in data.values() if isinstance(text, str)] if isinstance(data, dict) else []
    address = data.get("image") if isinstance(data, dict) and isinstance(data.get("image"), str) else None
    if address is None:
        pictures = [text for text in texts if re.search(r"\.(jpe?g|png|webp|bmp|tiff?)(\?|$)", text.lower())]
        if len(pictures) != 1:
            raise RowFault(f"found data {short(data)}, expected the picture's address under image")
        address = pictures[0]
    parts = urlsplit(address)
    if local := parse_qs(parts.query).get("d"):  # /data/local-files/?d=folder/a.jpg
        return local[0]
    name = unquote(parts.path) if parts.scheme or address.startswith("/") else address
    if name.startswith("/data/upload/"):
        return re.sub(r"^[0-9a-f]{8}-", "", PurePosixPath(name).name)
    return PurePosixPath(name).name if parts.scheme else name.lstrip("/")


def decode_brush(numbers: Any, size: Size) -> NDArray[np.bool_]:
    """Decode a brush's mask `(H, W)` from Label Studio's run lengths, whose format is thi.ng/rle-pack.

    The bytes are one string of bits. The header has 32 bits for the number of values, 5 bits for the width of a value
    minus one, and four times 4 bits for the widths of four kinds of length, each minus one.

    Then blocks follow. The first bit of a block is 1 for a run of one value, and 0 for single values. The next two bits
    are the kind of length. Then follow the length minus one, and the value or values. The values are red, green, blue
    and alpha of each pixel, row by row. The mask is True where alpha is above 0.

    Example: if a length of kind 0 has 3 bits and a value has 8 bits, the block 1 00 101 11111111 is the value 255,
    repeated 6 times.

    Args:
        numbers: The bytes, as a list of numbers.
        size: `(height, width)` of the picture in pixels.

    Raises:
        RowFault: If the numbers are not in this format, or belong to a picture of another size.
    """
    try:
        bits = _Bits(np.unpackbits(np.array(numbers, np.uint8)))
        total, value_bits = bits.read(32), bits.read(5) + 1
        length_bits = [bits.read(4) + 1 for _ in range(4)]
        if total != size[0] * size[1] * _CHANNELS:
            raise RowFault(
                f"found run lengths of {total} values, expected {_CHANNELS} for each pixel of {size[1]} x {size[0]}"
            )
        values = np.zeros(total, np.uint8)
        start = 0
        while start < total:
            is_run = bits.read(1)
            end = start + 1 + bits.read(length_bits[bits.read(2)])
            if end > total:
                raise ValueError("too long")
            if is_run:
                values[start:end] = bits.read(value_bits)
            else:
                values[start:end] = bits.read_many(value_bits, end - start)
            start = end
    except (ValueError, TypeError, OverflowError) as error:
        raise RowFault("found damaged run lengths of a brush, expected Label Studio's list of bytes") from error
    return values.reshape(*size, _CHANNELS)[..., 3] > 0


class _Bits:
    """A string of bits `(N,)` that is read from the start. The highest bit of a number is first."""

    def __init__(self, bits: NDArray[np.uint8]) -> None:
        self._bits = bits
        self._at = 0

    def read(self, count: int) -> int:
        return int(self.read_many(count, 1)[0])

    def read_many(self, count: int, numbers: int) -> NDArray[np.int64]:
        part = self._bits[self._at : self._at + count * numbers]
        if len(part) < count * numbers:
            raise ValueError("the bits end too early")
        self._at += count * numbers
        weights = 1 << np.arange(count - 1, -1, -1, dtype=np.int64)
        return part.reshape(numbers, count).astype(np.int64) @ weights


def _choose_annotation(annotations: Any) -> dict[str, Any] | None:
    """Return the annotation of a task to use; None if the task has no annotation."""
    listed = annotations if isinstance(annotations, list) else []
    found = [one for one in listed if isinstance(one, dict) and not one.get("was_cancelled")]
    if len(found) > 1:
        truths = [one for one in found if one.get("ground_truth")]
        if len(truths) != 1:
            raise RowFault(f"found {len(found)} annotations, expected one; mark one of them as ground truth")
        found = truths
    if found and not isinstance(found[0].get("result"), list):
        raise RowFault(f"found an annotation with result {short(found[0].get('result'))}, expected a list of regions")
    return found[0] if found else None


def _read_texts(results: list[dict[str, Any]]) -> dict[str, tuple[str, ...]]:
    """Return the sentences by region id."""
    texts: defaultdict[str, tuple[str, ...]] = defaultdict(tuple)
    for result in results:
        value = result.get("value")
        if result.get("type") == "textarea" and isinstance(value, dict):
            found = value.get("text")
            for text in found if isinstance(found, list) else [found]:
                if isinstance(text, str):
                    texts[str(result.get("id"))] += tuple(filter(None, map(str.strip, text.splitlines())))
    return texts


def _region(result: dict[str, Any], size: Size, sentences: tuple[str, ...]) -> Region:
    value = result.get("value")
    kind = str(result["type"]).removesuffix("labels")
    if not isinstance(value, dict):
        raise RowFault(f"found value {short(value)}, expected the shape of a {kind}")
    labels = value.get(f"{kind}labels") or []
    label = ", ".join(map(str, labels)) if isinstance(labels, list) else str(labels)
    if kind == "brush":
        if value.get("format") != "rle":
            raise RowFault(f"found a brush in the format {short(value.get('format'))}, expected rle")
        return Region(label=label, sentences=sentences, shape=pack_mask(decode_brush(value.get("rle"), size)))
    height, width = size
    if kind == "polygon":
        points = value.get("points")
        scaled = [_scale(point, size) for point in points] if isinstance(points, list) else []
        return Region(label=label, sentences=sentences, shape=draw_polygon(scaled, size))
    sides = [value.get(name) for name in ("x", "y", "width", "height")]
    if not all(type(side) in (int, float) for side in sides) or whole_number(value.get("rotation") or 0) != 0:
        raise RowFault(f"found the rectangle {short(value)}, expected x, y, width, height in percent and no rotation")
    box = tuple(side * scale / 100 for side, scale in zip(sides, (width, height, width, height), strict=True))  # type: ignore[operator]
    return Region(
        label=label, sentences=sentences, shape=draw_box(box, size), box_xywh=(box[0], box[1], box[2], box[3])
    )


def _scale(point: Any, size: Size) -> Any:
    """Convert a corner from percent of the picture to pixels. Other values are returned unchanged and refused later."""
    if not isinstance(point, list) or len(point) != 2 or not all(type(part) in (int, float) for part in point):
        return point
    return [point[0] * size[1] / 100, point[1] * size[0] / 100]


READER = row_reader(name="label-studio", reads="Label Studio's export as JSON", suffixes=(".json",), rows=rows)
