"""Kills training runs at seeded points and resumes each of them.

Usage: python scripts/kill_training.py --points 20 --seed 0

A run has 28 steps with two processes over gloo. A point is a step, a process, and a moment within the step. The moment
is before the step, between gradients and weight update, or at the n-th file system change while a checkpoint is
written. SIGKILL ends this process and then the other one. The resumed run must end with the weights, optimiser state
and log of an undisturbed run, bit for bit. Otherwise the exit code is 1.

Every fourth run is resumed with one process instead of two, and the losses must agree to 1e-5. These runs freeze
BatchNorm, use no dropout, and use the paper's learning rate.
"""

import argparse
import os
import random
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from killing import die, hook_changes, in_child, nth
from safetensors.torch import load_file

from pipelines.build import build_dataset
from pipelines.options import BuildOptions
from pipelines.toy import draw_toy
from refseg.config import load_recipe
from refseg.training import checkpoint as checkpoints
from refseg.training import checkpoint_writer, trainer
from refseg.training.run_files import read_metrics

STEPS, SAVE_EVERY, PROCESSES = 28, 7, 2
CLOCK = ("samples_per_second", "seconds_per_step", "data_wait_share", "seconds")
PLACES = ("before the step", "before the weights change", "while the checkpoint is written")
_WRITES = 9
"""Number of file system changes while a checkpoint is written: two files, six syncs and a rename."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """The point at which a run is killed.

    Attributes:
        step: Number of completed steps.
        place: Moment within the step, one of `PLACES`.
        write: Number of the file system change, from 0. It is used only while a checkpoint is written.
        rank: Rank of the process that is killed first. Rank 0 writes checkpoints.
        processes: Number of processes of the resumed run.
    """

    step: int
    place: str
    write: int
    rank: int
    processes: int

    def __str__(self) -> str:
        at = f" (change {self.write})" if self.place == PLACES[2] else ""
        return f"step {self.step}, {self.place}{at}, rank {self.rank}, then {self.processes} processes"


def draw_points(count: int, seed: int) -> list[Point]:
    """Draw seeded points. Each of `PLACES` occurs equally often."""
    chance = random.Random(seed)
    points = []
    for number in range(count):
        place = PLACES[number % len(PLACES)]
        writes = place == PLACES[2]
        step = chance.randrange(1, STEPS // SAVE_EVERY + 1) * SAVE_EVERY if writes else chance.randrange(1, STEPS)
        points.append(
            Point(
                step=step,
                place=place,
                write=chance.randrange(_WRITES),
                rank=0 if writes else chance.randrange(PROCESSES),
                processes=1 if number % 4 == 3 else PROCESSES,
            )
        )
    return points


def overrides(shards: Path, *, exact_sums: bool) -> list[str]:
    """Return the overrides of a recipe that trains in seconds.

    With `exact_sums`, no value depends on how a batch is distributed over processes.
    """
    # At the toy recipe's learning rate of 2e-3, Adam amplifies the last bit of a sum to 5e-5 of the loss in 40 steps.
    sums = ["train.batchnorm=frozen", "model.dropout=0.0", "train.lr=1e-4"]
    comparable = sums if exact_sums else ["model.dropout=0.1"]
    return [
        f"data.root={shards}", "data.input_size=64", "data.num_workers=1", "data.expressions_per_image=3",
        "data.cache_gigabytes=0", "model.dim=32", "model.num_decoder_layers=1", "model.ffn_dim=64", "model.num_heads=4",
        "train.epochs=10", f"train.max_steps={STEPS}", "train.global_batch=4", "train.log_every_steps=3",
        f"train.checkpoint_every_steps={SAVE_EVERY}", "train.val_every_epochs=4", "train.ema_decay=0.9",
        "train.trackers=[]", *comparable,
    ]  # fmt: skip


def run(out: Path, settings: Sequence[str], *, processes: int, point: Point | None = None) -> list[int]:
    """Train in forked processes, and return the exit codes by rank. A negative code is a signal."""
    port = _free_port()
    children = {}
    for rank in range(processes):
        work = partial(_train, out, settings, rank=rank, processes=processes, port=port, point=point)
        children[in_child(work, wait=False, quiet=point is not None)] = rank
    codes: dict[int, int] = {}
    while children:
        child, status = os.wait()
        codes[children.pop(child)] = code = os.waitstatus_to_exitcode(status)
        if code:
            for other in children:  # a launcher would end the other processes in the same way
                os.kill(other, signal.SIGKILL)
    return [codes[rank] for rank in range(processes)]


def _train(out: Path, settings: Sequence[str], *, rank: int, processes: int, port: int, point: Point | None) -> None:
    """Train in a forked process."""
    if processes > 1:
        os.environ |= {
            "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes),
            "LOCAL_WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
        }  # fmt: skip
    if point is not None and rank == point.rank:
        _arm(point)
    trainer.train(load_recipe("toy-quick", settings), out)
    trainer.leave_process_group()


def _arm(point: Point) -> None:
    """Install the hooks that kill this process at a point."""
    train_step, adam_step, save = trainer._Trainer._train_step, torch.optim.Adam.step, checkpoint_writer.save_checkpoint
    num_adam_steps = [0]

    def before_step(self: Any, batch: Any) -> Any:
        return die() if self.step == point.step else train_step(self, batch)

    def before_weights(self: Any, *given: Any, **named: Any) -> Any:
        num_adam_steps[0] += 1
        return die() if num_adam_steps[0] > point.step else adam_step(self, *given, **named)

    def while_saving(folder: Path, state: Any, **given: Any) -> Any:
        if state.step == point.step:
            places = ((Path, ("rename", "replace", "write_text")), (os, ("fsync",)), (torch, ("save",)))
            hook_changes(places, nth(point.write + 1, True, False))
        return save(folder, state, **given)

    if point.place == PLACES[0]:
        trainer._Trainer._train_step = before_step  # type: ignore[method-assign]
    elif point.place == PLACES[1]:
        torch.optim.Adam.step = before_weights  # type: ignore[method-assign]
    else:
        trainer.save_checkpoint = while_saving  # type: ignore[assignment, attr-defined]


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


def losses(out: Path) -> list[float]:
    """Return the training losses of a run's log."""
    return [line["loss"] for line in read_metrics(out) if line["kind"] == "train"]


