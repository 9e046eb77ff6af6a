"""`refseg quickstart`: the whole flow, each step a command that is shown and can be called alone."""

import argparse
import json
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from refseg.addresses import path_argument
from refseg.errors import RefsegError

EXAMPLE = "refseg quickstart --out quickstart"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--out",
        type=path_argument,
        default=Path("quickstart"),
        metavar="DIR",
        help="where all goes (default: quickstart)",
    )
    parser.add_argument(
        "--images",
        type=int,
        default=6000,
        metavar="N",
        help="scenes to draw; few are quick and teach little (default: 6000)",
    )


def run(args: argparse.Namespace) -> int:
    from manifests import sample_folder

    out: Path = args.out
    toy, shards, run_folder, sample = out / "toy", out / "shards/toy", out / "run", out / "shards/sample"
    package = Path(__file__).parents[1]
    started = time.monotonic()

    _call("toy", "--out", toy, "--images", str(args.images), "--seed", "0")
    _call("build-shards", "toy/refseg", "--annotations", toy, "--out", shards, "--workers", "2")
    _call("verify", shards)
    _launch(
        *("--config_file", package / "configs/accelerate_cpu2.yaml", package / "train.py", "toy-quick"),
        *("--set", f"data.root={shards}", "--out", run_folder),
    )
    own = _evaluate(run_folder, shards, "val", "--save-predictions")
    control = _evaluate(run_folder, shards, "val", "--shuffled-sentences")
    plain = _evaluate(run_folder, shards, "testA")
    related = _evaluate(run_folder, shards, "testB")
    _call("report", run_folder)
    _call("browse", shards, "--split", "val", "--out", out / "browse")

    _call("build-shards", "sample/ccby", "--annotations", sample_folder(), "--out", sample)
    _call("verify", sample)
    picture = sample_folder() / "images/train2014/000000397133.jpg"
    text = "the white ceramic bowl that is not on the counter"
    _call("predict", picture, text, "--checkpoint", run_folder, "--out", out / "predictions")

    minutes = (time.monotonic() - started) / 60
    own_iou, control_iou = (result["scores"]["oIoU"] for result in (own, control))
    print(f"""
Done in {minutes:.1f} minutes: drew {args.images:,} scenes, built and verified their shards, trained FCNet with small
encoders on two processes, scored it on unseen scenes, wrote the report and a page of the dataset, and ran the bundled
photographs through build and predict (the model has seen drawn shapes alone: its mask of a photograph shows that the
path works, not that it understands photographs). Each object named has a twin that shares the named shape or colour.

  oIoU, unseen scenes ({own["num_sentences"]:,} sentences)         {own_iou:.3f}
  oIoU, sentences shuffled within each image   {control_iou:.3f}   {_share(control_iou, own_iou)}
  oIoU, testA (no relations)                   {plain["scores"]["oIoU"]:.3f}
  oIoU, testB (relations only)                 {related["scores"]["oIoU"]:.3f}

  report       {(run_folder / "report.html").resolve()}
  dataset      {(out / "browse/index.html").resolve()}
  prediction   {(out / "predictions").resolve()}

Next, with `source .venv/bin/activate`: docs/your-own-data.md, from your pictures to masks;
refseg demo --checkpoint {run_folder}""")
    return 0


def _share(control: float, own: float) -> str:
    """What the shuffled score says: a model that ignores the sentence scores the same either way."""
    if own == 0:
        return "nothing is learnt yet"
    verdict = "the sentences are read" if 3 * control < own else "the sentences are hardly read yet"
    return f"{control / own:.0%} of the score: {verdict}"


def _evaluate(run_folder: Path, shards: Path, split: str, *options: str) -> dict[str, Any]:
    """Score a split and give the scores that `refseg evaluate` wrote."""
    arguments: list[str | Path] = ["evaluate", run_folder, "--data", shards, "--split", split, *options]
    _show("refseg", *arguments)
    result: dict[str, Any] = json.loads(
        _run([sys.executable, "-m", "refseg", *arguments, "--json"], stdout=subprocess.PIPE)
    )
    for name, value in result["scores"].items():
        print(f"  {name:8}{100 * value:6.2f} %")
    return result


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
