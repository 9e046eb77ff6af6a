"""Faults of users' own data that a build finds: named by what the user wrote, not by ids they never gave."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image, ImageDraw

from pipelines.build import build_dataset
from pipelines.options import BuildOptions
from refseg.errors import AnnotationError, ImageError, RefsegError

HEADER = "image,sentence,split,mask,box,rle,height,width\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """`a.jpg` of 20 x 10 pixels, and two masks: one with nothing in it, one of another size."""
    folder = tmp_path / "mine"
    (folder / "images").mkdir(parents=True)
    Image.new("RGB", (20, 10)).save(folder / "images" / "a.jpg")
    Image.new("L", (20, 10)).save(folder / "none.png")
    wide = Image.new("L", (30, 10))
    ImageDraw.Draw(wide).rectangle((2, 2, 5, 5), fill=255)
    wide.save(folder / "wide.png")
    return folder


def build(folder: Path, *rows: str, on_bad_sample: str = "fail") -> None:
    (folder / "sentences.csv").write_text(HEADER + "".join(row + "\n" for row in rows))
    build_dataset(
        BuildOptions(
            dataset="custom/mine", annotations=folder, out=folder / "out", workers=1, on_bad_sample=on_bad_sample
        )
    )


GOOD = "a.jpg,it,train,,1 1 4 4,,10,20"
FAULTS: list[tuple[str, type[RefsegError], str]] = [
    (
        "a.jpg,it,train,none.png,,,,",
        AnnotationError,
        "custom/mine sentences.csv line 3: mask none.png covers no pixel of the image (20 x 10 pixels), "
        "expected an area or no_target",
    ),
    (
        "a.jpg,it,train,,25.5 2 4 4,,,",
        AnnotationError,
        "custom/mine sentences.csv line 3: box 25.5 2 4 4 reaches out of the image (20 x 10 pixels), "
        "expected left, top, width, height in pixels of the image",
    ),
    (
        "a.jpg,it,train,,16 4 19 9,,,",
        AnnotationError,
        "line 3: box 16 4 19 9 reaches out of the image (20 x 10 pixels), "
        "expected left, top, width, height in pixels of the image; is it left, top, right, bottom?",
    ),
    (
        "a.jpg,it,train,,20.5 2 0.5 4,,,",
        AnnotationError,
        "line 3: box 20.5 2 0.5 4 covers no pixel of the image (20 x 10 pixels), expected an area or no_target",
    ),
    (
        'a.jpg,it,train,,,"{""size"": [10, 20], ""counts"": [5]}",,',
        AnnotationError,
        "custom/mine sentences.csv line 3: rle: its run lengths sum to 5, expected 10 x 20 = 200",
    ),
    (
        "s/a.jpg,it,val,,1 1 4 4,,10,20",
        ImageError,
        "found no file s/a.jpg, with the folders of its name; give --images",
    ),
]


@pytest.mark.parametrize(("row", "kind", "message"), FAULTS)
def test_a_fault_is_named_by_line_and_target(row: str, kind: type[RefsegError], message: str, folder: Path) -> None:
    with pytest.raises(kind) as caught:
        build(folder, GOOD, row)

    assert message in str(caught.value)


def test_a_box_is_clipped_where_it_reaches_out_by_a_pixel_and_rejected_beyond(folder: Path) -> None:
    build(folder, "a.jpg,clip,train,,-1 4 4 7,,10,20", "a.jpg,far,train,,-1.5 4 4 4,,,", on_bad_sample="skip")

    (row,) = pq.read_table(folder / "out/train-00000.parquet").to_pylist()
    (reject,) = pq.read_table(folder / "out/rejects.parquet").to_pylist()
    # Of columns -1 to 2 and rows 4 to 10, columns 0 to 2 and rows 4 to 9 are in a picture of 20 x 10: 3 x 6 pixels.
    assert list(row["box_xywh"]) == [0, 4, 3, 6]
    assert row["area"] == row["annotations"][0]["area"] == 18
    assert reject["reason"] == "box_outside"


def test_a_mask_of_another_size_than_its_picture_is_named(folder: Path) -> None:
    with pytest.raises(ImageError) as caught:
        build(folder, "a.jpg,it,train,wide.png,,,,")

    assert str(caught.value).endswith(
        "a.jpg is 20 x 10 pixels, expected 30 x 10 as annotated; sentences.csv line 2 (mask wide.png) gives that size: "
        "correct it, or take the picture it was made for"
    )


def test_pictures_of_one_name_in_two_folders_are_two(folder: Path) -> None:
    for name, colour in (("s", "red"), ("t", "blue")):
        (folder / "images" / name).mkdir()
        Image.new("RGB", (20, 10), colour).save(folder / "images" / name / "a.jpg")

    build(folder, GOOD, "s/a.jpg,it,train,,1 1 4 4,,10,20", "t/a.jpg,it,train,,1 1 4 4,,10,20")

    rows = pq.read_table(folder / "out/train-00000.parquet").to_pylist()
    tar = (folder / "out/train-00000.tar").read_bytes()
    for row in rows:
        stored = tar[row["image_offset"] :][: row["image_bytes"]]
        assert stored == (folder / "images" / row["file_name"]).read_bytes()
    assert len(rows) == 3
