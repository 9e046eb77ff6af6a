"""Draws polygons and run lengths into one binary target mask, with a named rule."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from refseg.dataset.schema import Annotation, Rle
from refseg.errors import AnnotationError
from refseg.run_lengths import expand_counts

Polygons = tuple[tuple[float, ...], ...]

_POLYGON_SLACK = 10
"""Number of pixels, or a tenth of the side if that is more, by which a polygon may extend beyond its image. The excess
is cut.
"""


def target_mask(annotations: Sequence[Annotation], size: tuple[int, int], rule: str) -> Rle:
    """Rasterise the parts of a target with pycocotools and join them.

    Args:
        annotations: Annotations whose shapes make the target. If an annotation has no shape, its box is drawn. No
            annotations give an empty mask.
        size: `(height, width)` of the image in pixels.
        rule: `union` for the pixels of any part. `legacy` for the pixels of exactly one part, as in code that sums the
            parts and tests `== 1` (LAVT and its forks).

    Returns:
        Canonical run lengths, of which only the first may be zero.
    """
    return join_parts([part for annotation in annotations for part in draw_parts(annotation, size)], size, rule)


def draw_parts(annotation: Annotation, size: tuple[int, int]) -> list[dict[str, Any]]:
    """Rasterise each part of an annotation, or its box if it has no shape, into pycocotools' run lengths."""
    height, width = size
    parts: list[dict[str, Any]] = []
    if annotation.polygons:
        parts += coco_mask.frPyObjects(list(map(list, annotation.polygons)), height, width)
    for rle in annotation.rles:
        # Empty runs are removed, because pycocotools stops where two masks have an empty run at the same pixel.
        runs = {"size": list(rle.size), "counts": list(_canonical(rle.counts))}
        parts.append(coco_mask.frPyObjects(runs, height, width))
    if not parts:
        parts += coco_mask.frPyObjects(_clip_box(annotation.box_xywh, size), height, width)
    return parts


def join_parts(parts: list[dict[str, Any]], size: tuple[int, int], rule: str) -> Rle:
    """Join the parts from `draw_parts` with the rule of `target_mask`."""
    if not parts:
        return Rle(size=size, counts=(size[0] * size[1],))
    if rule == "legacy":
        return encode_mask(coco_mask.decode(parts).sum(axis=2, dtype=np.int64) == 1)
    # Run lengths are joined directly, because drawing the mask and encoding it again is ten times as slow.
    joined = coco_mask.merge(parts) if len(parts) > 1 else parts[0]
    return Rle(size=size, counts=tuple(expand_counts(joined["counts"])))  # canonical, because the parts are


def encode_mask(mask: NDArray[Any]) -> Rle:
    """Encode a mask `(H, W)`, whose pixels are zero or not, as canonical run lengths."""
    height, width = mask.shape
    pixels = mask.reshape(-1, order="F") != 0
    edges = np.flatnonzero(pixels[1:] != pixels[:-1]) + 1
    runs: list[int] = np.diff(edges, prepend=0, append=pixels.size).tolist()
    return Rle(size=(height, width), counts=(0, *runs) if pixels[0] else tuple(runs))


def mask_area(rle: Rle) -> int:
    """Return the number of pixels of a mask."""
    return sum(rle.counts[1::2])


def read_segmentation(segmentation: Any, size: tuple[int, int]) -> tuple[Polygons, tuple[Rle, ...]]:
    """Read COCO's `segmentation` in any form.

    The forms are polygons (a list of flat lists), run lengths (a dict whose counts are a list or COCO's compressed
    text), and a list of run lengths (RefClef).

    Args:
        segmentation: Value in `instances.json`.
        size: `(height, width)` of the image in pixels.

    Returns:
        The polygons and the run lengths; one of the two is empty.

    Raises:
        AnnotationError: If the value has none of these forms or does not fit the image. The caller adds the
            annotation's id to the message.
    """
    if isinstance(segmentation, dict):
        return (), (_read_rle(segmentation, size),)
    if not isinstance(segmentation, list) or not segmentation:
        raise AnnotationError("its segmentation is empty, expected polygons or run lengths")
    if all(isinstance(part, int | float) for part in segmentation):
        raise AnnotationError(
            "its segmentation is a flat list of numbers, expected a list of polygons: [[x, y, ...], ...]"
        )
    if all(isinstance(part, dict) for part in segmentation):
        return (), tuple(_read_rle(part, size) for part in segmentation)
    return tuple(_read_polygon(part, size) for part in segmentation), ()


