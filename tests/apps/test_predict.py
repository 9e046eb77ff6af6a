import logging
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from refseg.apps import predict
from refseg.apps.predict import Prediction, read_picture, segment
from refseg.errors import CheckpointError, ImageError, UsageError


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    """Wide, red on the left and blue on the right."""
    pixels = np.zeros((40, 60, 3), np.uint8)
    pixels[:, :30, 0] = pixels[:, 30:, 2] = 255
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def test_each_text_gets_a_mask_at_the_pictures_size(toy_run: Path, photo: Path) -> None:
    both = segment(toy_run, photo, ["the red square", "the blue circle"])

    assert both.masks.shape == (2, 40, 60)
    assert both.texts == ("the red square", "the blue circle")
    assert both.overlay(1).shape == (40, 60, 3)
    alone = segment(toy_run, photo, ["the blue circle"])
    assert np.array_equal(alone.masks[0], both.masks[1])


def test_an_explanation_belongs_to_each_text_and_changes_no_mask(toy_run: Path, photo: Path) -> None:
    texts = ["the red square", "the blue circle"]
    plain, told = segment(toy_run, photo, texts), segment(toy_run, photo, texts, explain=True)

    assert np.array_equal(plain.masks, told.masks)
    assert plain.explanations == ()
    assert [found.words for found in told.explanations] == [
        ("[SOS]", "the", "red", "square", "[EOS]"), ("[SOS]", "the", "blue", "circle", "[EOS]"),
    ]  # fmt: skip
    first = told.explanations[0]
    assert first.word_weights is not None
    assert first.word_weights.shape == (16, 5)
    assert first.alpha is not None
    assert told.explanation_picture(1) is not None


def test_shares_and_boxes_are_those_of_the_masks() -> None:
    masks = np.zeros((2, 4, 10), bool)
    masks[0, 1:3, 2:7] = True
    prediction = Prediction(picture=np.zeros((4, 10, 3), np.uint8), texts=("a", "b"), masks=masks)

    assert prediction.covered_shares == [0.25, 0.0]
    assert prediction.boxes_xywh == [(2, 1, 5, 2), None]


def test_a_rotated_photo_is_turned_upright(photo: Path) -> None:
    picture = Image.open(photo)
    exif = picture.getexif()
    exif[0x0112] = 6  # to be shown turned right: what was left is up
    picture.save(photo.with_suffix(".jpg"), exif=exif, quality=95)

    upright = read_picture(photo.with_suffix(".jpg"))

    assert upright.shape == (60, 40, 3)
    assert upright[5, 20, 0] > 200
    assert upright[55, 20, 2] > 200


def test_transparency_is_laid_on_white(tmp_path: Path) -> None:
    Image.new("RGBA", (3, 2), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    palette = Image.new("P", (3, 2), 0)
    palette.putpalette([0, 0, 0])
    palette.save(tmp_path / "palette.png", transparency=0)

    assert (read_picture(tmp_path / "clear.png") == 255).all()
    assert (read_picture(tmp_path / "palette.png") == 255).all()


@pytest.mark.parametrize("mode", ["L", "1", "P", "CMYK", "LA", "YCbCr"])
def test_pictures_of_every_mode_become_rgb(tmp_path: Path, mode: str) -> None:
    path = tmp_path / ("picture.jpg" if mode in ("CMYK", "YCbCr") else "picture.png")
    Image.new("RGB", (5, 4), (255, 255, 255)).convert(mode).save(path)

    picture = read_picture(path)

    assert (picture.shape, picture.dtype) == ((4, 5, 3), np.uint8)
    assert (picture == 255).all()


def test_sixteen_bit_grey_keeps_its_shades(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 32768, 65535]], np.uint16)).save(tmp_path / "deep.png")

    assert read_picture(tmp_path / "deep.png")[0, :, 0].tolist() == [0, 127, 255]


def test_a_picture_of_one_pixel_and_a_very_wide_one_are_segmented(toy_run: Path) -> None:
    for size in ((1, 1), (3000, 2)):
        assert segment(toy_run, Image.new("RGB", size), ["it"]).masks.shape == (1, size[1], size[0])


def test_what_is_no_picture_is_named(tmp_path: Path, photo: Path) -> None:
    (tmp_path / "notes.txt").write_text("no picture")
    (tmp_path / "cut.png").write_bytes(photo.read_bytes()[:80])

    with pytest.raises(ImageError, match=r"notes\.txt: not an image"):
        read_picture(tmp_path / "notes.txt")
    with pytest.raises(ImageError, match=r"cut\.png: cannot be read as an image"):
        read_picture(tmp_path / "cut.png")
    with pytest.raises(ImageError, match=r"gone\.png: no such file"):
        read_picture(tmp_path / "gone.png")
    with pytest.raises(ImageError, match="is a folder; expected an image"):
        read_picture(tmp_path)


def test_a_decompression_bomb_is_refused(photo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)

    with pytest.raises(ImageError, match="too large"):
        read_picture(photo)


def test_empty_texts_and_missing_checkpoints_are_refused(photo: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="text 2 is empty"):
        segment(tmp_path, photo, ["a cat", "  "])
    for invisible in ("\u200b", "&nbsp;", "\u3164 \u2800", "\uffff\U0010ffff"):
        with pytest.raises(UsageError, match=r"text 1: found .*, without a visible character"):
            segment(tmp_path, photo, [invisible])
    with pytest.raises(UsageError, match="found no text"):
        segment(tmp_path, photo, [])
    with pytest.raises(CheckpointError, match="found no checkpoint"):
        segment(tmp_path, photo, ["a cat"])


def test_a_text_longer_than_the_model_reads_is_cut_and_said(
    toy_run: Path, photo: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger=predict.__name__):
        segment(toy_run, photo, ["red " * 300])

    assert "the model reads 17 tokens" in caplog.text
    assert len(caplog.text) < 1000
