"""A picture in several splits or under several ids is reported by build, verify and stats, or refused on request."""

import json
import logging
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipelines.build import build_dataset
from pipelines.options import BuildOptions
from pipelines.shared_images import SharedImages
from pipelines.stats import stats_dataset
from refseg.cli import main
from refseg.errors import BuildError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """`p0.jpg`, a link to it, a copy of it, and another picture."""
    folder = tmp_path / "mine"
    (folder / "images/x").mkdir(parents=True)
    for name, colour in (("p0", "red"), ("p1", "blue")):
        Image.new("RGB", (20, 10), colour).save(folder / f"images/{name}.jpg")
    (folder / "images/link.jpg").symlink_to("p0.jpg")
    (folder / "images/x/copy.jpg").write_bytes((folder / "images/p0.jpg").read_bytes())
    return folder


def options(folder: Path, *rows: str, **changes: Any) -> BuildOptions:
    lines = ["image,sentence,split,box", *(f"{row},1 1 {4 + number} 4" for number, row in enumerate(rows))]
    (folder / "sentences.csv").write_text("\n".join(lines) + "\n")
    return BuildOptions(dataset="custom/mine", annotations=folder, out=folder / "out", workers=1, **changes)


@pytest.mark.parametrize("name", ["./p0.jpg", ".//p0.jpg", "images/p0.jpg", "link.jpg", "x//copy.jpg", "./x/copy.jpg"])
def test_one_picture_named_in_two_ways_in_two_splits_is_reported(
    name: str, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    build_dataset(options(folder, f"{name},it,train", "p0.jpg,it,val", "p1.jpg,it,val"))

    assert "the same picture (equal bytes) occurs more than once: 1 in several splits: " in caplog.text
    assert "in train and val; give each picture one name" in caplog.text
    assert stats_dataset(folder / "out").shared_images.num_between_splits == 1


def test_spellings_of_one_path_are_one_image(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    build_dataset(
        options(folder, "./p0.jpg,it,train", "p0.jpg,that,train", "x//copy.jpg,it,val", "./x/copy.jpg,it,val")
    )

    images = {
        split: {(row["image_id"], row["file_name"]) for row in pq.read_table(path).to_pylist()}
        for split in ("train", "val")
        if (path := folder / f"out/{split}-00000.parquet")
    }
    assert images == {"train": {(1, "p0.jpg")}, "val": {(2, "x/copy.jpg")}}
    assert "p0.jpg and x/copy.jpg (images 1 and 2) in train and val" in caplog.text


def test_two_ids_within_a_split_are_reported_as_such(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    build_dataset(options(folder, "p0.jpg,it,train", "x/copy.jpg,it,train", "p1.jpg,it,val"))

    assert "1 under several image ids of one split: p0.jpg and x/copy.jpg (images 1 and 2) in train;" in caplog.text


def test_shared_images_end_a_build_where_that_is_asked_for(folder: Path) -> None:
    refuse = {"on_shared_images": "refuse"}
    with pytest.raises(BuildError, match=r"more than once: 1 in several splits: p0.jpg \(image 1\) in train and val"):
        build_dataset(options(folder, "p0.jpg,it,train", "p0.jpg,it,val", **refuse))
    assert not (folder / "out").exists()

    build_dataset(options(folder, "p0.jpg,it,train", "p0.jpg,it,val"))
    with pytest.raises(BuildError, match="in several splits"):  # a finished dataset is looked at, too
        build_dataset(options(folder, "p0.jpg,it,train", "p0.jpg,it,val", **refuse))


def test_verify_and_stats_name_them_and_count_no_fault(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    build_dataset(options(folder, "p0.jpg,it,train", "p0.jpg,it,val"))
    out = str(folder / "out")

    assert main(["verify", out]) == 0
    assert f"{out}: note (not a fault): the same picture (equal bytes)" in capsys.readouterr().out
    assert main(["verify", out, "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["notes"]) == 1
    assert main(["stats", out]) == 0
    assert "1 in several splits: p0.jpg (image 1) in train and val" in capsys.readouterr().out


def test_two_records_of_one_file_are_reported_and_a_partitions_own_overlap_is_not(
    tiny: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tiny.add_image(13, ("val", "testA"))
    build_dataset(tiny.options(tmp_path / "as published"))
    assert "same picture" not in caplog.text
    assert stats_dataset(tmp_path / "as published").shared_images == SharedImages()

    tiny.images[0]["file_name"] = tiny.images[3]["file_name"]  # image 7 of val, image 11 of testA
    tiny.image_path(7).unlink()
    caplog.set_level(logging.WARNING)
    build_dataset(tiny.options(tmp_path / "two records"))
    assert "1 in several splits: COCO_train2014_000000000011.jpg (images 7 and 11) in val and testA" in caplog.text
