"""Pictures of other kinds than JPEG, and pictures that EXIF rotates, on request."""

import json
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image, features

from pipelines.build import build_dataset
from pipelines.convert_images import ImageConversion, convert_to_jpeg
from pipelines.jpeg_faults import JpegFault
from pipelines.options import BuildOptions
from pipelines.verify import verify_dataset
from refseg.errors import BuildError, ImageError, UsageError

PIXELS = np.random.default_rng(0).integers(0, 256, (10, 20, 3), dtype=np.uint8)
KINDS = ["PNG", "WEBP", "BMP", "TIFF", *(["AVIF"] if features.check("avif") else [])]


def saved(picture: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def as_jpeg(picture: Image.Image) -> bytes:
    return saved(picture, "JPEG", quality=90)


def build(folder: Path, out: str = "out", **options: Any) -> list[dict[str, Any]]:
    given = {"dataset": "custom/mine", "annotations": folder, "out": folder / out, "workers": 1, **options}
    build_dataset(BuildOptions(**given))
    assert verify_dataset(folder / out) == []
    return pq.read_table(folder / out / "train-00000.parquet").to_pylist()


def write(folder: Path, data: bytes, name: str = "a.png", **row: Any) -> Path:
    fields = {"image": name, "sentence": "the left", "split": "train", "box": [0, 0, 4, 2], **row}
    folder.mkdir(exist_ok=True)
    (folder / name).write_bytes(data)
    (folder / "sentences.jsonl").write_text(json.dumps(fields))
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_a_picture_of_another_kind_is_what_pillow_makes_of_it(kind: str) -> None:
    data = saved(Image.fromarray(PIXELS), kind)

    with Image.open(BytesIO(data)) as picture:
        assert convert_to_jpeg(data, ImageConversion(quality=90)) == as_jpeg(picture.convert("RGB"))


def test_a_jpeg_keeps_its_bytes_and_grey_stays_grey() -> None:
    turned = Image.Exif()
    turned[0x0112] = 6
    conversion = ImageConversion(quality=90)
    for data in (as_jpeg(Image.fromarray(PIXELS)), saved(Image.fromarray(PIXELS), "JPEG", exif=turned)):
        assert convert_to_jpeg(data, conversion) is data
    grey = convert_to_jpeg(saved(Image.fromarray(PIXELS[..., 0]), "PNG"), conversion)
    assert isinstance(grey, bytes)
    assert Image.open(BytesIO(grey)).mode == "L"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            saved(Image.fromarray(PIXELS[..., 0].astype(np.uint16)), "PNG"),
            "has pixels of the kind I;16, expected 8 bits",
        ),
        (
            saved(Image.fromarray(PIXELS), "GIF", save_all=True, append_images=[Image.new("RGB", (20, 10))]),
            "is a GIF: save it as JPEG",
        ),
        (
            saved(Image.fromarray(PIXELS), "WEBP", save_all=True, append_images=[Image.new("RGB", (20, 10))]),
            "holds 2 pictures, expected one",
        ),
        (saved(Image.fromarray(PIXELS), "PNG")[:-40], "cannot be decoded completely"),
        (b"\xff\xd8\xff\xe0", "ends or is damaged within its first 4 bytes"),
        (b"text", "expected a JPEG"),
    ],
)
def test_what_cannot_be_converted_is_a_fault(data: bytes, message: str) -> None:
    fault = convert_to_jpeg(data, ImageConversion(quality=90, is_upright=True))

    assert isinstance(fault, JpegFault)
    assert message in fault.found


def test_a_build_converts_on_request_alone_and_its_plan_says_so(tmp_path: Path) -> None:
    write(tmp_path, saved(Image.fromarray(PIXELS), "PNG"))
    with pytest.raises(ImageError, match=r"sentences.jsonl line 1: a\.png .*is a PNG"):
        build(tmp_path)

    (row,) = build(tmp_path, convert_images=90)

    assert (row["file_name"], row["height"], row["width"]) == ("a.png", 10, 20)
    tar = (tmp_path / "out" / "train-00000.tar").read_bytes()
    stored = tar[row["image_offset"] : row["image_offset"] + row["image_bytes"]]
    assert stored == as_jpeg(Image.fromarray(PIXELS))
    keys = json.loads((tmp_path / "out" / "refseg.json").read_text())["plan_keys"]
    assert keys["convert_images"].startswith("jpeg quality 90 pillow ")
    with pytest.raises(BuildError, match=r"convert_images: jpeg quality 90 .*, now jpeg quality 80"):
        build(tmp_path, convert_images=80)


def test_exif_apply_turns_pictures_to_what_a_viewer_shows(tmp_path: Path) -> None:
    turned = Image.Exif()
    turned[0x0112] = 6  # shown after a quarter turn to the right: 10 pixels wide, 20 high
    stored = saved(Image.fromarray(PIXELS), "JPEG", quality=95, exif=turned)
    write(tmp_path, stored, "a.jpg", height=20, width=10, box=[0, 0, 2, 4])
    with pytest.raises(ImageError, match="is stored rotated"):
        build(tmp_path)

    (row,) = build(tmp_path, convert_images=90, exif="apply")

    assert (row["height"], row["width"], row["area"]) == (20, 10, 8)
    tar = (tmp_path / "out" / "train-00000.tar").read_bytes()
    data = tar[row["image_offset"] : row["image_offset"] + row["image_bytes"]]
    assert data == as_jpeg(Image.open(BytesIO(stored)).transpose(Image.Transpose.ROTATE_270))
    write(tmp_path / "two", stored, "a.jpg", box=[0, 0, 2, 4])  # the size is the turned picture's
    assert build(tmp_path / "two", convert_images=90, exif="apply")[0]["height"] == 20


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"convert_images": 101}, "--convert-images 101: expected a JPEG quality, 1 to 100"),
        ({"exif": "apply"}, "--exif apply saves rotated pictures again; give their quality with --convert-images"),
        ({"exif": "turn"}, "--exif turn: expected stored or apply"),
    ],
)
def test_options_that_contradict_each_other_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        BuildOptions(dataset="custom/mine", annotations="in", out="out", **options)
