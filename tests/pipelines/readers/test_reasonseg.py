"""ReasonSeg's files."""

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from pipelines.sources import ReadOptions, read_source
from refseg.dataset.schema import find_dataset
from refseg.errors import AnnotationError

from .example import NOTHING, Example, area, meanings, read


def shape(label: str, left: int, top: int, right: int, bottom: int) -> dict[str, Any]:
    points = [[left, top], [right, top], [right, bottom], [left, bottom]]
    return {"label": label, "labels": [label], "shape_type": "polygon", "points": points, "group_id": None}


def record(*shapes: dict[str, Any], **fields: Any) -> dict[str, Any]:
    size = {"imageHeight": 10, "imageWidth": 20}
    return {"text": ["What holds the tea?", "the cup"], "is_sentence": True, "shapes": list(shapes), **size, **fields}


# The small target lies on the large one's hole: no region of this picture is ignored.
EXAMPLE = Example(
    reader="reasonseg",
    files={
        "train/4_o.json": record(shape("target", 1, 2, 9, 8), shape("flag", 0, 0, 20, 10), shape("TARGET", 3, 3, 5, 5)),
        "val/train_8.json": record(text="nothing here"),
    },
    means={
        ("train", "4_o.jpg", "What holds the tea?"): area(1, 2, 9, 8),
        ("train", "4_o.jpg", "the cup"): area(1, 2, 9, 8),
        ("val", "train_8.jpg", "nothing here"): NOTHING,
    },
)


def test_shapes_are_drawn_from_the_largest_to_the_smallest(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    # On the large target lies a region to ignore, and on that a small target, whatever their order in the file.
    shapes = (shape("target", 4, 4, 5, 5), shape("target", 1, 1, 9, 9), shape("ignore", 3, 3, 6, 6))
    EXAMPLE.write(tmp_path, {"train/4.json": record(*shapes)})
    with pytest.raises(
        AnnotationError, match=r"found 2 rows with regions to ignore, the first at train/4\.json text\[0\]"
    ):
        read(tmp_path, "reasonseg")

    options = ReadOptions(ignored_regions="background")
    found = meanings(read_source(find_dataset("custom/mine"), tmp_path, options, reader="reasonseg"))

    expected = area(1, 1, 9, 9) & ~area(3, 3, 6, 6) | area(4, 4, 5, 5)
    assert (found["train", "4.jpg", "the cup"] == expected).all()
    assert "regions to ignore of 2 rows count as background, the first at train/4.json text[0]" in caplog.text


def test_the_size_is_read_from_the_picture_beside_the_file(tmp_path: Path) -> None:
    EXAMPLE.write(tmp_path, {"train/4.json": record(shape("target", 1, 2, 9, 8), imageHeight=None, imageWidth=None)})
    with pytest.raises(AnnotationError, match=r"found no imageHeight, and no picture 4\.jpg beside the file"):
        read(tmp_path, "reasonseg")

    Image.new("RGB", (20, 10)).save(tmp_path / "train" / "4.jpg")

    found = meanings(read(tmp_path, "reasonseg"))
    assert (found["train", "train/4.jpg", "the cup"] == area(1, 2, 9, 8)).all()


def test_files_of_the_release_in_windows_1252_are_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    content = json.dumps(record(shape("target", 1, 2, 9, 8), text="the café"), ensure_ascii=False)
    EXAMPLE.write(tmp_path, {"train/4.json": content.encode("cp1252")})

    assert [sentence for _, _, sentence in meanings(read(tmp_path, "reasonseg"))] == ["the café"]
    assert "4.json: is not UTF-8 and was read as Windows-1252" in caplog.text


def test_another_label_is_named(tmp_path: Path) -> None:
    EXAMPLE.write(tmp_path, {"train/4.json": record(shape("cup", 1, 2, 9, 8))})

    with pytest.raises(AnnotationError, match=r"shapes\[0\] .*, expected the label target, ignore or flag"):
        read(tmp_path, "reasonseg")
