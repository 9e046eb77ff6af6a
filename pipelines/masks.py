"""Polygons and run lengths to one binary target mask, by a named rule."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from refseg.errors import AnnotationError
from refseg.schema import Annotation, Rle

Polygons = tuple[tuple[float, ...], ...]


def target_mask(annotations: Sequence[Annotation], size: tuple[int, int], rule: str) -> Rle:
    """Rasterise a target by pycocotools and join its parts.

    Args:
        annotations: Whose shapes make the target, or the box of one without a shape; none give an empty mask.
        size: `(height, width)` of the image, in pixels.
        rule: `union`: pixels of any part. `legacy`: pixels of exactly one part, as code has it that sums the
            parts and tests `== 1` (LAVT and its forks).

    Returns:
        Canonical run lengths: only the first may be zero.
    """
    height, width = size
    parts: list[dict[str, Any]] = []
    for annotation in annotations:
        if annotation.polygons:
            parts += coco_mask.frPyObjects([list(polygon) for polygon in annotation.polygons], height, width)
        for rle in annotation.rles:
            parts.append(coco_mask.frPyObjects({"size": list(rle.size), "counts": list(rle.counts)}, height, width))
        if not (annotation.polygons or annotation.rles):
            parts += coco_mask.frPyObjects([list(annotation.box_xywh)], height, width)
    if not parts:
        return Rle(size=size, counts=(height * width,))
    if rule == "legacy":
        covered = coco_mask.decode(parts).sum(axis=2, dtype=np.int64) == 1
    else:
        covered = coco_mask.decode(coco_mask.merge(parts))
    return encode_mask(covered)


def encode_mask(mask: NDArray[Any]) -> Rle:
    """Turn a mask `(H, W)`, zero or not, into canonical run lengths."""
    height, width = mask.shape
    pixels = mask.reshape(-1, order="F") != 0
    edges = np.flatnonzero(pixels[1:] != pixels[:-1]) + 1
    runs: list[int] = np.diff(edges, prepend=0, append=pixels.size).tolist()
    return Rle(size=(height, width), counts=(0, *runs) if pixels[0] else tuple(runs))


def mask_area(rle: Rle) -> int:
    """Count the pixels of a mask."""
    return sum(rle.counts[1::2])


def read_segmentation(segmentation: Any, size: tuple[int, int]) -> tuple[Polygons, tuple[Rle, ...]]:
    """Read COCO's `segmentation` in any of its forms.

    Polygons (a list of flat lists), run lengths (a dict whose counts are a list or COCO's compressed text), or
    a list of run lengths (RefClef).

    Args:
        segmentation: As found in `instances.json`.
        size: `(height, width)` of the image, in pixels.

    Returns:
        The polygons and the run lengths; one of the two is empty.

    Raises:
        AnnotationError: If it has none of these forms or does not fit the image; the message has no place in it.
    """
    if isinstance(segmentation, dict):
        return (), (_read_rle(segmentation, size),)
    if not isinstance(segmentation, list) or not segmentation:
        raise AnnotationError("its segmentation is empty, expected polygons or run lengths")
    if all(isinstance(part, dict) for part in segmentation):
        return (), tuple(_read_rle(part, size) for part in segmentation)
    return tuple(_read_polygon(part, size) for part in segmentation), ()


def _read_polygon(polygon: Any, size: tuple[int, int]) -> tuple[float, ...]:
    if not isinstance(polygon, list | tuple) or len(polygon) < 6 or len(polygon) % 2:
        found = f"{len(polygon)} numbers" if isinstance(polygon, list | tuple) else type(polygon).__name__
        raise AnnotationError(f"one of its polygons has {found}, expected an even count of at least 6")
    if not all(isinstance(value, int | float) and not isinstance(value, bool) for value in polygon):
        raise AnnotationError("one of its polygons holds something else than numbers")
    # COCO's polygons pass the border by a pixel at most. Rasterising takes memory by a polygon's extent,
    # so one wrong exponent could ask for gigabytes.
    reach = 2 * max(size)
    if not all(-reach <= value <= 2 * reach for value in polygon) or not all(map(math.isfinite, polygon)):
        raise AnnotationError(f"one of its polygons lies far outside of the image ({size[1]} x {size[0]} pixels)")
    return tuple(float(value) for value in polygon)


def _read_rle(record: dict[Any, Any], size: tuple[int, int]) -> Rle:
    found = record.get("size")
    if not isinstance(found, list | tuple) or tuple(found) != size:
        raise AnnotationError(f"its run lengths are for size {found!r:.40}, expected {list(size)} (height, width)")
    counts = record.get("counts")
    if isinstance(counts, str | bytes):
        counts = _expand_counts(counts.encode("utf-8", "surrogatepass") if isinstance(counts, str) else counts)
    if not isinstance(counts, list | tuple) or not all(type(run) is int and run >= 0 for run in counts):
        raise AnnotationError("its run lengths are not a list of whole numbers or COCO's compressed text")
    if sum(counts) != size[0] * size[1]:
        raise AnnotationError(
            f"its run lengths sum to {sum(counts)}, expected {size[0]} x {size[1]} = {size[0] * size[1]}"
        )
    return Rle(size=size, counts=tuple(counts))


def _expand_counts(text: bytes) -> list[int]:
    """Undo COCO's compression: 5 bits a character, from the fourth run on the difference to the run before last.

    pycocotools does the same in C, without looking whether the text is whole.
    """
    counts: list[int] = []
    position = 0
    while position < len(text):
        value, shift, more = 0, 0, True
        while more:
            if position == len(text) or not 48 <= text[position] < 112 or shift > 60:
                raise AnnotationError("its compressed run lengths are damaged")
            bits = text[position] - 48
            value |= (bits & 0x1F) << shift
            shift += 5
            position += 1
            more = bool(bits & 0x20)
            if not more and bits & 0x10:
                value |= -1 << shift
        counts.append(value + counts[-2] if len(counts) > 2 else value)
    return counts
