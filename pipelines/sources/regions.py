"""Turns the regions of annotation tools, each with a label and optional sentences, into rows.

A region with sentences is one target, together with all regions of the same group. For regions without sentences, the
label is the sentence. All such regions of a picture with the same label are one target.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from pipelines.masks import encode_mask
from pipelines.sources.table import Row, RowFault
from refseg.dataset.schema import MAX_PIXELS, MAX_SIDE
from refseg.values import short, whole_number

IGNORED = "ignore"
"""Label of regions whose pixels should not count for any ref of their picture."""

Size = tuple[int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Region:
    """A region that an annotator drew.

    Attributes:
        label: Label that the annotator chose; empty if there is no label.
        sentences: Sentences that the annotator wrote.
        group: Name of the region's group; empty if the region is in no group. Regions of a picture with the same group
            are one target.
        shape: Run lengths of the region at the picture's size, in pycocotools' compressed form.
        box_xywh: Box of a rectangle in pixels; None for any other shape.
    """

    label: str
    sentences: tuple[str, ...] = ()
    group: str = ""
    shape: dict[str, Any] = field(repr=False)
    box_xywh: tuple[float, float, float, float] | None = None


def region_rows(image: Any, size: Size, regions: Iterable[Region]) -> Iterator[tuple[str, Row]]:
    """Yield the rows of one picture, each with a location such as `'the red cup'`.

    Args:
        image: Name of the picture.
        size: `(height, width)` of the picture in pixels.
        regions: Regions of the picture, in the order of the file.
    """
    targets: dict[tuple[str, str], list[Region]] = {}
    ignored: list[Region] = []
    for number, region in enumerate(regions):
        if region.label.lower() == IGNORED and not region.sentences:
            ignored.append(region)
            continue
        key = ("group", region.group) if region.group else ("region", str(number))
        targets.setdefault(key if region.sentences or region.group else ("label", region.label), []).append(region)
    for parts in targets.values():
        sentences = dict.fromkeys(sentence for part in parts for sentence in part.sentences)
        names = list(dict.fromkeys(part.label for part in parts if part.label))
        if not sentences and len(names) > 1:
            yield f"{names[0]!r}", RowFault(f"found one group with the labels {', '.join(names)} and no sentence")
            continue
        if not sentences and not names:
            yield "a region", RowFault("found neither a label nor a sentence, expected one of them")
            continue
        for sentence in sentences or names:
            row = {"image": image, "height": size[0], "width": size[1], "sentence": sentence, **_target(parts)}
            if ignored:
                row["ignore"] = _join(ignored)
            yield f"{sentence!r:.60}", row | ({"category": ", ".join(names)} if sentences and names else {})


def read_size(height: Any, width: Any) -> Size:
    """Return the `(height, width)` of a picture.

    Raises:
        RowFault: If the values are not a valid size.
    """
    sides = whole_number(height), whole_number(width)
    if None in sides or not all(0 < (side or 0) <= MAX_SIDE for side in sides) or sides[0] * sides[1] > MAX_PIXELS:  # type: ignore[operator]
        raise RowFault(f"found height {short(height)} and width {short(width)}, expected 1 to {MAX_SIDE} pixels")
    return sides[0] or 0, sides[1] or 0


def draw_polygon(points: Sequence[Any], size: Size) -> dict[str, Any]:
    """Draw a polygon of `[x, y]` corners in pixels, clipped to the picture.

    Raises:
        RowFault: If the polygon has fewer than three corners, or corners that are not numbers.
    """
    corners = [_corner(point) for point in points] if isinstance(points, list) else []
    if len(corners) < 3 or None in corners:
        raise RowFault(f"found the polygon {short(points)}, expected at least three corners [x, y]")
    flat = np.array(corners, np.float64)
    outline = np.clip(flat, -max(size), 2 * max(size)).ravel().tolist()  # rasterising needs memory for the extent
    packed: dict[str, Any] = coco_mask.frPyObjects([outline], *size)[0]
    return packed


def draw_box(box_xywh: Sequence[float], size: Size) -> dict[str, Any]:
    """Draw a filled box (left, top, width, height in pixels), clipped to the picture."""
    left, top, width, height = box_xywh
    return draw_polygon([[left, top], [left + width, top], [left + width, top + height], [left, top + height]], size)


def pack_mask(mask: NDArray[Any]) -> dict[str, Any]:
    """Return the compressed run lengths of a mask `(H, W)`, whose pixels are zero or not."""
    runs = encode_mask(mask)
    packed: dict[str, Any] = coco_mask.frPyObjects({"size": list(runs.size), "counts": list(runs.counts)}, *runs.size)
    return packed


def _target(parts: Sequence[Region]) -> dict[str, Any]:
    if len(parts) == 1 and parts[0].box_xywh is not None:
        return {"box": list(parts[0].box_xywh)}
    return {"rle": _join(parts)}


def _join(parts: Sequence[Region]) -> dict[str, Any]:
    """Return the run lengths of the union of some regions."""
    joined = coco_mask.merge([part.shape for part in parts])
    return {"size": list(joined["size"]), "counts": joined["counts"].decode()}


def _corner(point: Any) -> tuple[float, float] | None:
    if not isinstance(point, list | tuple) or len(point) != 2 or not all(type(part) in (int, float) for part in point):
        return None
    return (float(point[0]), float(point[1])) if all(abs(part) < 2**31 for part in point) else None
