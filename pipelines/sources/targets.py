"""Converts targets from the forms in other projects' files to the columns of a row."""

from typing import Any

from pipelines.sources.table import RowFault
from refseg.values import short


def target_of_segmentation(segmentation: Any, box_xywh: Any = None) -> dict[str, Any]:
    """Return the column for COCO's `segmentation` in any form or, without a segmentation, for the box.

    Args:
        segmentation: Polygons, run lengths or a list of run lengths; None or empty if there is no shape.
        box_xywh: Left, top, width, height in pixels; None if there is no box.

    Returns:
        A dict with `polygons`, `rle` or `box`; empty if there is neither a shape nor a box.
    """
    if isinstance(segmentation, dict) or (isinstance(segmentation, list) and _has_dict(segmentation)):
        return {"rle": segmentation} if segmentation else {}
    if segmentation:
        return {"polygons": segmentation}
    return {} if box_xywh is None else {"box": box_xywh}


def join_segmentations(segmentations: list[Any]) -> dict[str, Any]:
    """Return the column for the union of several objects' segmentations.

    Raises:
        RowFault: If polygons and run lengths are mixed.
    """
    parts: list[Any] = []
    for segmentation in segmentations:
        parts += segmentation if isinstance(segmentation, list) else [segmentation]
    if _has_dict(parts) and not all(isinstance(part, dict) for part in parts):
        raise RowFault("found polygons and run lengths for one target, expected all of one form")
    return target_of_segmentation(parts)


def box_of_corners(corners: Any) -> list[float]:
    """Convert a box of left, top, right, bottom to left, top, width, height.

    Raises:
        RowFault: If the value is not four numbers with left < right and top < bottom.
    """
    if isinstance(corners, list | tuple) and len(corners) == 4 and all(type(part) in (int, float) for part in corners):
        left, top, right, bottom = corners
        if left < right and top < bottom:
            return [left, top, right - left, bottom - top]
    raise RowFault(f"found box {short(corners)}, expected left, top, right, bottom in pixels")


def coco_name(image_id: int) -> str:
    """Return the file name of a picture in COCO's train2014."""
    return f"COCO_train2014_{image_id:012d}.jpg"


def _has_dict(parts: list[Any]) -> bool:
    return any(isinstance(part, dict) for part in parts)
