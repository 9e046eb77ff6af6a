"""Label Studio's JSON export."""

from pathlib import Path
from typing import Any

import pytest

from pipelines.sources.layouts.label_studio import find_image
from refseg.errors import AnnotationError

from .example import Example, area, read


def pack(*fields: tuple[int, int]) -> list[int]:
    """Bytes of `(value, bits)` one after the other, filled with zeros."""
    bits = "".join(f"{value:0{count}b}" for value, count in fields)
    bits += "0" * (-len(bits) % 8)
    return [int(bits[start : start + 8], 2) for start in range(0, len(bits), 8)]


HEADER = ((10 * 20 * 4, 32), (8 - 1, 5), (3 - 1, 4), (8 - 1, 4), (9 - 1, 4), (16 - 1, 4))
"""800 values of 8 bits; lengths have 3, 8, 9 or 16 bits."""

# Rows 0 and 1 whole: 40 pixels are 160 values of 255, one run of the second kind (length 160 - 1 in 8 bits). Then 4
# single values of the first kind (3 bits), a coloured pixel with alpha 0, and the other 636 values as one run of the
# fourth kind.
TWO_ROWS = pack(
    *HEADER, (1, 1), (1, 2), (160 - 1, 8), (255, 8), (0, 1), (0, 2), (4 - 1, 3), (9, 8), (9, 8), (9, 8), (0, 8),
    (1, 1), (3, 2), (636 - 1, 16), (0, 8),
)  # fmt: skip


def result(key: str, kind: str, value: dict[str, Any]) -> dict[str, Any]:
    return {"id": key, "type": kind, "value": value, "original_width": 20, "original_height": 10, "to_name": "image"}


def text(key: str, *texts: str) -> dict[str, Any]:
    return result(key, "textarea", {"text": list(texts)})


def task(key: int, *annotations: dict[str, Any], image: str = "/data/upload/1/1a2b3c4d-a.jpg") -> dict[str, Any]:
    return {"id": key, "data": {"image": image}, "annotations": list(annotations)}


EXAMPLE = Example(
    reader="label-studio",
    files={
        "project_train.json": [
            task(
                7,
                {
                    "id": 1,
                    "result": [
                        result("r1", "brushlabels", {"format": "rle", "rle": TWO_ROWS, "brushlabels": ["sky"]}),
                        text("r1", "the upper rows", "all above"),
                        result("r2", "polygonlabels", {
                            "points": [[5, 20], [25, 20], [25, 60], [5, 60]], "polygonlabels": ["cup"],
                        }),
                        result("r3", "rectanglelabels", {
                            "x": 50, "y": 0, "width": 10, "height": 100, "rotation": 0, "rectanglelabels": ["door"],
                        }),
                        result("r4", "ellipselabels", {"x": 5, "y": 5, "radiusX": 1, "ellipselabels": ["ball"]}),
                    ],
                },
            ),
            task(8, {"id": 2, "was_cancelled": True, "result": []}),
        ]
    },
    means={
        ("train", "a.jpg", "the upper rows"): area(0, 0, 20, 2),
        ("train", "a.jpg", "all above"): area(0, 0, 20, 2),
        ("train", "a.jpg", "cup"): area(1, 2, 5, 6),
        ("train", "a.jpg", "door"): area(10, 0, 12, 10),
    },
    leaves_out=("left out 1 tasks without an annotation", "left out 1 regions that are not brush, polygon, rectangle"),
)  # fmt: skip


@pytest.mark.parametrize(
    ("address", "name"),
    [
        ("/data/upload/12/1a2b3c4d-my%20cup.jpg", "my cup.jpg"),
        ("/data/local-files/?d=set/a.jpg", "set/a.jpg"),
        ("s3://bucket/set/a.jpg", "a.jpg"),
        ("https://host/set/a.jpg?size=2", "a.jpg"),
        ("set/a.jpg", "set/a.jpg"),
    ],
)
def test_a_picture_has_its_owners_name(address: str, name: str) -> None:
    assert find_image({"data": {"image": address}}) == find_image({"data": {"photo": address, "n": 1}}) == name


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (task(7, {"result": []}, {"result": []}), "task 7: found 2 annotations, expected one; mark one of them as"),
        (
            task(7, {"result": [result("r", "brushlabels", {"format": "rle", "rle": TWO_ROWS[:14]})]}),
            "task 7 region 'r': found damaged run lengths of a brush",
        ),
        (
            task(7, {"result": [result("r", "brush", {"format": "rle", "rle": pack((80, 32), (7, 5), (0, 80))})]}),
            "found run lengths of 80 values, expected 4 for each pixel of 20 x 10",
        ),
        (task(7, {"result": [result("r", "rectangle", {"x": 1, "rotation": 3})]}), "expected x, y, width, height in"),
    ],
)
def test_a_task_of_another_form_is_named(wrong: dict[str, Any], message: str, tmp_path: Path) -> None:
    EXAMPLE.write(tmp_path, {"train.json": [wrong]})

    with pytest.raises(AnnotationError) as caught:
        read(tmp_path, "label-studio")

    assert message in str(caught.value)


def test_the_short_export_is_refused_with_the_way_out(tmp_path: Path) -> None:
    EXAMPLE.write(tmp_path, {"train.json": [{"id": 7, "image": "a.jpg", "tag": []}]})

    with pytest.raises(AnnotationError, match=r"expected tasks with data and annotations, .* \(not JSON-MIN\)"):
        read(tmp_path, "label-studio")