def _clip_box(box_xywh: tuple[float, float, float, float], size: tuple[int, int]) -> NDArray[np.float64]:
    """Return the part of a box inside the image, `(1, 4)`. Rasterising would need memory for the whole box."""
    left, top, width, height = box_xywh
    (left, right), (top, bottom) = np.clip([left, left + width], 0, size[1]), np.clip([top, top + height], 0, size[0])
    return np.array([[left, top, right - left, bottom - top]], dtype=np.float64)


def _canonical(counts: Sequence[int]) -> tuple[int, ...]:
    """Remove empty runs, except the first, and join the runs around them.

    Example: (3, 2, 0, 4, 1) becomes (3, 6, 1).
    """
    if 0 not in counts[1:]:
        return tuple(counts)
    joined = [counts[0]]
    takes = 0  # the value (0 or 1) of the last run in `joined`
    for number, run in enumerate(counts[1:], start=1):
        if run and number % 2 == takes:
            joined[-1] += run
        elif run:
            joined.append(run)
            takes = 1 - takes
    return tuple(joined)


def _read_polygon(polygon: Any, size: tuple[int, int]) -> tuple[float, ...]:
    if not isinstance(polygon, list | tuple) or len(polygon) < 6 or len(polygon) % 2:
        found = f"{len(polygon)} numbers" if isinstance(polygon, list | tuple) else type(polygon).__name__
        raise AnnotationError(f"one of its polygons has {found}, expected an even count of at least 6")
    # Built-in functions check the whole list. A Python loop over the numbers would be as slow as rasterising.
    if not set(map(type, polygon)) <= {int, float}:
        raise AnnotationError("one of its polygons holds values that are not numbers, expected numbers only")
    # COCO's polygons extend beyond the border by at most a pixel. Rasterising needs memory for a polygon's extent, so
    # one wrong exponent could need gigabytes. A polygon far outside may also be drawn for a picture of another size.
    for numbers, side in ((polygon[::2], size[1]), (polygon[1::2], size[0])):
        slack = max(_POLYGON_SLACK, side // 10)
        if min(numbers) < -slack or max(numbers) > side + slack:
            raise AnnotationError(
                f"one of its polygons extends from {min(numbers)!r:.12} to {max(numbers)!r:.12}, beyond the image "
                f"({size[1]} x {size[0]} pixels); expected x, y, x, y, ... in pixels of the image"
            )
    if not math.isfinite(sum(polygon)):  # `min` and `max` can miss a NaN, a sum cannot
        raise AnnotationError("one of its polygons holds nan, expected numbers")
    return tuple(map(float, polygon))


def _read_rle(record: dict[Any, Any], size: tuple[int, int]) -> Rle:
    found = record.get("size")
    if not isinstance(found, list | tuple) or tuple(found) != size:
        raise AnnotationError(f"its run lengths are for size {found!r:.40}, expected {list(size)} (height, width)")
    counts = record.get("counts")
    if isinstance(counts, str | bytes):
        counts = expand_counts(counts.encode("utf-8", "surrogatepass") if isinstance(counts, str) else counts)
    if not isinstance(counts, list | tuple) or not set(map(type, counts)) <= {int} or min(counts, default=0) < 0:
        raise AnnotationError("its run lengths are not a list of whole numbers or COCO's compressed text")
    if sum(counts) != size[0] * size[1]:
        raise AnnotationError(
            f"its run lengths sum to {sum(counts)}, expected {size[0]} x {size[1]} = {size[0] * size[1]}"
        )
    return Rle(size=size, counts=tuple(counts))
