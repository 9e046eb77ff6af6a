"""Tells shapes that are not in the pixels of their picture: fractions, another scale, another object's shape."""

from collections.abc import Sequence
from typing import Any

from pycocotools import mask as coco_mask

from refseg.dataset.schema import Annotation

Box = tuple[float, float, float, float]
"""Left, top, width, height in pixels."""

_BOX_SLACK = 1.0
"""Pixels that a user's box may reach out of its image: tools round, and some count pixels from 1."""
_MOST_FRACTION = 1.05
"""Fractions of a picture are at most 1, or a little more where they were rounded."""
_SMALL = 4
"""Pixels of pictures so small that a target within the first of them is nothing odd."""
_THOUSANDTHS = 1000
_LEAST_IOU = 0.2
"""Of the box around a drawn shape and the annotation's own box, each grown by a pixel. 2,255 annotations of COCO have
0.72 or more without the pixel, the lowest those of targets of 20 pixels."""
_LEAST_AREA = 0.01
"""Drawn pixels for each pixel of an annotation's `area`. Those of COCO have 0.66 or more; thin shapes whose `area` is
their box's have a few hundredths."""


def find_fractions(shapes: Sequence[Sequence[float]], size: tuple[int, int]) -> str:
    """Say that coordinates are fractions of the picture; empty if they are not.

    Args:
        shapes: The target's polygons, or its box alone.
        size: `(height, width)` of the picture in pixels.
    """
    height, width = size
    least, most = min(map(min, shapes)), max(map(max, shapes))
    if height * width <= _SMALL or least < 1 - _MOST_FRACTION or most > _MOST_FRACTION:
        return ""
    return (
        f"has coordinates from {least:g} to {most:g}, one pixel in the corner, expected pixels of the "
        f"image ({width} x {height}); multiply fractions of the picture by its width and height (a box of YOLO has "
        "its centre first: take half of its width and height away)"
    )


def clip_box(box_xywh: Box, size: tuple[int, int]) -> tuple[Box, str]:
    """The part of a user's box that lies in the image; what is wrong with it if more than the slack lies outside.

    Args:
        box_xywh: As given.
        size: `(height, width)` of the picture in pixels.
    """
    height, width = size
    left, top, third, fourth = box_xywh
    right, bottom = left + third, top + fourth
    fault = ""
    if min(left, top) < -_BOX_SLACK or right > width + _BOX_SLACK or bottom > height + _BOX_SLACK:
        fault = (
            f"reaches out of the image ({width} x {height} pixels), expected left, top, width, height in pixels of the "
            f"image{_guess_form(box_xywh, size)}"
        )
    left, right, top, bottom = max(left, 0.0), min(right, width), max(top, 0.0), min(bottom, height)
    return (left, top, max(right - left, 0.0), max(bottom - top, 0.0)), fault


def find_other_shape(annotation: Annotation, parts: list[dict[str, Any]], size: tuple[int, int]) -> str:
    """Compare what was drawn with the annotation's own box and area; say how they differ, empty if they agree.

    An annotation of COCO holds its shape three times. Where the drawn one lies elsewhere, or is a hundredth of what it
    should be, its coordinates are of another scale, order or object.

    Args:
        annotation: With a shape.
        parts: The shape's parts as pycocotools drew them.
        size: `(height, width)` of the picture in pixels.
    """
    boxes = [box for box in coco_mask.toBbox(parts).tolist() if box[2] > 0]
    if not boxes:
        return ""  # reported for the target as a whole
    area = sum(coco_mask.area(parts).tolist())
    left, top = min(box[0] for box in boxes), min(box[1] for box in boxes)
    right, bottom = max(box[0] + box[2] for box in boxes), max(box[1] + box[3] for box in boxes)
    drawn = left, top, right - left, bottom - top
    stated = annotation.box_xywh
    if stated[2] > 0 and stated[3] > 0 and _iou(drawn, clip_box(stated, size)[0]) < _LEAST_IOU:
        corners = (stated[0], stated[1], stated[2] - stated[0], stated[3] - stated[1])
        is_corners = min(corners[2:]) > 0 and _iou(drawn, corners) > 0.5
        hint = "; is the bbox left, top, right, bottom?" if is_corners else ""
        return (
            f"has a segmentation that covers {_words(drawn)} (left, top, width, height) and bbox {_words(stated)}, "
            f"expected the same place in pixels of the image ({size[1]} x {size[0]}){hint}"
        )
    if area < annotation.area * _LEAST_AREA:
        return (
            f"has a segmentation that covers {area} pixels and area {annotation.area:g}, expected about the same; are "
            "its coordinates pixels of the image?"
        )
    return ""


def _guess_form(box_xywh: Box, size: tuple[int, int]) -> str:
    """What the numbers of a box that reaches out of its picture may be instead."""
    height, width = size
    left, top, third, fourth = box_xywh
    if 0 <= left < third <= width and 0 <= top < fourth <= height:
        return "; is it left, top, right, bottom?"
    if min(box_xywh) >= 0 and max(box_xywh) <= _THOUSANDTHS and max(size) < _THOUSANDTHS:
        return "; is it in thousandths of the picture (0 to 1000), as some models answer?"
    return ""


def _iou(first: Box, second: Box) -> float:
    """Intersection over union of two boxes, each grown by a pixel on every side, for pixels are drawn or not."""
    width, height = (
        max(0.0, min(first[k] + first[k + 2], second[k] + second[k + 2]) - max(first[k], second[k]) + 2) for k in (0, 1)
    )
    first_area, second_area = ((box[2] + 2) * (box[3] + 2) for box in (first, second))
    return width * height / (first_area + second_area - width * height)


def _words(box: Box) -> str:
    return " ".join(f"{number:.6g}" for number in box)
