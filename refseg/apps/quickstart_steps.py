"""Defines the steps of `refseg quickstart` with their commands, and estimates the remaining time."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from math import fsum
from pathlib import Path

from manifests import sample_folder
from refseg.apps.options import QuickstartOptions

SECONDS = {
    "draw": (2, 6.5),
    "build": (3, 2.5),
    "verify": (1, 2),
    "train": (15, 43),
    "score": (15, 5),
    "report": (12, 0.5),
    "photograph": (15, 0),
}
"""Seconds of each step on two idle cores: a fixed part, and a part for every 1,000 scenes.

Measured by `refseg quickstart` itself, which ends with the seconds of every step.
"""

PICTURE = "images/train2014/000000397133.jpg"
SENTENCE = "the white ceramic bowl that is not on the counter"
_FASTEST_PACE = 0.5
"""Seconds beside the estimates; steps that are done from an earlier call take no time, which says nothing."""
_LEAST_SHARE = 0.02
"""Smallest share of a step from which its speed is computed."""

Command = tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One step.

    Attributes:
        name: One word; a key of `SECONDS`.
        what: Description of the step for the user.
        commands: Words of the commands as a user gives them, `refseg ...` or `accelerate ...`.
        is_parallel: True if two commands run at a time, each with one thread. The threads of a single command would
            wait for each other at every layer. On a busy machine, this waiting would exceed the computation.
        seconds: Estimate for two idle cores.
    """

    name: str
    what: str
    commands: tuple[Command, ...]
    is_parallel: bool = False
    seconds: float


def plan_steps(options: QuickstartOptions) -> tuple[Step, ...]:
    """The steps in their order."""
    out = options.out
    toy, shards, run, sample = out / "toy", out / "shards/toy", out / "run", out / "shards/sample"
    package = Path(__file__).parents[1]

    def refseg(*words: object) -> Command:
        return ("refseg", *map(str, words))

    def evaluate(split: str, *options: str) -> Command:
        return refseg("evaluate", run, "--data", shards, "--split", split, *options)

    train = (
        *("accelerate", "launch", "--config_file", str(package / "configs/accelerate_cpu2.yaml")),
        *(str(package / "train.py"), "toy-quick", "--set", f"data.root={shards}", "--out", str(run)),
    )
    predict = refseg(
        *("predict", sample_folder() / PICTURE, "--text", SENTENCE),
        *("--checkpoint", run, "--out", out / "predictions"),
    )
    planned: dict[str, tuple[str, Sequence[Command]]] = {
        "draw": (
            f"{options.num_images:,} scenes of shapes, and sentences that name them",
            [refseg("toy", "--out", toy, "--images", options.num_images, "--seed", 0)],
        ),
        "build": (
            "shards of images, masks and tokens from these files",
            [refseg("build-shards", "toy/refseg", "--annotations", toy, "--out", shards, "--workers", 2)],
        ),
        "verify": ("every image and every row of the shards", [refseg("verify", shards)]),
        "train": ("FCNet with small encoders, on two processes", [train]),
        "score": (
            "unseen scenes; once with the sentences shuffled, as a control",
            [
                evaluate("val", "--save-predictions"),
                evaluate("val", "--shuffled-sentences"),
                evaluate("testA"),
                evaluate("testB"),
            ],
        ),
        "report": (
            "a page of scores and examples, and a page of the dataset",
            [refseg("report", run), refseg("browse", shards, "--split", "val", "--out", out / "browse")],
        ),
        "photograph": (
            "a dataset of bundled photographs, and a mask for one of them",
            [
                refseg("build-shards", "sample/ccby", "--annotations", sample_folder(), "--out", sample),
                refseg("verify", sample),
                predict,
            ],
        ),
    }
    return tuple(
        Step(
            name=name,
            what=what,
            commands=tuple(commands),
            is_parallel=name in ("score", "report"),
            seconds=SECONDS[name][0] + SECONDS[name][1] * options.num_images / 1000,
        )
        for name, (what, commands) in planned.items()
    )


def program(command: Command) -> list[str]:
    """Return a command that runs with this Python, independently of the search path."""
    module = {"refseg": "refseg", "accelerate": "accelerate.commands.launch"}[command[0]]
    return [sys.executable, "-m", module, *command[2 if command[0] == "accelerate" else 1 :]]


def seconds_left(
    estimates: Sequence[float], taken: Sequence[float], running: float, share: float | None = None
) -> float:
    """Estimate the remaining seconds of the quickstart.

    The estimates are scaled by the speed of this machine, which is the ratio of measured to estimated time so far.

    Args:
        estimates: Estimated seconds of each step.
        taken: Measured seconds of the steps that have ended. There are fewer values than in `estimates`.
        running: Seconds since the start of the running step.
        share: Fraction of the running step that is done, 0 to 1. None if it is unknown.
    """
    number = len(taken)
    pace = _pace(fsum(taken), fsum(estimates[:number]))
    if share is not None and share >= _LEAST_SHARE:
        expected = running / share
        pace = _pace(fsum(taken) + expected, fsum(estimates[: number + 1]))
    else:
        expected = pace * estimates[number]
    return max(0.0, expected - running) + pace * fsum(estimates[number + 1 :])


def _pace(taken: float, estimated: float) -> float:
    return max(_FASTEST_PACE, taken / estimated) if estimated else 1.0
