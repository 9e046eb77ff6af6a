"""SIGTERM before the first step: there is no work to save, and the exit code 75 makes the scheduler queue the job."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from refseg.training.stopping import Preemption
from tests.ports import free_port
from tests.training.test_training_runs import ROOT
from tests.warm_python import python


def send_sigterm(
    out: Path, overrides: list[str], *, when: Callable[[int], bool], executable: str = sys.executable, **environ: str
) -> tuple[int, str]:
    """Start a run, send SIGTERM when `when(pid)` returns True, and return exit code and output of the run.

    The run must end at once.
    """
    run = subprocess.Popen(
        [executable, "refseg/train.py", "toy-quick", "--out", str(out), "--set", *overrides],
        cwd=ROOT, env={**os.environ, **environ}, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    while not when(run.pid):
        assert run.poll() is None, run.communicate()[0]
        time.sleep(0.02)
    run.send_signal(signal.SIGTERM)
    output, _ = run.communicate(timeout=120)
    return run.returncode, output


def handles_sigterm(pid: int) -> bool:
    """Return True if a process has installed a handler for SIGTERM."""
    status = Path(f"/proc/{pid}/status").read_text()
    caught = int(status.split("SigCgt:")[1].split()[0], 16)
    return bool(caught & 1 << (signal.SIGTERM - 1))


def has_loaded(name: str) -> Callable[[int], bool]:
    return lambda pid: name in Path(f"/proc/{pid}/maps").read_text()


@pytest.mark.parametrize("when", [handles_sigterm, has_loaded("libtorch_cpu")])
def test_a_run_that_sigterm_stops_while_it_starts_ends_with_75(
    when: Callable[[int], bool], overrides: list[str], tmp_path: Path
) -> None:
    code, output = send_sigterm(tmp_path / "run", overrides, when=when)

    assert code == 75
    assert output == "refseg: error: stopped by SIGTERM while no step was running; the same command resumes the run\n"
    assert not (tmp_path / "run").exists()


def test_sigterm_ends_a_run_at_once_that_waits_for_other_processes(overrides: list[str], tmp_path: Path) -> None:
    # Rank 0 of 2 opens the rendezvous, and waits in torch for the other process, which is never started.
    port = free_port()

    def waits(pid: int) -> bool:
        with socket.socket() as client:
            return client.connect_ex(("127.0.0.1", port)) == 0

    group = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    code, output = send_sigterm(
        tmp_path / "run", overrides, when=waits, executable=python(), MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port), **group,
    )  # fmt: skip

    assert code == 75
    assert "stopped by SIGTERM while no step was running" in output


def test_the_earlier_handler_of_sigterm_is_restored() -> None:
    received: list[int] = []
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    handler, wakeup = (
        signal.signal(signal.SIGTERM, lambda number, _: received.append(number)),
        signal.set_wakeup_fd(writing),
    )
    try:
        with Preemption().catch_sigterm():
            signal.raise_signal(signal.SIGTERM)
        assert received == []
        signal.raise_signal(signal.SIGTERM)
        assert received == [signal.SIGTERM]
        assert os.read(reading, 8) == bytes([signal.SIGTERM])
    finally:
        signal.signal(signal.SIGTERM, handler)
        signal.set_wakeup_fd(wakeup)
        os.close(reading)
        os.close(writing)
