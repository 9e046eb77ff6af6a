"""Sa2VA's list."""

from pathlib import Path

import pytest

from refseg.errors import AnnotationError

from .example import Example, area, corners, read

EXAMPLE = Example(
    reader="sa2va",
    files={
        "refs_train.json": [
            {
                "image": "a.jpg",
                "mask": [[corners(1, 2, 5, 6), corners(3, 2, 7, 6)], [corners(10, 0, 12, 3)]],
                "text": ["both parts", "the small one"],
            },
            {"image": "b.jpg", "mask": [corners(0, 0, 4, 4)], "text": "without the outer lists"},
            {"img_path": "c.jpg", "mask": {"size": [10, 20], "counts": [0, 10, 190]}, "text": "run lengths"},
        ]
    },
    means={
        ("train", "a.jpg", "both parts"): area(1, 2, 7, 6),
        ("train", "a.jpg", "the small one"): area(10, 0, 12, 3),
        ("train", "b.jpg", "without the outer lists"): area(0, 0, 4, 4),
        ("train", "c.jpg", "run lengths"): area(0, 0, 1, 10),
    },
)


def test_masks_and_texts_of_other_numbers_are_named(tmp_path: Path) -> None:
    EXAMPLE.write(tmp_path, {"train.json": [{"image": "a.jpg", "mask": [[corners(0, 0, 4, 4)]], "text": ["a", "b"]}]})

    with pytest.raises(AnnotationError, match=r"train.json \[0\]: found .*, expected image, and mask and text"):
        read(tmp_path, "sa2va")
