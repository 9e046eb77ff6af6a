from io import BytesIO
from random import Random

import numpy as np
import pytest
from PIL import Image, UnidentifiedImageError

from pipelines.jpeg_faults import find_jpeg_fault


def jpeg(mode: str = "RGB", size: tuple[int, int] = (90, 70), **options: object) -> bytes:
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    file = BytesIO()
    Image.fromarray(noise).convert(mode).save(file, "jpeg", **options)
    return file.getvalue()


def size_of(data: bytes) -> tuple[int, int] | None:
    try:
        with Image.open(BytesIO(data), formats=["JPEG"]) as picture:
            return picture.size
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError):
        return None


def decoding_fails(data: bytes) -> bool:
    """Whether Pillow fails to make all pixels at their full size."""
    try:
        with Image.open(BytesIO(data), formats=["JPEG"]) as picture:
            picture.load()
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, IndexError):
        return True
    return False


FORMS = {
    "colour": jpeg(),
    "4:4:4": jpeg(subsampling=0),
    "progressive": jpeg(progressive=True),
    "restart markers": jpeg(restart_marker_rows=1),
    "grey": jpeg("L"),
    "CMYK": jpeg("CMYK"),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_whole_jpeg_of_any_form_has_no_fault(form: str) -> None:
    assert find_jpeg_fault(FORMS[form], 70, 90, decode=True) is None


@pytest.mark.parametrize("size", [(1, 1), (7, 300), (9, 8)])
def test_a_small_or_narrow_picture_has_no_fault(size: tuple[int, int]) -> None:
    assert find_jpeg_fault(jpeg(size=size), size[1], size[0], decode=True) is None


@pytest.mark.parametrize("form", FORMS)
def test_reduced_decoding_finds_what_whole_decoding_finds(form: str) -> None:
    rng = Random(form)
    found = {True: 0, False: 0}
    for number in range(60):
        data = bytearray(FORMS[form])
        place = rng.randrange(2, len(data))
        if number % 3 == 0:
            del data[place:]
        elif number % 3 == 1:
            data[place] ^= 1 << rng.randrange(8)
        else:
            del data[place : place + rng.randrange(1, 400)]
        if size_of(bytes(data)) not in (None, (90, 70)):
            continue
        is_bad = decoding_fails(bytes(data))
        assert (find_jpeg_fault(bytes(data), 70, 90, decode=True) is not None) == is_bad, (form, number)
        found[is_bad] += 1
    assert min(found.values()) >= 5


def test_sampling_that_cannot_be_decoded_is_found() -> None:
    # The check decodes without colour, but still finds faults of the colour data.
    data = FORMS["4:4:4"]
    start = data.index(b"\xff\xc0") + 11  # sampling factors of Y; those of Cb and Cr follow three bytes apart
    answers = set()
    for place in (start, start + 3, start + 6):
        for factors in (0x11, 0x12, 0x13, 0x14, 0x21, 0x22, 0x23, 0x31, 0x32, 0x33, 0x41, 0x42, 0x44, 0x00, 0x55):
            changed = bytearray(data)
            changed[place] = factors
            is_bad = decoding_fails(bytes(changed))
            assert (find_jpeg_fault(bytes(changed), 70, 90, decode=True) is not None) == is_bad, (place, factors)
            answers.add(is_bad)
    assert answers == {True, False}


def test_the_fault_is_named() -> None:
    whole = FORMS["colour"]

    assert find_jpeg_fault(whole, 90, 71, decode=True) == (
        "size_mismatch",
        "is 90 x 70 pixels, expected 71 x 90 as annotated; it may have been resized: use the original file",
    )
    assert find_jpeg_fault(whole, 90, 70, decode=True) == (
        "size_mismatch",
        "is 90 x 70 pixels, expected 70 x 90 as annotated; width and height are exchanged: correct them in the "
        "annotations, or rotate the picture",
    )
    reason, found = find_jpeg_fault(whole[:-200], 70, 90, decode=True) or ("", "")
    assert reason == "truncated_image"
    assert found.startswith("cannot be decoded completely (")
    assert find_jpeg_fault(whole[:10], 70, 90, decode=True) == (
        "truncated_image",
        "ends or is damaged within its first 10 bytes; fetch the file again",
    )
    assert find_jpeg_fault(b"GIF89a", 70, 90, decode=True) == (
        "not_a_jpeg",
        "starts with 47 49 46 38, expected a JPEG; it is a GIF: save it as JPEG",
    )
    fault = find_jpeg_fault(b"", 70, 90, decode=True)
    assert fault == ("not_a_jpeg", "is empty, expected a JPEG; fetch the file again")


THUMBNAIL = b"\xff\xe1" + (4 + len(FORMS["grey"])).to_bytes(2) + b"\0\0" + FORMS["grey"]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("decode", [True, False])
def test_what_follows_the_end_of_a_picture_is_not_looked_at(form: str, decode: bool) -> None:
    video = b"\0\0\0\x18ftypmp42" + bytes(1 << 18)

    assert find_jpeg_fault(FORMS[form] + video, 70, 90, decode=decode) is None
    assert find_jpeg_fault(FORMS[form][:2] + THUMBNAIL + FORMS[form][2:], 70, 90, decode=decode) is None


@pytest.mark.parametrize("form", FORMS)
def test_the_end_of_a_thumbnail_or_of_what_follows_is_not_that_of_the_picture(form: str) -> None:
    cut = FORMS[form][: -len(FORMS[form]) // 3]

    for data in (cut, cut[:2] + THUMBNAIL + cut[2:], FORMS[form][:-2], cut[:-1] + b"\xff"):
        reason, found = find_jpeg_fault(data, 70, 90, decode=False) or ("", "")
        assert (reason, found) == ("truncated_image", "has no end marker; fetch the file again")


@pytest.mark.parametrize(
    ("orientation", "size", "is_named"), [(6, (90, 70), True), (3, (90, 70), False), (6, (80, 70), False)]
)
def test_a_picture_that_only_its_tag_turns_is_named(orientation: int, size: tuple[int, int], is_named: bool) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation

    reason, found = find_jpeg_fault(jpeg(size=size, exif=exif), 90, 70, decode=True) or ("", "")

    assert reason == "size_mismatch"
    assert found.startswith(f"is {size[0]} x 70 pixels, expected 70 x 90 as annotated; ")
    assert ("stored rotated (EXIF orientation 6) and is read as stored: rotate the pixels" in found) == is_named


def test_a_damaged_tag_says_nothing_of_turns() -> None:
    data = jpeg(exif=b"Exif\0\0neither II nor MM")

    assert (find_jpeg_fault(data, 90, 70, decode=True) or ("", ""))[1].endswith("or rotate the picture")


def test_what_gave_the_size_is_named() -> None:
    reason, found = find_jpeg_fault(FORMS["grey"], 10, 20, decode=False, size_from="line 2 (mask m.png)") or ("", "")

    assert (reason, found) == (
        "size_mismatch",
        "is 90 x 70 pixels, expected 20 x 10 as annotated; line 2 (mask m.png) gives that size: correct it, or use "
        "the picture for which it was made",
    )
