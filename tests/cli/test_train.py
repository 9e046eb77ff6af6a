"""`refseg train` and the two ways of `accelerate launch`: the same options, read alike."""

import subprocess
import sys
from pathlib import Path

import pytest

from refseg.cli import main

ROOT = Path(__file__).parents[2]
WAYS = {
    "accelerate launch refseg/train.py": [str(ROOT / "refseg/train.py")],
    "accelerate launch -m refseg.train": ["-m", "refseg.train"],
    "refseg train": ["-m", "refseg", "train"],
}


def test_every_way_to_start_training_reads_recipe_folder_and_overrides_alike(tmp_path: Path) -> None:
    words = ["toy", "--out", str(tmp_path / "run"), "--set", "train.lrr=1", "train.epochs=0", "--set", "data.rot=x"]

    said = {}
    for way, program in WAYS.items():
        done = subprocess.run([sys.executable, *program, *words], cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 2, done.stderr
        said[way] = done.stderr

    assert len(set(said.values())) == 1
    assert "found 3 mistakes in the recipe" in said["refseg train"]
    assert "train.lrr: unknown key; did you mean lr?" in said["refseg train"]


def test_the_command_trained_a_run_that_can_be_resumed(toy_run: Path) -> None:
    assert (toy_run / "recipe.json").is_file()
    assert len(list((toy_run / "checkpoints").glob("step-*"))) >= 1


@pytest.mark.parametrize("words", [[], ["toy"], ["--out", "run"]])
def test_the_command_needs_a_recipe_and_a_folder(words: list[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["train", *words])
