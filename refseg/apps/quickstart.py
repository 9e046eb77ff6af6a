"""Implements `refseg quickstart`. Runs each user command on drawn scenes."""

import json
import os
import re
import resource
import shlex
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import fsum
from pathlib import Path
from typing import Any

from refseg.apps.options import QuickstartOptions
from refseg.apps.quickstart_steps import Command, Step, plan_steps, program, seconds_left
from refseg.errors import RefsegError

_AT_ONCE = 2
_POLL_SECONDS = 0.2
_TAIL_BYTES = 4096
_TRAINED = re.compile(rb"step (\d+)/(\d+) ")
"""A line of the log of a training run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """The results of a quickstart.

    Attributes:
        run: Folder of the run, with its report.
        browse: The page of the dataset.
        predictions: Folder of the masks.
        scores: Content of the score files, by `val`, `val-shuffled`, `testA` and `testB`.
        seconds: Seconds of each step, by its name.
        cpu_seconds: Processor time of all steps together.
    """

    run: Path
    browse: Path
    predictions: Path
    scores: Mapping[str, Mapping[str, Any]]
    seconds: Mapping[str, float]
    cpu_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """The progress of a quickstart.

    Attributes:
        step: The step that is running.
        number: Its number, from 1.
        seconds: Seconds that it has taken.
        share: Fraction of the step that is done, 0 to 1. None if it is unknown.
        elapsed: Seconds since the start of the quickstart.
        left: Estimated seconds until the end of the quickstart.
    """

    step: Step
    number: int
    seconds: float
    share: float | None
    elapsed: float
    left: float


def run_quickstart(
    options: QuickstartOptions, *, begun: Callable[[Step, int], object], status: Callable[[Status], object]
) -> Outcome:
    """Run all steps. Steps that an earlier call completed are skipped.

    Args:
        options: How large it is, and where it writes. The output of the commands goes to `logs` in that folder.
        begun: Called with each step and its number, from 1, when it begins.
        status: Called several times a second.

    Raises:
        RefsegError: If a command fails, with its last line and the file of its output.
    """
    steps = plan_steps(options)
    estimates = [step.seconds for step in steps]
    logs = options.out / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    taken: list[float] = []
    cpu_before = _cpu_seconds()
    for number, step in enumerate(steps, 1):
        begun(step, number)
        started = time.monotonic()
        outputs = [logs / f"{number}-{step.name}-{place}.log" for place, _ in enumerate(step.commands, 1)]
        for _ in _run(step, outputs):
            seconds = time.monotonic() - started
            share = _trained_share(outputs[0]) if step.name == "train" else None
            left = seconds_left(estimates, taken, seconds, share)
            status(
                Status(step=step, number=number, seconds=seconds, share=share, elapsed=fsum(taken) + seconds, left=left)
            )
        taken.append(time.monotonic() - started)
    run = options.out / "run"
    return Outcome(
        run=run,
        browse=options.out / "browse/index.html",
        predictions=options.out / "predictions",
        scores={
            name: json.loads((run / f"evaluation/scores-toy.refseg-{name}.json").read_text(encoding="utf-8"))
            for name in ("val", "val-shuffled", "testA", "testB")
        },
        seconds=dict(zip((step.name for step in steps), taken, strict=True)),
        cpu_seconds=_cpu_seconds() - cpu_before,
    )


def _run(step: Step, outputs: Sequence[Path]) -> Iterator[None]:
    """Run the commands of a step, and yield several times a second until they have ended."""
    waiting = list(zip(step.commands, outputs, strict=True))
    environ = dict(os.environ)
    at_once = 1
    if step.is_parallel:
        at_once = min(_AT_ONCE, len(os.sched_getaffinity(0)))
        environ.setdefault("OMP_NUM_THREADS", "1")
    with _ended_with_us() as running:
        while waiting or running:
            while waiting and len(running) < at_once:
                command, output = waiting.pop(0)
                running[_start(command, output, environ)] = output
            time.sleep(_POLL_SECONDS)
            for process in [process for process in running if process.poll() is not None]:
                output = running.pop(process)
                if process.returncode:
                    raise _failure(process.returncode, output)
            yield


def _start(command: Command, output: Path, environ: Mapping[str, str]) -> "subprocess.Popen[bytes]":
    with output.open("wb") as file:
        file.write(f"$ {shlex.join(command)}\n".encode())
        file.flush()
        return subprocess.Popen(program(command), stdout=file, stderr=subprocess.STDOUT, env=environ)


@contextmanager
def _ended_with_us() -> Iterator[dict["subprocess.Popen[bytes]", Path]]:
    """Yield processes with the files of their output. At an error or Ctrl-C, remaining processes are asked to end."""
    running: dict[subprocess.Popen[bytes], Path] = {}
    try:
        yield running
    finally:
        for process in running:
            process.terminate()
        for process in running:
            process.wait()


def _failure(exit_code: int, output: Path) -> RefsegError:
    lines = [line for line in _tail(output).decode(errors="replace").splitlines() if line.strip()]
    return RefsegError(
        f"quickstart: a command ended with exit code {exit_code}: {lines[-1]}; its output is in {output}. The "
        "steps before it are kept: run quickstart again to continue"
    )


def _trained_share(log: Path) -> float | None:
    found = _TRAINED.findall(_tail(log))
    return int(found[-1][0]) / int(found[-1][1]) if found else None


def _tail(log: Path) -> bytes:
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - _TAIL_BYTES))
        return file.read()


def _cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
