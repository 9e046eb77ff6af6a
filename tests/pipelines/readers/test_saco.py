"""SA-Co JSON of SAM 3."""

from pathlib import Path

import pytest

from refseg.errors import AnnotationError

from .example import NOTHING, Example, area, read


def pair(key: int, text: str, **fields: object) -> dict[str, object]:
    facts = {"file_name": "1/a.jpg", "height": 10, "width": 20, "is_instance_exhaustive": 1, "is_pixel_exhaustive": 1}
    return {"id": key, "text_input": text, **facts, "queried_category": "7", **fields}


def instance(image_id: int, counts: list[int]) -> dict[str, object]:
    shape = {"size": [10, 20], "counts": counts}
    return {"id": image_id, "image_id": image_id, "bbox": [0.1, 0, 0.2, 1], "area": 0.1, "segmentation": shape}


EXAMPLE = Example(
    reader="saco",
    files={
        "val.json": {
            "annotations": [instance(10, [0, 10, 190]), instance(10, [180, 20]), instance(12, [0, 10, 190])],
            "images": [
                pair(10, "chili"),
                pair(11, "the fish ball"),
                pair(12, "some", is_instance_exhaustive=0, is_pixel_exhaustive=0),
            ],
        }
    },
    means={
        ("val", "1/a.jpg", "chili"): area(0, 0, 1, 10) | area(18, 0, 20, 10),
        ("val", "1/a.jpg", "the fish ball"): NOTHING,
    },
    leaves_out=("val.json: left out 1 pairs that are marked as annotated incompletely",),
)


def test_masks_of_no_pair_are_named(tmp_path: Path) -> None:
    EXAMPLE.write(tmp_path, {"val.json": {"images": [pair(10, "chili")], "annotations": [instance(13, [0, 200])]}})

    with pytest.raises(AnnotationError, match=r"val.json image_id 13: is named by annotations and is not in images"):
        read(tmp_path, "saco")
