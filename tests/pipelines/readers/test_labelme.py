"""labelme's JSON files."""

import base64
import math
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipelines.sources import ReadOptions, read_source
from refseg.dataset.schema import find_dataset
from refseg.errors import AnnotationError

from .example import Example, area, meanings, read


def shape(label: str, points: list[Any], kind: str = "polygon", **fields: Any) -> dict[str, Any]:
    return {"label": label, "points": points, "group_id": None, "shape_type": kind, "flags": {}, **fields}


def square(left: int, top: int, right: int, bottom: int) -> list[list[int]]:
    return [[left, top], [right, top], [right, bottom], [left, bottom]]


def png_of(mask: np.ndarray[Any, Any]) -> str:
    buffer = BytesIO()
    Image.fromarray(mask.astype(np.uint8)).save(buffer, "PNG")  # labelme writes 1 for the object
    return base64.b64encode(buffer.getvalue()).decode()


def record(*shapes: dict[str, Any], **fields: Any) -> dict[str, Any]:
    facts = {"version": "5.4.1", "flags": {}, "imageData": None, "imageHeight": 10, "imageWidth": 20}
    return {**facts, "imagePath": "a.jpg", "shapes": list(shapes), **fields}


EXAMPLE = Example(
    reader="labelme",
    files={
        "train/a.json": record(
            shape("cup", square(1, 2, 5, 6)),
            shape("cup", square(10, 2, 12, 4)),
            shape("bowl", square(0, 0, 2, 1), description="the bowl\non the left"),
            shape("dog", square(6, 6, 8, 8), group_id=3),
            shape("dog", square(9, 6, 10, 8), group_id=3, description="the long dog"),
            shape("plate", [[4, 9], [2, 7]], kind="rectangle"),
            shape("tip", [[3, 3]], kind="point"),
        ),
        "val/train.json": record(
            shape("a hole", [[4, 1], [6, 3]], kind="mask", mask=png_of(np.array([[1, 1, 1], [1, 0, 1], [1, 1, 1]]))),
            imagePath="..\\pictures\\b.jpg",
        ),
    },
    means={
        ("train", "a.jpg", "cup"): area(1, 2, 5, 6) | area(10, 2, 12, 4),
        ("train", "a.jpg", "the bowl"): area(0, 0, 2, 1),
        ("train", "a.jpg", "on the left"): area(0, 0, 2, 1),
        ("train", "a.jpg", "the long dog"): area(6, 6, 8, 8) | area(9, 6, 10, 8),
        ("train", "a.jpg", "plate"): area(2, 7, 4, 9),
        ("val", "../pictures/b.jpg", "a hole"): area(4, 1, 7, 4) & ~area(5, 2, 6, 3),
    },
    leaves_out=("left out 1 shapes without an area",),
)


def test_a_circle_is_its_disc(tmp_path: Path) -> None:
    EXAMPLE.write(tmp_path, {"train/a.json": record(shape("ball", [[10, 5], [14, 5]], kind="circle"))})

    (mask,) = meanings(read(tmp_path, "labelme")).values()

    assert mask.sum() == pytest.approx(math.pi * 4**2, rel=0.05)
    assert mask[5, 10]
    assert not mask[1:9, 7:14][[0, -1], [0, -1]].any()  # the corners of the square around it


def test_regions_with_the_label_ignore_are_not_a_target(tmp_path: Path) -> None:
    shapes = (shape("cup", square(1, 2, 5, 6)), shape("Ignore", square(3, 2, 5, 6)))
    EXAMPLE.write(tmp_path, {"train/a.json": record(*shapes)})
    with pytest.raises(AnnotationError, match=r"found 1 row with regions to ignore, .*--ignored-regions background"):
        read(tmp_path, "labelme")

    options = ReadOptions(ignored_regions="background")
    found = meanings(read_source(find_dataset("custom/mine"), tmp_path / "train", options, reader="labelme"))

    assert [sentence for _, _, sentence in found] == ["cup"]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (shape("x", [[1, 2], [3, 4]]), "found the polygon [[1, 2], [3, 4]], expected at least three corners [x, y]"),
        (shape("x", [[1, 2]], kind="rectangle"), "found the rectangle [[1, 2]], expected two corners [x, y]"),
        (shape("x", [[1, 2], [3, 4]], kind="oriented"), "found a shape of type 'oriented', expected polygon"),
        (shape("x", [[1, 2], [3, 4]], kind="mask", mask="?"), "found a mask that is not a PNG in base64"),
        (shape("x", [[19, 2], [3, 4]], kind="mask", mask=png_of(np.ones((5, 19)))), "found a mask of 19 x 5 pixels"),
    ],
)
def test_a_shape_of_another_form_is_named(wrong: dict[str, Any], message: str, tmp_path: Path) -> None:
    EXAMPLE.write(tmp_path, {"train/a.json": record(shape("cup", square(1, 2, 5, 6)), wrong)})

    with pytest.raises(AnnotationError) as caught:
        read(tmp_path, "labelme")

    assert f"train/a.json shapes[1]: {message}" in str(caught.value)
