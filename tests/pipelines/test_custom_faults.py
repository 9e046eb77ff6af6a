"""Faults of users' own data: errors name the table's lines, not ids that users never gave."""

from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image, ImageDraw

from pipelines.build import build_dataset
from pipelines.options import BuildOptions
from refseg.errors import AnnotationError, BuildError, ImageError, RefsegError, UsageError
from refseg.mask_png import PngRule

HEADER = "image,sentence,split,mask,box,rle,height,width\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """`a.jpg` of 20 x 10 pixels, and two masks: an empty one, and one of another size."""
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
        "custom/mine sentences.csv line 3: box 25.5 2 4 4 extends beyond the image (20 x 10 pixels), "
        "expected left, top, width, height in pixels of the image",
    ),
    (
        "a.jpg,it,train,,16 4 19 9,,,",
        AnnotationError,
        "line 3: box 16 4 19 9 extends beyond the image (20 x 10 pixels), "
        "expected left, top, width, height in pixels of the image; it may be left, top, right, bottom instead",
    ),
    (
        "a.jpg,it,train,,0.25 0.25 0.5 0.5,,,",
        AnnotationError,
        "line 3: box 0.25 0.25 0.5 0.5 has coordinates from 0.25 to 0.5, which is one pixel in the corner, expected "
        "pixels of the image (20 x 10); multiply fractions of the picture by its width and height (YOLO's boxes begin",
    ),
    (
        "a.jpg,it,train,,250 500 750 1000,,,",
        AnnotationError,
        "line 3: box 250 500 750 1000 extends beyond the image (20 x 10 pixels), expected left, top, width, height in "
        "pixels of the image; it may be in thousandths of the picture (0 to 1000), as some models return boxes",
    ),
    (
        "a.jpg,it,train,,5 5 0 5,,,",
        AnnotationError,
        "line 3: found box '5 5 0 5', expected left, top, width, height, the last two above 0",
    ),
    (
        "a.jpg,it,train,,nan 5 1 5,,,",
        AnnotationError,
        "line 3: found box 'nan 5 1 5', expected left, top, width, height",
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
        "sentences.csv line 3: found no file s/a.jpg; there is a.jpg",
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

    assert str(caught.value) == (
        "custom/mine sentences.csv line 2: mask wide.png is 30 x 10 pixels, but a.jpg is 20 x 10; correct it, or use "
        "the picture for which it was made"
    )


RLE = '"{""size"": [10, 30], ""counts"": [0, 5, 295]}"'


@pytest.mark.parametrize(("wrong", "target"), [("wide.png,,,,", "mask wide.png"), (f",,{RLE},,", "rle")])
def test_a_mask_of_another_size_speaks_for_no_other_row_of_its_picture(wrong: str, target: str, folder: Path) -> None:
    rows = (f"a.jpg,it,train,{wrong}", "a.jpg,box,train,,16 6 4 4,,,", "a.jpg,other,val,,15 5 4 4,,,")

    build(folder, *rows, on_bad_sample="skip")

    (reject,) = pq.read_table(folder / "out/rejects.parquet").to_pylist()
    assert (reject["ref_id"], reject["reason"]) == (0, "size_mismatch")
    assert f"line 2: {target} is 30 x 10 pixels, but a.jpg is 20 x 10;" in reject["message"]
    for split in ("train", "val"):
        (row,) = pq.read_table(folder / f"out/{split}-00000.parquet").to_pylist()
        assert (row["height"], row["width"], row["area"]) == (10, 20, 16)


def test_a_damaged_picture_is_named_by_the_line_of_each_ref(folder: Path) -> None:
    (folder / "images" / "b.jpg").write_bytes((folder / "images" / "a.jpg").read_bytes()[:-4])

    build(folder, GOOD, "b.jpg,it,train,,1 1 4 4,,10,20", "b.jpg,that,train,,1 1 4 5,,,", on_bad_sample="skip")

    rejects = pq.read_table(folder / "out/rejects.parquet").to_pylist()
    for line, reject in zip((3, 4), rejects, strict=True):
        assert reject["reason"] == "truncated_image"
        assert reject["message"].startswith(
            f"custom/mine sentences.csv line {line}: b.jpg cannot be decoded completely ("
        )


def test_a_size_given_in_words_is_not_read_from_the_picture(folder: Path) -> None:
    with pytest.raises(ImageError) as caught:
        build(folder, "a.jpg,it,train,wide.png,,,,", "a.jpg,box,train,,1 1 4 4,,10,30")

    assert str(caught.value) == (
        "custom/mine sentences.csv line 2: "
        "a.jpg is 20 x 10 pixels, expected 30 x 10 as annotated; sentences.csv line 3 gives that size: correct it, or "
        "use the picture for which it was made"
    )


def test_a_mask_drawn_on_a_picture_as_shown_is_told_so(folder: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (10, 30)).save(folder / "images" / "a.jpg", exif=exif)

    with pytest.raises(ImageError, match=r"expected 30 x 10 as annotated; it is stored rotated \(EXIF orientation 6\)"):
        build(folder, "a.jpg,it,train,wide.png,,,,")


def test_missing_pictures_are_named_together_each_with_what_may_be_meant(folder: Path) -> None:
    images = folder / "images"
    (images / "s").mkdir()
    for name in ("B.JPG", "s/c.jpg", "caf\N{LATIN SMALL LETTER E WITH ACUTE}.jpg", "d.png", " e.jpg"):
        (images / name).write_bytes((images / "a.jpg").read_bytes())
    names = ["b.jpg", "s\\c.jpg", "cafe\N{COMBINING ACUTE ACCENT}.jpg", "d.jpg", "e.jpg", *"123456"]

    with pytest.raises(ImageError) as caught:
        build(folder, GOOD, *(f"{name},{text},train,,1 1 4 4,,10,20" for name in names for text in ("it", "that")))

    first, *lines = str(caught.value).splitlines()
    assert first.startswith(f"custom/mine: 11 of 12 pictures are not below {folder}; names must match exactly")
    assert lines[:6] == [
        "  sentences.csv line 3: found no file b.jpg; there is B.JPG",
        "  sentences.csv line 5: found no file s\\c.jpg; there is s/c.jpg",
        "  sentences.csv line 7: found no file cafe\N{COMBINING ACUTE ACCENT}.jpg; there is "
        "caf\N{LATIN SMALL LETTER E WITH ACUTE}.jpg, whose letters are encoded differently in Unicode "
        r"('caf\xe9.jpg' for 'cafe\u0301.jpg')",
        "  sentences.csv line 9: found no file d.jpg; there is d.png",
        "  sentences.csv line 11: found no file e.jpg; there is ' e.jpg'",
        "  sentences.csv line 13: found no file 000000000001.jpg",
    ]
    assert lines[10:] == ["  and 1 more"]


def test_where_no_picture_is_found_the_call_is_at_fault(folder: Path) -> None:
    (folder / "images" / "a.jpg").rename(folder / "images" / "b.jpg")

    with pytest.raises(UsageError, match=r"1 of 1 pictures are not below .*\n  sentences.csv line 2: found no file a"):
        build(folder, GOOD)


def test_a_skipped_missing_picture_is_named_by_the_line_of_each_ref(folder: Path) -> None:
    build(folder, GOOD, "b.jpg,it,train,,1 1 4 4,,10,20", "b.jpg,that,train,,1 1 4 5,,,", on_bad_sample="skip")

    rejects = pq.read_table(folder / "out/rejects.parquet").to_pylist()
    assert [(reject["reason"], reject["message"]) for reject in rejects] == [
        ("missing_image", f"custom/mine sentences.csv line {line}: found no file b.jpg, with the folders of its name; "
         "give --images") for line in (3, 4)
    ]  # fmt: skip


def test_where_the_table_gives_no_size_the_picture_does(folder: Path) -> None:
    build(folder, "a.jpg,it,train,,16 6 4 4,,,", "a.jpg,that,val,,1 1 4 4,,,")

    (row,) = pq.read_table(folder / "out/train-00000.parquet").to_pylist()
    assert (row["height"], row["width"], row["area"]) == (10, 20, 16)


UNSIZED: list[tuple[str, bytes, str]] = [
    ("b.jpg", b"", "line 3: b.jpg is empty, expected a JPEG; fetch the file again"),
    ("b.jpg", b"\x89PNG\r\n", "line 3: b.jpg starts with 89 50 4e 47, expected a JPEG; it is a PNG: save it as JPEG"),
    ("b.jpg", b"\xff\xd8\xff\xe0", "line 3: b.jpg ends or is damaged within its first 4 bytes; fetch the file again"),
]


@pytest.mark.parametrize(("name", "data", "message"), UNSIZED)
def test_a_picture_that_does_not_tell_its_size_is_named(name: str, data: bytes, message: str, folder: Path) -> None:
    (folder / "images" / name).write_bytes(data)

    with pytest.raises(ImageError) as caught:
        build(folder, GOOD, f"{name},it,train,,1 1 4 4,,,")

    assert str(caught.value) == f"custom/mine sentences.csv {message}"


def test_a_picture_that_lies_on_its_side_needs_its_size_told(folder: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (20, 10)).save(folder / "images" / "a.jpg", exif=exif)

    with pytest.raises(ImageError) as caught:
        build(folder, "a.jpg,it,train,,1 1 4 4,,,")

    said = "line 2: a.jpg is stored rotated (EXIF orientation 6): 20 x 10 pixels as stored, 10 x 20 as shown; rotate"
    assert said in str(caught.value)
    build(folder, GOOD)


def test_a_size_is_read_from_a_head_that_is_longer_than_the_first_look(folder: Path) -> None:
    exif, profile = Image.Exif(), bytes(200_000)
    exif[0x010E] = "x" * 60_000
    Image.new("RGB", (20, 10)).save(folder / "images" / "a.jpg", exif=exif, icc_profile=profile)

    build(folder, "a.jpg,it,train,,16 6 4 4,,,")

    assert pq.read_table(folder / "out/train-00000.parquet")["width"].to_pylist() == [20]


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


def test_a_rule_for_masks_is_recorded_and_a_build_with_another_is_refused(folder: Path) -> None:
    edges = Image.new("L", (20, 10))
    ImageDraw.Draw(edges).rectangle((2, 2, 5, 5), fill=255, outline=99)
    edges.save(folder / "edges.png")
    (folder / "sentences.csv").write_text("image,sentence,split,mask\na.jpg,it,train,edges.png\n")
    options = BuildOptions(dataset="custom/mine", annotations=folder, out=folder / "out", workers=1)

    with pytest.raises(AnnotationError, match=r"line 2: mask edges.png holds 3 values \(0, 99, 255\)"):
        build_dataset(options)
    descriptor = build_dataset(replace(options, png_rule=PngRule(threshold=128))).descriptor

    assert descriptor is not None
    assert descriptor.plan_keys["mask_png"] == "object >= 128"
    (row,) = pq.read_table(folder / "out/train-00000.parquet").to_pylist()
    assert row["area"] == 4
    for stage in ("all", "finalize"):
        with pytest.raises(BuildError, match=r"mask_png: object >= 128, now object >= 9"):
            build_dataset(replace(options, png_rule=PngRule(threshold=9), stage=stage))
    with pytest.raises(UsageError, match=r"refcoco/unc: found options --mask-\.\.\., which apply only to mask PNGs"):
        replace(options, dataset="refcoco/unc", png_rule=PngRule(threshold=9))
