"""Checks the columns of one row of a user's table, and collects all mistakes in the row."""

import math
import re
from dataclasses import dataclass
from typing import Any

from pipelines.sources.table import RowFault
from refseg.dataset.schema import MAX_SIDE
from refseg.json_text import parse_json
from refseg.values import short, whole_number

REQUIRED = ("image", "sentence", "split")
TARGETS = ("ann_id", "rle", "polygons", "mask", "box", "no_target")
SPLIT_NAME = r"[A-Za-z][A-Za-z0-9]{0,63}"
"""Pattern of a split's name, which becomes part of file names."""
SPLITS = ("train", "val", "test", "testA", "testB", "testC")
"""Known names of splits, in their order."""
COLUMNS = (*REQUIRED, *TARGETS, "ref_id", "sent_id", "category", "height", "width", "ignore")

Size = tuple[int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class CustomRow:
    """A sentence and the target that it names.

    Attributes:
        image: File name, or image id in digits.
        sentence: Text as typed by the annotator.
        split: Name of the split, which consists of a letter and then letters and digits.
        kind: Kind of the target, one of `TARGETS`.
        target: Value for `kind`. `ann_id`: ids; `rle`: a list of `{"size", "counts"}` of one size; `polygons`: a list
            of flat `x, y, x, y, ...` lists; `mask`: path of a mask; `box`: left, top, width, height in pixels;
            `no_target`: None.
        ref_id: Id of the ref. If None, rows with equal image, target and split are one ref.
        sent_id: Id of the sentence. If None, the row's position is used.
        category: Name of the category; empty if it is not given.
        size: `(height, width)` of the image in pixels, from the columns height and width; None if they are not given.
        has_ignored: True if the row marks a region whose pixels should not count.
    """

    image: str
    sentence: str
    split: str
    kind: str
    target: Any
    ref_id: int | None
    sent_id: int | None
    category: str
    size: Size | None
    has_ignored: bool = False


def read_row(values: dict[str, Any]) -> CustomRow:
    """Check the values of one row.

    Args:
        values: Values by column.

    Raises:
        RowFault: If the row has mistakes. The message lists all of them.
    """
    found = {name: value for name, value in values.items() if not _is_missing(value)}
    reader = _Reader(found)
    image, sentence = reader.text("image", or_number=True), reader.text("sentence")
    split = reader.text("split").strip()
    meant = next((known for known in SPLITS if known.lower() == split.lower() and known != split), None)
    if meant is not None:
        reader.faults.append(f"found split {short(split)}, expected {meant!r}")
    elif split and not re.fullmatch(SPLIT_NAME, split):
        reader.faults.append(
            f"found split {short(split)}, expected a letter, then letters and digits, at most 64 characters"
        )
    for name in REQUIRED:
        if found.get(name) is None:
            reader.faults.append(f"found no {name}")
    kind, target = reader.target()
    size = reader.size()
    if kind == "rle" and target:
        rle_size = (target[0]["size"][0], target[0]["size"][1])
        if size is not None and size != rle_size:
            reader.faults.append(f"its rle is for size {list(rle_size)}, expected {list(size)} (height, width)")
    row = CustomRow(
        image=image,
        sentence=sentence,
        split=split,
        kind=kind,
        target=target,
        ref_id=reader.integer("ref_id"),
        sent_id=reader.integer("sent_id"),
        category=reader.text("category"),
        size=size,
        has_ignored=reader.ignored(),
    )
    if reader.faults:
        raise RowFault("; ".join(reader.faults))
    return row


class _Reader:
    """Reads the values of a row and collects mistakes."""

    def __init__(self, values: dict[str, Any]) -> None:
        self._values = values
        self.faults: list[str] = []

    def text(self, name: str, *, or_number: bool = False) -> str:
        value = self._values.get(name)
        if value is None:
            return ""
        if or_number and (number := _whole(value)) is not None:
            return str(number)
        if isinstance(value, str) and "\0" not in value and value.strip():
            return value
        self.faults.append(f"found {name} {short(value)}, expected text")
        return ""

    def integer(self, name: str) -> int | None:
        value = self._values.get(name)
        number = None if value is None else _whole(value)
        if value is not None and number is None:
            self.faults.append(f"found {name} {short(value)}, expected a whole number")
        return number

    def size(self) -> Size | None:
        height, width = self.integer("height"), self.integer("width")
        if height is None and width is None:
            return None
        if height is None or width is None or not (0 < height <= MAX_SIDE and 0 < width <= MAX_SIDE):
            self.faults.append(f"found height {height} and width {width}, expected 1 to {MAX_SIDE} pixels")
            return None
        return height, width

    def target(self) -> tuple[str, Any]:
        given = [name for name in TARGETS[:-1] if self._values.get(name) is not None]
        if self._says_no_target():
            given.append("no_target")
        if len(given) != 1:
            found = " and ".join(given) or "no target"
            self.faults.append(f"found {found}, expected one of {', '.join(TARGETS)}")
            return "", None
        kind, value = given[0], self._values[given[0]]
        if kind == "no_target":
            return kind, None
        target, expected = {
            "ann_id": (_numbers(value, whole=True), "an annotation id or several"),
            "rle": (_rles(value), "COCO's run lengths: size (height, width) and counts"),
            "polygons": (_polygons(value), "polygons of at least three corners: [[x, y, x, y, ...], ...]"),
            "mask": (value if isinstance(value, str) and "\0" not in value else None, "a path"),
            "box": (_box(value), "left, top, width, height, the last two above 0"),
        }[kind]
        if target is None:
            self.faults.append(f"found {kind} {short(value)}, expected {expected}")
        return kind, target

    def ignored(self) -> bool:
        value = self._values.get("ignore")
        if value is not None and _rles(value) is None and _polygons(value) is None:
            self.faults.append(f"found ignore {short(value)}, expected COCO's run lengths or polygons")
        return value is not None

    def _says_no_target(self) -> bool:
        value = self._values.get("no_target")
        word = str(value).strip().lower()
        if value is not None and word not in ("true", "1", "yes", "false", "0", "no"):
            self.faults.append(f"found no_target {short(value)}, expected true or false")
        return word in ("true", "1", "yes")


def _is_missing(value: Any) -> bool:
    # pandas writes NaN for missing values of an integer column.
    return value is None or (isinstance(value, float) and math.isnan(value)) or (isinstance(value, str) and not value)


def _whole(value: Any) -> int | None:
    """Return an integer, also from text or from pandas' `12.0`; None if the value is not an integer."""
    if isinstance(value, str):
        if not re.fullmatch(r"\s*[+-]?[0-9]{1,18}(\.0*)?\s*", value):
            return None
        value = int(value.strip().partition(".")[0])
    return whole_number(value)


def _numbers(value: Any, *, whole: bool) -> list[Any] | None:
    """Return the integers of a list, or of text such as `12 13`, `12,13` or `[12, 13]`; None for any other value."""
    if isinstance(value, str):
        value = [part for part in re.split(r"[\s,;]+", value.strip().strip("[]()")) if part]
    elif not isinstance(value, list | tuple):
        value = [value]
    numbers = [_whole(part) if whole else _finite(part) for part in value]
    return numbers if numbers and None not in numbers else None


def _finite(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _box(value: Any) -> list[float] | None:
    box = _numbers(value, whole=False)
    return box if box is not None and len(box) == 4 and box[2] > 0 and box[3] > 0 else None


def _parsed(value: Any) -> Any:
    """Parse a string from a CSV table as JSON; return None if it is not JSON. Other values are returned unchanged."""
    try:
        return parse_json(value) if isinstance(value, str) else value
    except ValueError:
        return None


def _polygons(value: Any) -> list[list[float]] | None:
    """Return COCO's polygons from one polygon or a list, whose corners may be pairs; None if malformed.

    A later check of each ref requires at least three corners within the image.
    """
    value = _parsed(value)
    if not isinstance(value, list) or not value:
        return None
    if not isinstance(value[0], list) or (len(value) > 2 and all(map(_is_corner, value))):
        value = [value]
    polygons = []
    for polygon in value:
        if not isinstance(polygon, list):
            return None
        numbers = [number for corner in polygon for number in corner] if all(map(_is_corner, polygon)) else polygon
        flat = [_finite(number) for number in numbers if not isinstance(number, str)]
        if len(flat) < len(numbers) or None in flat:
            return None
        polygons.append([number for number in flat if number is not None])
    return polygons


def _is_corner(value: Any) -> bool:
    """Return True for a pair `[x, y]` of numbers."""
    return isinstance(value, list) and len(value) == 2 and all(isinstance(part, int | float) for part in value)


def _rles(value: Any) -> list[dict[str, Any]] | None:
    """Return the run lengths of one or several parts; None if they are malformed or have different sizes."""
    value = _parsed(value)
    parts = [_rle(part) for part in value] if isinstance(value, list) else [_rle(value)]
    found = [part for part in parts if part is not None]
    if not found or len(found) < len(parts) or any(part["size"] != found[0]["size"] for part in found):
        return None
    return found


def _rle(value: Any) -> dict[str, Any] | None:
    """Return `size` and `counts`; None if they are malformed. Later checks compare the counts with the size."""
    if not isinstance(value, dict):
        return None
    size, counts = value.get("size"), value.get("counts")
    if not isinstance(size, list | tuple) or len(size) != 2:
        return None
    sides = [whole_number(side) for side in size]
    if not all(side is not None and 0 < side <= MAX_SIDE for side in sides):
        return None
    if isinstance(counts, bytes):
        counts = counts.decode("latin-1")
    if isinstance(counts, str):
        return {"size": sides, "counts": counts} if counts.isascii() else None
    if not isinstance(counts, list):
        return None
    runs = [whole_number(run) for run in counts]
    return {"size": sides, "counts": runs} if all(run is not None and run >= 0 for run in runs) else None