def differences(out: Path, reference: Path) -> list[str]:
    """Compare the last checkpoint and the log of two runs, and list the files that differ in any bit."""
    found = []
    mine, theirs = (
        [{key: value for key, value in line.items() if key not in CLOCK} for line in read_metrics(folder)]
        for folder in (out, reference)
    )
    if mine != theirs:
        found.append("metrics.jsonl")
    last = f"checkpoints/{checkpoints.checkpoint_name(STEPS)}"
    for name in (checkpoints.MODEL_NAME, checkpoints.AVERAGE_NAME):
        weights, expected = load_file(out / last / name), load_file(reference / last / name)
        if any(not torch.equal(weights[key], expected[key]) for key in expected):
            found.append(name)
    states = [checkpoints.load_optimizer(folder / last)["optimizer"]["state"] for folder in (out, reference)]
    if any(not torch.equal(states[0][key][name], value) for key in states[1] for name, value in states[1][key].items()):
        found.append(checkpoints.OPTIMIZER_NAME)
    return found


def try_point(point: Point, *, base: Path, shards: Path, references: dict[int, Path]) -> str:
    """Kill a run at a point and resume it. Return a description of what is wrong; empty if nothing is."""
    out = base / "killed"
    shutil.rmtree(out, ignore_errors=True)
    settings = overrides(shards, exact_sums=point.processes == 1)
    codes = run(out, settings, processes=PROCESSES, point=point)
    if codes[point.rank] != -signal.SIGKILL:
        return f"was not killed (exit codes {codes})"
    codes = run(out, settings, processes=point.processes)
    if any(codes):
        return f"did not resume (exit codes {codes})"
    reference = references[point.processes]
    if point.processes == PROCESSES:
        differing = differences(out, reference)
        return f"differs in {', '.join(differing)}" if differing else ""
    furthest = max(abs(mine - theirs) for mine, theirs in zip(losses(out), losses(reference), strict=True))
    return f"has losses that differ by {furthest:.1e}" if furthest > 1e-5 else ""


def main(argv: Sequence[str] | None = None) -> int:
    """Run all points.

    Returns:
        The exit code: 0 if each resumed run ended like the undisturbed one, otherwise 1.
    """
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--points", type=int, default=20, help="number of runs to kill (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the points (default: %(default)s)")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)  # this process forks
    os.environ |= {"TQDM_DISABLE": "1", "OMP_NUM_THREADS": "1"}
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        shards = base / "shards"
        draw_toy(base / "source", num_images=40, seed=0, image_size=(96, 96))
        build_dataset(BuildOptions(dataset="toy/refseg", annotations=base / "source", out=shards, workers=1))
        points = draw_points(args.points, args.seed)
        references = {}
        for processes in sorted({point.processes for point in points}):
            references[processes] = base / f"reference-{processes}"
            codes = run(references[processes], overrides(shards, exact_sums=processes == 1), processes=PROCESSES)
            if any(codes):
                print(f"the undisturbed run failed: exit codes {codes}", file=sys.stderr)
                return 1
        failed = 0
        for number, point in enumerate(points):
            if fault := try_point(point, base=base, shards=shards, references=references):
                failed += 1
                print(f"point {number} of seed {args.seed}: {point}: the run {fault}", file=sys.stderr)
    num_alone = sum(point.processes == 1 for point in points)
    print(
        f"{len(points) - failed} of {len(points)} killed runs of {STEPS} steps ended as the undisturbed one "
        f"({len(points) - num_alone} bit for bit with {PROCESSES} processes, {num_alone} to 1e-5 with 1), seed "
        f"{args.seed}, {time.monotonic() - started:.0f} s"
    )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
