"""`refseg predict` writes what it says."""

import json
import struct
import zlib
from pathlib import Path

import fsspec
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
    arguments = ["predict", str(photo), "--text", *texts, "--checkpoint", str(toy_run), "--out", str(out), "--json"]
    assert main(arguments) == 0

    (printed,) = json.loads(capsys.readouterr().out)["pictures"]
    assert printed["image"] == str(photo)
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
    arguments = ["predict", str(photo), "--text", "the red one", "--checkpoint", str(toy_run), "--out", str(tmp_path)]
    assert main(arguments) == 0

    assert capsys.readouterr().out.startswith(f"{photo}\n  the red one: ")
    assert (tmp_path / "photo.mask.png").is_file()


def test_an_explanation_is_a_table_of_words_and_a_picture(
    toy_run: Path, photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["predict", str(photo), "--text", "the red one", "--checkpoint", str(toy_run), "--out", str(tmp_path)]
    assert main([*arguments, "--explain"]) == 0

    lines = capsys.readouterr().out.splitlines()
    assert lines[4] == f"    explain {tmp_path / 'photo.explain.png'}"
    assert [line.split()[0] for line in lines[5:]] == ["mean", "alpha", "[SOS]", "the", "red", "one", "[EOS]"]
    with Image.open(tmp_path / "photo.explain.png") as picture:
        assert picture.size[0] == 4 * (256 + 8) + 8

    assert main([*arguments, "--explain", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)["pictures"][0]["predictions"][0]["explanation"]
    assert told["words"] == ["[SOS]", "the", "red", "one", "[EOS]"]
    assert np.sum(told["word_weights"], axis=1) == pytest.approx(np.ones(16), abs=1e-3)
    assert len(told["alpha"]) == 16
    assert told["heat_maps"] == str(tmp_path / "photo.explain.png")


def test_a_missing_picture_is_an_error_of_one_line_and_writes_nothing(
    toy_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(["predict", "gone.jpg", "--text", "a cat", "--checkpoint", str(toy_run), "--out", str(out)]) == 2

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
        arguments = [str(tmp_path / picture), "--text", text, "--checkpoint", str(toy_run), "--out", str(out), "--json"]
        assert main(["predict", *arguments]) == 0
        (entry,) = json.loads(capsys.readouterr().out)["pictures"][0]["predictions"]
        assert Path(entry["overlay"]).is_file()
        return [Path(entry[name]).name.split(".")[0] for name in ("mask", "overlay")]

    asked = [("a/photo.png", "the red one"), ("a/photo.png", "the blue one"), ("b/photo.png", "the red one")]
    named = [predict(*question) for question in asked]

    assert named == [["photo"] * 2, ["photo-2"] * 2, ["photo-4"] * 2]
    before = sorted(out.iterdir())
    assert [predict(*question) for question in reversed(asked)] == named[::-1]
    assert sorted(out.iterdir()) == before
    assert (out / "photo-3.overlay.png").read_bytes() == b"precious"


def test_pictures_folders_and_urls_are_segmented_in_one_call_and_a_damaged_one_stops_no_other(
    toy_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, out = tmp_path / "photos", tmp_path / "out"
    folder.mkdir()
    for name, colour in (("photo.png", "red"), ("photo.jpg", "blue")):
        Image.new("RGB", (60, 40), colour).save(folder / name)
    (folder / "torn.png").write_bytes((folder / "photo.png").read_bytes()[:60])
    url = "memory://photos/green.png"
    with fsspec.open(url, "wb") as file:
        Image.new("RGB", (30, 20), "green").save(file, "PNG")
    arguments = ["predict", str(folder), url, "--text", "the red one", "it", "--checkpoint", str(toy_run)]

    assert main([*arguments, "--out", str(out), "--json"]) == 1
    pictures = json.loads(capsys.readouterr().out)["pictures"]
    assert main([*arguments, "--out", str(out)]) == 1
    printed = capsys.readouterr()

    blue, red, torn, green = pictures
    assert [picture["image"] for picture in pictures] == [
        *(str(folder / name) for name in ("photo.jpg", "photo.png", "torn.png")), url,
    ]  # fmt: skip
    assert torn["error"].startswith(f"{folder / 'torn.png'}: cannot be read as an image")
    assert [line for line in printed.err.splitlines() if "refseg: error" in line] == [f"refseg: error: {torn['error']}"]
    assert (green["height"], green["width"]) == (20, 30)
    masks = [Path(entry["mask"]).name for picture in (blue, red, green) for entry in picture["predictions"]]
    assert len(set(masks)) == 6  # two pictures of one name and two sentences for each
    assert len(list(out.iterdir())) == 12
    for picture, overlay in ((red, (60, 40)), (green, (30, 20))):
        for entry in picture["predictions"]:
            with Image.open(entry["overlay"]) as drawn:
                assert drawn.size == overlay


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

    arguments = ["--text", "the red one", "--checkpoint", str(toy_run), "--out", str(tmp_path), "--json"]
    assert main(["predict", str(tmp_path / "photo.jpg"), *arguments]) == 0

    (entry,) = json.loads(capsys.readouterr().out)["pictures"][0]["predictions"]
    assert Path(entry["mask"]).name == "photo-2.mask.png"
    assert taken.read_bytes() == before
