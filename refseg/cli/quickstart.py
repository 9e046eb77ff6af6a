"""`refseg quickstart`: the whole flow, each step a command that is shown and can be called alone."""

import argparse
import json
import shlex
import subprocess
import sys
import time
from pathlib import Path

from refseg.errors import RefsegError

EXAMPLE = "refseg quickstart --out quickstart"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--out", type=Path, default=Path("quickstart"), metavar="DIR", help="where all goes (default: quickstart)"
    )


def run(args: argparse.Namespace) -> int:
    from manifests import sample_folder

    out: Path = args.out
    toy, shards, run_folder, sample = out / "toy", out / "shards/toy", out / "run", out / "shards/sample"
    package = Path(__file__).parents[1]
    started = time.monotonic()

    _call("toy", "--out", toy, "--images", "6000", "--seed", "0")
    _call("build-shards", "toy/refseg", "--annotations", toy, "--out", shards, "--workers", "2")
    _call("verify", shards)
    _launch(
        *("--config_file", package / "configs/accelerate_cpu2.yaml", package / "train.py", "toy-quick"),
        *("--set", f"data.root={shards}", "--out", run_folder),
    )
    scores = {}
    for split in ("val", "testA", "testB"):
        scores[split] = _evaluate(run_folder, shards, split)
    shuffled = _evaluate(run_folder, shards, "val", "--shuffled-sentences")
    _call("report", run_folder)

    _call("build-shards", "sample/ccby", "--annotations", sample_folder(), "--out", sample)
    _call("verify", sample)
    picture = sample_folder() / "images/train2014/000000397133.jpg"
    text = "the white ceramic bowl that is not on the counter"
    _call("predict", picture, text, "--checkpoint", run_folder, "--out", out / "predictions")

    own = scores["val"]["overall_iou"]
    control = shuffled["overall_iou"]
    minutes = (time.monotonic() - started) / 60
    print(f"""
Done in {minutes:.1f} minutes: drew 6,000 scenes, built and verified their shards, trained FCNet with small encoders
on two processes, scored it on unseen scenes, and ran the bundled photographs through build and predict (the toy
model has seen drawn shapes alone: its masks of photographs show that the path works, not that it understands them).

  oIoU on unseen scenes (val, {scores["val"]["num_sentences"]} sentences)       {own:.3f}
  oIoU with the sentences of an image shuffled   {control:.3f}   ({control / own:.0%}: the language is read)
  oIoU testA (without relations), testB (with)   {scores["testA"]["overall_iou"]:.3f}, {scores["testB"]["overall_iou"]:.3f}

  report       {(run_folder / "report.html").resolve()}
  prediction   {(out / "predictions").resolve()}""")
    return 0


def _evaluate(run_folder: Path, shards: Path, split: str, *options: str) -> dict[str, float]:
    """Score a split and give the scores that `refseg evaluate` wrote."""
    arguments = ("evaluate", run_folder, "--data", shards, "--split", split, *options)
    _show("refseg", *arguments)
    done = _run([sys.executable, "-m", "refseg", *arguments, "--json"], stdout=subprocess.PIPE)
    scores: dict[str, float] = json.loads(done)
    return scores


def _call(*arguments: str | Path) -> None:
    _show("refseg", *arguments)
    _run([sys.executable, "-m", "refseg", *arguments])


def _launch(*arguments: str | Path) -> None:
    _show("accelerate", "launch", *arguments)
    _run([sys.executable, "-m", "accelerate.commands.launch", *arguments])


def _show(*words: str | Path) -> None:
    print("\n$ " + shlex.join(str(word) for word in words), flush=True)


def _run(command: list[str | Path], stdout: int | None = None) -> str:
    done = subprocess.run([str(word) for word in command], stdout=stdout, text=True, check=False)
    if done.returncode:
        raise RefsegError(
            f"quickstart: the last command shown above ended with exit code {done.returncode}; its message says why. "
            "The steps before it are kept: run quickstart again to go on"
        )
    return done.stdout or ""
