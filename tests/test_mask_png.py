import zlib
from collections.abc import Callable
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from PIL import Image

from refseg.errors import AnnotationError, UsageError
from refseg.mask_png import DEFAULT_RULE, PngRule, note_object_values, read_mask_png

DRAWN = np.zeros((10, 20), bool)
DRAWN[3:5, 7:10] = True


def png(picture: Image.Image, **options: Any) -> bytes:
    file = BytesIO()
    picture.save(file, "PNG", **options)
    return file.getvalue()


def grey(values: object) -> Image.Image:
    return Image.fromarray(np.asarray(values, np.uint8))


def with_alpha(colour: np.ndarray, alpha: np.ndarray) -> Image.Image:
    return Image.merge("LA", [grey(colour), grey(alpha)])


def palette(values: np.ndarray, colours: list[int]) -> Image.Image:
    picture = grey(values)
    picture.putpalette(colours)
    return picture


FORMS: dict[str, tuple[Callable[[], Image.Image], str]] = {
    "255": (lambda: grey(DRAWN * 255), "255"),
    "1": (lambda: grey(DRAWN), "1"),
    "one bit": (lambda: Image.fromarray(DRAWN), "255"),
    "16 bits": (lambda: Image.fromarray(DRAWN.astype(np.uint16) * 256), "256"),
    "grey saved as colours": (lambda: grey(DRAWN * 255).convert("RGB"), "255"),
    "one colour": (lambda: Image.fromarray(DRAWN[..., None] * np.array([0, 0, 9], np.uint8)), "#000009"),
    "palette": (lambda: palette(DRAWN * 2, [0, 0, 0, 128, 0, 0, 0, 0, 0]), "2"),
    "opaque": (lambda: grey(DRAWN * 255).convert("RGBA"), "255"),
    "half transparent": (lambda: with_alpha(DRAWN * 9, np.full((10, 20), 128)), "9"),
    "alpha of the same shape": (lambda: with_alpha(DRAWN * 255, DRAWN * 255), "255"),
    "alpha of the same shape, with edges": (lambda: with_alpha(DRAWN * 255, DRAWN * np.arange(20)), "255"),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_mask_of_two_values_is_read_whatever_its_form(form: str) -> None:
    draw, value = FORMS[form]

    mask = read_mask_png(png(draw()), DEFAULT_RULE)

    assert (mask.pixels == DRAWN).all()
    assert mask.object_value == value


EDGES = DRAWN * 255
EDGES[2, 7:10] = 3
EDGES[5, 7:10] = 128
LABELS = DRAWN * 15
LABELS[9] = 255
LABELS[0, 0] = 4
CUT_OUT = with_alpha(np.arange(200).reshape(10, 20), DRAWN * 255)
SHIFTED = with_alpha(np.roll(DRAWN, 1) * 255, DRAWN * 255)


@pytest.mark.parametrize(
    ("picture", "message"),
    [
        (
            grey(EDGES),
            r"holds 4 values \(0, 3, 128, 255\), expected 0 and another one; apply the threshold .*--mask-thr",
        ),
        (grey(LABELS), r"holds 4 values .*--mask-object-value: instances, classes\) or .*--mask-ignore-value\)$"),
        (grey(np.arange(200).reshape(10, 20)), r"holds 200 values \(0, 1, 2, \.\.\., 199\)"),
        (grey(DRAWN + 1), r"holds 2 values \(1, 2\), expected 0 and another one"),
        (Image.effect_noise((20, 10), 99).convert("RGB").rotate(9, fillcolor="red"), r"values \(.*; save it in shades"),
        (CUT_OUT, "alpha channel that shows another shape .*--mask-channel alpha or colour"),
        (SHIFTED, "alpha channel that shows another shape"),
        (palette(DRAWN, [255, 255, 255, 0, 0, 0]), r"palette that shows index 0, the background, as \(255, 255, 255\)"),
    ],
    ids=["edges", "labels", "many", "no zero", "colours", "cut out", "shifted alpha", "white background"],
)
def test_a_mask_that_may_mean_several_things_is_refused(picture: Image.Image, message: str) -> None:
    with pytest.raises(AnnotationError, match=message):
        read_mask_png(png(picture), DEFAULT_RULE)


@pytest.mark.parametrize(
    ("picture", "rule", "expected"),
    [
        (grey(EDGES), PngRule(threshold=128), EDGES >= 128),
        (grey(EDGES), PngRule(threshold=129), DRAWN),
        (palette(EDGES, [n // 3 for n in range(768)]), PngRule(threshold=128), EDGES >= 128),
        (Image.fromarray(EDGES.astype(np.uint16) * 257), PngRule(threshold=60000), DRAWN),
        (grey(LABELS), PngRule(object_value=15), DRAWN),
        (grey(LABELS), PngRule(object_value=7), DRAWN & False),
        (grey(DRAWN * 15 + (LABELS == 255) * 255), PngRule(ignore_value=255), DRAWN),
        (grey(LABELS), PngRule(threshold=10, ignore_value=255), DRAWN),
        (palette(~DRAWN, [255, 255, 255, 0, 0, 0]), PngRule(object_value=0), DRAWN),
        (CUT_OUT, PngRule(channel="alpha"), DRAWN),
        (SHIFTED, PngRule(channel="colour"), np.roll(DRAWN, 1)),
        (with_alpha(DRAWN, EDGES), PngRule(channel="alpha", threshold=200), DRAWN),
    ],
)
def test_a_rule_says_what_the_object_is(picture: Image.Image, rule: PngRule, expected: np.ndarray) -> None:
    assert (read_mask_png(png(picture), rule).pixels == expected).all()
    assert str(rule)


def test_a_palette_may_have_an_alpha_channel() -> None:
    data = png(palette(DRAWN, [9, 9, 9, 9, 9, 9]), transparency=b"\0\xff")

    assert (read_mask_png(data, PngRule(channel="alpha")).pixels == DRAWN).all()


@pytest.mark.parametrize(
    ("picture", "rule", "message"),
    [
        (grey(DRAWN), PngRule(channel="alpha"), "has no alpha channel, expected one"),
        (FORMS["one colour"][0](), PngRule(threshold=3), r"is in colours, expected shades of grey \(object >= 3\)"),
        (grey(LABELS), PngRule(ignore_value=255), r"holds 4 values"),
    ],
)
def test_a_rule_that_a_file_does_not_fit_is_an_error(picture: Image.Image, rule: PngRule, message: str) -> None:
    with pytest.raises(AnnotationError, match=message):
        read_mask_png(png(picture), rule)


def test_rules_that_contradict_themselves_are_refused() -> None:
    for options, message in (
        ({"threshold": 0}, "--mask-threshold 0: expected 1 to 65535"),
        ({"object_value": 65536}, "--mask-object-value 65536: expected 0 to 65535"),
        ({"ignore_value": -1}, "--mask-ignore-value -1"),
        ({"threshold": 1, "object_value": 1}, "expected one of them"),
        ({"object_value": 4, "ignore_value": 4}, "--mask-ignore-value 4: is also --mask-object-value"),
        ({"channel": "red"}, "--mask-channel red: expected colour or alpha"),
    ):
        with pytest.raises(UsageError, match=message):
            PngRule(**options)


def test_a_file_that_is_not_a_png_is_named_by_its_kind() -> None:
    jpeg = BytesIO()
    grey(DRAWN).save(jpeg, "JPEG")
    whole = png(grey(EDGES))
    header = b"IHDR" + (65000).to_bytes(4) * 2 + whole[24:29]
    huge = whole[:12] + header + zlib.crc32(header).to_bytes(4) + whole[33:]
    for data, message in (
        (jpeg.getvalue(), "expected a PNG; it is a JPEG: save it as PNG"),
        (b"version https://git-lfs.github.com/spec/v1\n", "is a Git LFS pointer"),
        (b"", "is empty"),
        (b"PNG", "starts with 50 4e 47, expected a PNG"),
        (whole[:60], r"cannot be read as a PNG \("),
        (whole[:8], r"cannot be read as a PNG \("),
        (huge, "is 65000 x 65000 pixels, expected at most 268435456; save it at the size"),
    ):
        with pytest.raises(AnnotationError, match=message):
            read_mask_png(data, DEFAULT_RULE)


def test_values_that_differ_between_masks_are_noted() -> None:
    assert note_object_values({"": 3, "255": 2}) == ""
    assert note_object_values({"255": 1000, "9": 1, "": 1}).endswith("9 in 1, 255 in 1,000")
