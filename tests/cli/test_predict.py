"""`refseg predict` writes what it says."""

import json
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from refseg.cli import main


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    Image.new("RGB", (60, 40), "red").save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def test_masks_and_overlays_are_written_at_the_pictures_size(
    toy_run: Path, photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    texts = ["the red square", "the blue circle"]
    assert main(["predict", str(photo), *texts, "--checkpoint", str(toy_run), "--out", str(out), "--json"]) == 0

    printed = json.loads(capsys.readouterr().out)
    assert (printed["height"], printed["width"]) == (40, 60)
    assert [entry["text"] for entry in printed["predictions"]] == texts
    for entry in printed["predictions"]:
        mask = np.asarray(Image.open(entry["mask"]))
        assert mask.shape == (40, 60)
        assert set(np.unique(mask)) <= {0, 255}
        assert (mask > 0).mean() == entry["covered_share"]
        assert np.asarray(Image.open(entry["overlay"])).shape == (40, 60, 3)
    assert sorted(path.name for path in out.iterdir()) == [
        "photo-1.mask.png", "photo-1.overlay.png", "photo-2.mask.png", "photo-2.overlay.png",
    ]  # fmt: skip


def test_one_text_is_told_in_words(
    toy_run: Path, photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["predict", str(photo), "the red one", "--checkpoint", str(toy_run), "--out", str(tmp_path)]) == 0

    assert "the red one: " in capsys.readouterr().out
    assert (tmp_path / "photo.mask.png").is_file()


def test_an_explanation_is_a_table_of_words_and_a_picture(
    toy_run: Path, photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["predict", str(photo), "the red one", "--checkpoint", str(toy_run), "--out", str(tmp_path)]
    assert main([*arguments, "--explain"]) == 0

    lines = capsys.readouterr().out.splitlines()
    assert lines[3] == f"  explain {tmp_path / 'photo.explain.png'}"
    assert [line.split()[0] for line in lines[4:]] == ["mean", "alpha", "[SOS]", "the", "red", "one", "[EOS]"]
    with Image.open(tmp_path / "photo.explain.png") as picture:
        assert picture.size[0] == 4 * (256 + 8) + 8

    assert main([*arguments, "--explain", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)["predictions"][0]["explanation"]
    assert told["words"] == ["[SOS]", "the", "red", "one", "[EOS]"]
    assert np.sum(told["word_weights"], axis=1) == pytest.approx(np.ones(16), abs=1e-3)
    assert len(told["alpha"]) == 16
    assert told["heat_maps"] == str(tmp_path / "photo.explain.png")


def test_a_missing_picture_is_an_error_of_one_line_and_writes_nothing(
    toy_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(["predict", "gone.jpg", "a cat", "--checkpoint", str(toy_run), "--out", str(out)]) == 2

    assert capsys.readouterr().err == "refseg: error: gone.jpg: no such file; expected an image\n"
    assert not out.exists()


def test_no_result_replaces_that_of_another_picture_or_sentence(
    toy_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    for place, colour in (("a", "red"), ("b", "blue")):
        (tmp_path / place).mkdir()
        Image.new("RGB", (60, 40), colour).save(tmp_path / place / "photo.png")
    out.mkdir()
    (out / "photo-3.overlay.png").write_bytes(b"precious")

    def predict(picture: str, text: str) -> list[str]:
        arguments = [str(tmp_path / picture), text, "--checkpoint", str(toy_run), "--out", str(out), "--json"]
        assert main(["predict", *arguments]) == 0
        (entry,) = json.loads(capsys.readouterr().out)["predictions"]
        assert Path(entry["overlay"]).is_file()
        return [Path(entry[name]).name.split(".")[0] for name in ("mask", "overlay")]

    asked = [("a/photo.png", "the red one"), ("a/photo.png", "the blue one"), ("b/photo.png", "the red one")]
    named = [predict(*question) for question in asked]

    assert named == [["photo"] * 2, ["photo-2"] * 2, ["photo-4"] * 2]
    before = sorted(out.iterdir())
    assert [predict(*question) for question in reversed(asked)] == named[::-1]
    assert sorted(out.iterdir()) == before
    assert (out / "photo-3.overlay.png").read_bytes() == b"precious"


@pytest.mark.parametrize("kind", ["of 4 gigapixels", "whose text is nested without end"])
def test_a_png_that_cannot_be_looked_into_is_left_alone(
    kind: str, toy_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("RGB", (60, 40), "red").save(tmp_path / "photo.jpg")
    taken = tmp_path / "photo.mask.png"
    text = PngInfo()
    text.add_text("refseg", "[" * 100_000)
    Image.new("L", (5, 5)).save(taken, pnginfo=text)
    if kind == "of 4 gigapixels":
        data = bytearray(taken.read_bytes())
        data[16:24] = struct.pack(">II", 65_000, 65_000)
        data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
        taken.write_bytes(data)
    before = taken.read_bytes()

    arguments = ["the red one", "--checkpoint", str(toy_run), "--out", str(tmp_path), "--json"]
    assert main(["predict", str(tmp_path / "photo.jpg"), *arguments]) == 0

    (entry,) = json.loads(capsys.readouterr().out)["predictions"]
    assert Path(entry["mask"]).name == "photo-2.mask.png"
    assert taken.read_bytes() == before
