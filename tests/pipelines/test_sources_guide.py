"""The commands of the guide `docs/your-own-data.md` have the results that it states."""

import re
import shlex
from pathlib import Path

import pytest
from PIL import Image, ImageDraw

from refseg.cli import main

GUIDE = (Path(__file__).parents[2] / "docs" / "your-own-data.md").read_text(encoding="utf-8")


@pytest.fixture
def my_photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The guide's folder with its table, pictures and mask; the working directory is the one above."""
    folder = tmp_path / "my-photos"
    table = re.search(r"```csv\n(.*?)```", GUIDE, re.DOTALL)
    assert table is not None
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
    (folder / "sentences.csv").write_text(table[1], encoding="utf-8")
    for name in ("table.jpg", "shelf.jpg", "window.jpg"):
        Image.new("RGB", (32, 24), "white").save(folder / "images" / name)
    mask = Image.new("L", (32, 24))
    ImageDraw.Draw(mask).rectangle((2, 4, 9, 11), fill=255)
    mask.save(folder / "masks" / "red.png")
    monkeypatch.chdir(tmp_path)
    return folder


@pytest.mark.slow
def test_the_commands_shown_build_check_and_count(my_photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shown = re.findall(r"^    \$ refseg (.*)$", GUIDE.split("## Columns")[0], re.MULTILINE)

    assert [line.split()[0] for line in shown] == ["build-shards", "verify", "stats"]
    for line in shown:
        assert main(line.split()) == 0, line
    assert (Path("shards") / "my-photos" / "train-00000.tar").is_file()
    printed = capsys.readouterr().out
    assert "2 shards, 3 images, 4 refs, 5 sentences, 0 rejects" in printed
    assert "no fault" in printed


@pytest.mark.slow
def test_the_commands_shown_lead_from_pictures_to_a_mask(my_photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from refseg import train

    section = GUIDE.split("## Fine-tuning on them")[1].split("\n## ")[0]
    shown = [line[4:] for line in section.splitlines() if line.startswith("    ")]
    program = "accelerate launch --config_file refseg/configs/accelerate_cpu2.yaml refseg/train.py "
    built, browsed, trained, predicted = shown
    assert main(shlex.split(built)[2:]) == main(shlex.split(browsed)[2:]) == 0
    assert Path("browse/index.html").is_file()

    # A model of the same size as quickstart's, trained for one step, replaces it.
    quick = ["train.max_steps=1", "train.val_every_epochs=0", "train.trackers=[]", "data.num_workers=0"]
    assert train.main(["toy-quick", "--out", "quickstart/run", "--set", "data.root=shards/my-photos", *quick]) == 0
    assert trained.startswith(program)
    assert train.main([*shlex.split(trained.removeprefix(program)), "train.max_steps=2", "train.trackers=[]"]) == 0
    assert main(shlex.split(predicted)[2:]) == 0
    assert "shelf.mask.png" in capsys.readouterr().out

    assert main(["evaluate", "runs/my-photos", "--split", "train"]) == 2
    assert "images were trained on" in capsys.readouterr().err


def test_the_mistakes_shown_are_what_is_said(my_photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shown = re.search(r"    my-photos/sentences.csv: found 2 mistakes\n(?:      .*\n)+", GUIDE)
    assert shown is not None
    lines = (my_photos / "sentences.csv").read_text().splitlines()
    lines[0] += ",ann_id"
    lines = [line + "," * (number > 0) for number, line in enumerate(lines)]
    lines[3] += "7"
    lines[5] = lines[5].replace("train", "")
    (my_photos / "sentences.csv").write_text("\n".join(lines))

    words = ["build-shards", "custom/my-photos", "--annotations", "my-photos", "--out", "out"]
    assert main(words) == 1
    said = capsys.readouterr().err
    for line in shown[0].splitlines():
        assert line.strip() in said
    assert not Path("out").exists()


def test_a_missing_picture_and_a_second_build_end_as_shown(my_photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shown = re.search(r"    custom/my-photos: 1 of 3 pictures.*\n      .*\n", GUIDE)
    assert shown is not None
    table = my_photos / "sentences.csv"
    right = table.read_text()
    words = ["build-shards", "custom/my-photos", "--annotations", "my-photos", "--out", "out"]
    table.write_text(right.replace("shelf", "Shelf"))
    assert main(words) == 1
    said = capsys.readouterr().err
    for line in shown[0].splitlines():
        assert line.strip() in said
    assert not Path("out").exists()

    table.write_text(right)
    assert main(words) == main(words) == 0
    assert "was already finished, nothing was changed" in " ".join(capsys.readouterr().out.split())
    table.write_text(right.replace("disc", "circle"))
    assert main(words) == 1
    said = capsys.readouterr().err
    assert "was built or started with other inputs (source my-photos/sentences.csv: " in said
    assert "give the same inputs or another --out, or delete the folder" in said


def test_every_column_and_dataset_has_its_line() -> None:
    from pipelines.sources.custom_row import COLUMNS
    from refseg.dataset.schema import DATASETS

    for column in COLUMNS:
        assert re.search(rf"^\| .*`{column}`.*\|", GUIDE, re.MULTILINE), column
    for dataset_id, spec in DATASETS.items():
        if spec.dataset not in ("sample", "toy") and dataset_id != "rrefcocog/unc":
            assert f"`{dataset_id}`" in GUIDE, dataset_id
