"""After SIGKILL or SIGTERM, the same command gives the trace and weights of an uninterrupted run, bit for bit."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from refseg.config import load_recipe
from refseg.training import trainer
from tests.training.test_training_runs import TWO_PROCESSES, assert_same_run, one_thread, start

__all__ = ["one_thread"]

LONGER = ["train.epochs=4", "train.max_steps=24", "train.val_every_epochs=2", "train.keep_checkpoints=1",
          "train.trackers=[]"]  # fmt: skip
LAUNCHES = {1: [], 2: TWO_PROCESSES}
processes = pytest.mark.parametrize("num_processes", [1, 2])


def command(num_processes: int, out: Path, settings: list[str]) -> list[str]:
    return [*LAUNCHES[num_processes], "refseg/train.py", "toy-quick", "--out", str(out), "--set", *settings]


def until_step_6(run: "subprocess.Popen[str]") -> None:
    assert run.stdout is not None
    for line in run.stdout:
        if "step 6/24" in line:
            return
    raise AssertionError(f"the run ended before step 6, with exit code {run.wait()}")


def finish(num_processes: int, out: Path, settings: list[str]) -> str:
    """Run to the end and return the output."""
    output, _ = (run := start(command(num_processes, out, settings))).communicate(timeout=300)
    assert run.returncode == 0, output
    return output


@pytest.fixture(scope="module")
def references(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("references")


@pytest.fixture
def unbroken(references: Path, overrides: list[str]) -> Callable[[int], Path]:
    """The uninterrupted run, trained once for each number of processes."""

    def run(num_processes: int) -> Path:
        out = references / str(num_processes)
        if not out.exists() and num_processes == 1:
            trainer.train(load_recipe("toy-quick", [*overrides, *LONGER]), out)
        elif not out.exists():
            finish(num_processes, out, [*overrides, *LONGER])
        return out

    return run


@pytest.mark.slow
@processes
def test_sigkill_and_the_same_command_give_the_unbroken_trace(
    num_processes: int, overrides: list[str], unbroken: Callable[[int], Path], tmp_path: Path
) -> None:
    settings = [*overrides, *LONGER]
    # The launcher's own processes must end with it: they are its children only if it is started as users start it.
    run = start(command(num_processes, tmp_path, settings), executable=sys.executable)
    until_step_6(run)
    os.killpg(run.pid, signal.SIGKILL)
    assert run.stdout is not None
    run.stdout.read()  # until no process is left that could write
    run.stdout.close()
    assert run.wait() == -signal.SIGKILL
    assert not (tmp_path / "checkpoints" / "step-00000024").exists(), "killed too late to test anything"

    assert "resuming from" in finish(num_processes, tmp_path, settings)
    assert_same_run(tmp_path, unbroken(num_processes))


@pytest.mark.slow
@processes
def test_sigterm_saves_and_the_same_command_goes_on(
    num_processes: int, overrides: list[str], unbroken: Callable[[int], Path], tmp_path: Path
) -> None:
    settings = [*overrides, *LONGER, "train.checkpoint_every_steps=1000"]
    # The launcher of one process does not pass SIGTERM on: its process receives it when its parent ends.
    run = start(command(num_processes, tmp_path, settings), executable=sys.executable if num_processes == 1 else "")
    until_step_6(run)
    run.send_signal(signal.SIGTERM)
    output, _ = run.communicate(timeout=300)
    assert run.returncode != 0
    (saved,) = (path.name for path in (tmp_path / "checkpoints").glob("step-*"))
    assert saved < "step-00000024", output

    finish(num_processes, tmp_path, settings)
    assert_same_run(tmp_path, unbroken(num_processes))
