"""A build of files that a reader was named for."""

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipelines.build import build_dataset
from pipelines.options import BuildOptions
from pipelines.verify import verify_dataset
from refseg.errors import AnnotationError, BuildError

from .test_sa2va import EXAMPLE


def options(folder: Path, **changes: Any) -> BuildOptions:
    given = {"dataset": "custom/mine", "annotations": folder, "out": folder / "out", "reader": "sa2va", "workers": 1}
    return BuildOptions(**{**given, **changes})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The example of `sa2va` with its pictures."""
    folder = EXAMPLE.write(tmp_path / "set")
    (folder / "images").mkdir()
    for name in ("a.jpg", "b.jpg", "c.jpg"):
        Image.new("RGB", (20, 10), "white").save(folder / "images" / name)
    return folder


def test_it_is_whole_and_its_reader_is_part_of_the_plan(folder: Path) -> None:
    build_dataset(options(folder))

    assert verify_dataset(folder / "out") == []
    rows = pq.read_table(folder / "out" / "train-00000.parquet").to_pylist()
    expected = {sentence: int(mask.sum()) for (_, _, sentence), mask in EXAMPLE.means.items()}
    assert {row["sentences"][0]["sent"]: row["area"] for row in rows} == expected
    with pytest.raises(BuildError, match="as_split: none, now val"):
        build_dataset(options(folder, as_split="val"))


def test_a_shape_at_fault_is_named_by_file_and_position(folder: Path) -> None:
    EXAMPLE.write(folder, {"refs_train.json": [{"image": "a.jpg", "mask": [[[1, 2, 900, 2, 5, 6]]], "text": ["far"]}]})

    with pytest.raises(
        AnnotationError, match=r"^custom/mine refs_train.json \[0\] text\[0\]: polygons: one of its poly"
    ):
        build_dataset(options(folder))
