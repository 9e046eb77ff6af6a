from io import BytesIO
from random import Random

import numpy as np
import pytest
from PIL import Image, UnidentifiedImageError

from pipelines.images import find_jpeg_fault


def jpeg(mode: str = "RGB", size: tuple[int, int] = (90, 70), **options: object) -> bytes:
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    file = BytesIO()
    Image.fromarray(noise).convert(mode).save(file, "jpeg", **options)
    return file.getvalue()


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
        try:
            with Image.open(BytesIO(data), formats=["JPEG"]) as picture:
                if picture.size != (90, 70):
                    continue
                picture.load()
            is_bad = False
        except (UnidentifiedImageError, OSError, SyntaxError, ValueError, IndexError):
            is_bad = True
        assert (find_jpeg_fault(bytes(data), 70, 90, decode=True) is not None) == is_bad, (form, number)
        found[is_bad] += 1
    assert min(found.values()) >= 5


def test_the_fault_is_named() -> None:
    whole = FORMS["colour"]

    assert find_jpeg_fault(whole, 90, 70, decode=True) == (
        "size_mismatch",
        "is 90 x 70 pixels, expected 70 x 90 as annotated; was it resized? take the original file",
    )
    reason, found = find_jpeg_fault(whole[:-200], 70, 90, decode=True) or ("", "")
    assert reason == "truncated_image"
    assert found.startswith("cannot be decoded whole (")
    assert find_jpeg_fault(whole[:10], 70, 90, decode=True) == (
        "truncated_image",
        "ends or is damaged within its first 10 bytes; fetch the file again",
    )
    assert find_jpeg_fault(b"GIF89a", 70, 90, decode=True) == (
        "not_a_jpeg",
        "starts with 47 49 46 38, expected a JPEG; fetch the file again",
    )
    fault = find_jpeg_fault(b"", 70, 90, decode=True)
    assert fault == ("not_a_jpeg", "is empty, expected a JPEG; fetch the file again")
