"""Checks that the masks, polygons and run lengths of manifest rows fit their images, so that drawing them is safe."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from refseg.dataset.arrow_arrays import list_lengths, numbers

ShapeFault = tuple[NDArray[np.bool_], Callable[[int], str], str]
"""Which rows are wrong, a function that describes what was found in a row, and what is expected."""
_Sides = tuple[NDArray[Any], NDArray[Any]]
_REACH = 2  # a corner may lie outside the image by at most this many times the image's longer side


def find_mask_faults(masks: pa.StructArray, no_target: NDArray[np.bool_], sides: _Sides) -> Iterator[ShapeFault]:
    """Find masks whose run lengths do not add up to the image's size, or that contradict `no_target`.

    Such a mask would give an empty target, or use too much memory when it is drawn.

    Args:
        masks: `(rows,)` masks without nulls; the field `size` may be missing if it was not read.
        no_target: `(rows,)` booleans.
        sides: Heights and widths of the rows' images, in pixels.
    """
    is_wrong = _do_not_fit(masks, sides)
    yield is_wrong, lambda row: _describe(masks, row), "run lengths of the image's size, none but the first empty"
    if not is_wrong.any():
        has_pixels = list_lengths(masks.field("counts")) > 1
        yield (
            has_pixels == no_target,
            lambda row: f"no_target {bool(no_target[row])} and a mask with{'' if has_pixels[row] else 'out'} pixels",
            "a target with pixels, or no_target and none",
        )


def find_annotation_faults(annotations: pa.ListArray, sides: _Sides) -> Iterator[ShapeFault]:
    """Find annotations that cannot be drawn: run lengths of another size, or polygons far outside the image.

    Args:
        annotations: `(rows,)` lists of annotations without nulls.
        sides: Heights and widths of the rows' images, in pixels.
    """
    num_rows = len(annotations)
    row_of = np.repeat(np.arange(num_rows), list_lengths(annotations))
    shapes = annotations.flatten()
    boxes = shapes.field("box_xywh")
    values = numbers(boxes.flatten())
    if (wrong := list_lengths(boxes) != 4).any() or not np.isfinite(values).all():
        wrong[np.repeat(np.arange(len(boxes)), list_lengths(boxes))[~np.isfinite(values)]] = True
        yield _of_rows(row_of[wrong], num_rows), lambda _: "an annotation's box_xywh", "four finite numbers"

    rles = shapes.field("segmentation").field("rles")
    row_of_rle = np.repeat(row_of, list_lengths(rles))
    is_wrong = _do_not_fit(rles.flatten(), (sides[0][row_of_rle], sides[1][row_of_rle]), may_be_empty=True)
    expected = "run lengths of the image's size"
    yield _of_rows(row_of_rle[is_wrong], num_rows), lambda _: "an annotation's run lengths of another size", expected

    polygons = shapes.field("segmentation").field("polygons")
    row_of_polygon = np.repeat(row_of, list_lengths(polygons))
    lengths = list_lengths(polygons.flatten())
    corners = numbers(polygons.flatten().flatten())
    row_of_corner = np.repeat(row_of_polygon, lengths)
    reach = _REACH * np.maximum(*sides)[row_of_corner]
    far = ~((corners >= -reach) & (corners <= 2 * reach))  # also nan
    wrong_rows = np.concatenate([row_of_polygon[(lengths < 6) | (lengths % 2 == 1)], row_of_corner[far]])
    yield _of_rows(wrong_rows, num_rows), lambda _: "a polygon", "an even count of at least 6 numbers near the image"


def _do_not_fit(masks: pa.StructArray, sides: _Sides, *, may_be_empty: bool = False) -> NDArray[np.bool_]:
    """Return which masks have another size than `sides`, or an empty run that is not the first.

    `counts` holds the runs of all masks one after the other, `lengths` how many runs each mask has, and `starts` the
    position of its first run. For the runs [4, 2] and [6], `counts` is [4, 2, 6], `lengths` [2, 1] and `starts` [0, 2].
    Then `reduceat` adds up the runs of each mask: [6, 6].
    """
    names = {field.name for field in masks.type}
    pixels = sides[0].astype(np.int64) * sides[1]
    lists = masks.field("counts")
    lengths = list_lengths(lists)
    is_wrong = lengths == 0
    counts, starts = numbers(lists.flatten()), np.cumsum(lengths) - lengths
    filled = ~is_wrong
    sums = np.zeros(len(lists), np.int64)
    sums[filled] = np.add.reduceat(counts, starts[filled], dtype=np.int64) if filled.any() else 0
    is_wrong |= sums != pixels
    if not may_be_empty:
        is_empty = counts == 0
        is_empty[starts[filled]] = False
        is_wrong[np.repeat(np.arange(len(lists)), lengths)[is_empty]] = True
    if "size" in names:
        of_two = list_lengths(masks.field("size")) == 2
        is_wrong |= ~of_two
        if of_two.all():
            found = numbers(masks.field("size").flatten()).reshape(-1, 2)
            is_wrong |= (found[:, 0] != sides[0]) | (found[:, 1] != sides[1])
    return is_wrong


def _describe(masks: pa.StructArray, row: int) -> str:
    mask = masks[row].as_py()
    size = f", size {tuple(mask['size'])}" if "size" in mask else ""
    return f"a mask of {sum(mask['counts'])} pixels{size} in {len(mask['counts'])} runs"


def _of_rows(rows: NDArray[np.int64], num_rows: int) -> NDArray[np.bool_]:
    is_wrong = np.zeros(num_rows, np.bool_)
    is_wrong[rows] = True
    return is_wrong
