"""Detects shapes whose coordinates are fractions, have another scale, or belong to another object."""

from collections.abc import Sequence
from typing import Any

from pycocotools import mask as coco_mask

from refseg.dataset.schema import Annotation

Box = tuple[float, float, float, float]
"""Left, top, width, height in pixels."""

_BOX_SLACK = 1.0
"""Number of pixels by which a user's box may extend beyond its image. Tools round, and some count pixels from 1."""
_MOST_FRACTION = 1.05
"""Largest value that counts as a fraction of a picture. It exceeds 1 to allow for rounding."""
_SMALL = 4
"""Largest number of pixels of a picture in which coordinates up to 1 are plausible pixels, not fractions."""
_THOUSANDTHS = 1000
_LEAST_IOU = 0.2
"""Smallest IoU of the box around a drawn shape and the annotation's own box, both enlarged by a pixel on every side. In
2,255 annotations of COCO the IoU without this enlargement is at least 0.72; targets of 20 pixels have the lowest."""
_LEAST_AREA = 0.01
"""Smallest ratio of drawn pixels to an annotation's `area`. The ratio is at least 0.66 in COCO. It is a few hundredths
for thin shapes whose `area` is the area of the box.
"""


def find_fractions(shapes: Sequence[Sequence[float]], size: tuple[int, int]) -> str:
    """Return a message if coordinates are fractions of the picture; empty if they are pixels.

    Args:
        shapes: The target's polygons, or only its box.
        size: `(height, width)` of the picture in pixels.
    """
    height, width = size
    least, most = min(map(min, shapes)), max(map(max, shapes))
    if height * width <= _SMALL or least < 1 - _MOST_FRACTION or most > _MOST_FRACTION:
        return ""
    return (
        f"has coordinates from {least:g} to {most:g}, which is one pixel in the corner, expected pixels of the "
        f"image ({width} x {height}); multiply fractions of the picture by its width and height (YOLO's boxes begin "
        "with the centre: subtract half of the width and height)"
    )


def clip_box(box_xywh: Box, size: tuple[int, int]) -> tuple[Box, str]:
    """Clip a user's box to its image.

    Args:
        box_xywh: The box as given.
        size: `(height, width)` of the picture in pixels.

    Returns:
        The part of the box inside the image, and a message if the box extends beyond the image by more than the
        tolerance.
    """
    height, width = size
    left, top, third, fourth = box_xywh
    right, bottom = left + third, top + fourth
    fault = ""
    if min(left, top) < -_BOX_SLACK or right > width + _BOX_SLACK or bottom > height + _BOX_SLACK:
        fault = (
            f"extends beyond the image ({width} x {height} pixels), expected left, top, width, height in pixels of the "
            f"image{_guess_form(box_xywh, size)}"
        )
    left, right, top, bottom = max(left, 0.0), min(right, width), max(top, 0.0), min(bottom, height)
    return (left, top, max(right - left, 0.0), max(bottom - top, 0.0)), fault


def find_other_shape(annotation: Annotation, parts: list[dict[str, Any]], size: tuple[int, int]) -> str:
    """Compare a drawn shape with the annotation's own box and area.

    A COCO annotation has a shape, a box and an area. If the shape is outside the box or has a hundredth of the area,
    the coordinates have another scale or order, or belong to another object.

    Args:
        annotation: An annotation with a shape.
        parts: The shape's parts as pycocotools drew them.
        size: `(height, width)` of the picture in pixels.

    Returns:
        A message that describes the disagreement; empty if shape, box and area agree.
    """
    boxes = [box for box in coco_mask.toBbox(parts).tolist() if box[2] > 0]
    if not boxes:
        return ""  # an empty target is reported for the whole ref
    area = sum(coco_mask.area(parts).tolist())
    left, top = min(box[0] for box in boxes), min(box[1] for box in boxes)
    right, bottom = max(box[0] + box[2] for box in boxes), max(box[1] + box[3] for box in boxes)
    drawn = left, top, right - left, bottom - top
    stated = annotation.box_xywh
    if stated[2] > 0 and stated[3] > 0 and _iou(drawn, clip_box(stated, size)[0]) < _LEAST_IOU:
        corners = (stated[0], stated[1], stated[2] - stated[0], stated[3] - stated[1])
        is_corners = min(corners[2:]) > 0 and _iou(drawn, corners) > 0.5
        hint = "; the bbox may be left, top, right, bottom instead" if is_corners else ""
        return (
            f"has a segmentation that covers {_words(drawn)} (left, top, width, height) and bbox {_words(stated)}, "
            f"expected the same region in pixels of the image ({size[1]} x {size[0]}){hint}"
        )
    if area < annotation.area * _LEAST_AREA:
        return (
            f"has a segmentation that covers {area} pixels and area {annotation.area:g}, expected about the same; "
            "check that its coordinates are pixels of the image"
        )
    return ""


def _guess_form(box_xywh: Box, size: tuple[int, int]) -> str:
    """Return a guess at the form of a box that extends beyond the picture; empty if no form fits."""
    height, width = size
    left, top, third, fourth = box_xywh
    if 0 <= left < third <= width and 0 <= top < fourth <= height:
        return "; it may be left, top, right, bottom instead"
    if min(box_xywh) >= 0 and max(box_xywh) <= _THOUSANDTHS and max(size) < _THOUSANDTHS:
        return "; it may be in thousandths of the picture (0 to 1000), as some models return boxes"
    return ""


def _iou(first: Box, second: Box) -> float:
    """Return the IoU of two boxes, each enlarged by one pixel on every side to allow for rounding to whole pixels."""
    width, height = (
        max(0.0, min(first[k] + first[k + 2], second[k] + second[k + 2]) - max(first[k], second[k]) + 2) for k in (0, 1)
    )
    first_area, second_area = ((box[2] + 2) * (box[3] + 2) for box in (first, second))
    return width * height / (first_area + second_area - width * height)


def _words(box: Box) -> str:
    return " ".join(f"{number:.6g}" for number in box)
