"""SIGKILL during a build: the next run gives the same bytes, no reader accepts the folder, no worker remains."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipelines.build import build_dataset

SCRIPT = Path(__file__).parents[2] / "scripts" / "kill_build.py"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kinds", "num_points"), [(["step", "moment"], 10), (["worker", "parent", "upload", "upload-moment"], 10)]
)
def test_a_build_killed_anywhere_ends_with_the_same_bytes(kinds: list[str], num_points: int) -> None:
    """Kill at seeded points; `scripts/kill_build.py` describes the checks after each and runs any number of kills."""
    command = [sys.executable, str(SCRIPT), "--points", str(num_points), "--seed", "1", "--only", *kinds]
    run = subprocess.run(command, capture_output=True, text=True)

    assert run.returncode == 0, run.stderr
    *lines, summary = run.stdout.splitlines()
    assert [line.partition(":")[0] for line in lines] == kinds
    assert summary.startswith(f"{num_points} kills, seed 1, ")
    assert all(line.count(" 0 shards") == 0 for line in lines if line.startswith(("step", "worker", "upload:")))


def _children(pid: int) -> list[int]:
    """Return the Python processes below a process, without the resource tracker."""
    found = subprocess.run(["ps", "-ww", "-o", "pid=,args=", "--ppid", str(pid)], capture_output=True, text=True).stdout
    return [int(line.split()[0]) for line in found.splitlines() if "spawn_main" in line]


def _hear_interrupts() -> None:
    """Make Ctrl-C effective again: processes that a shell starts in the background ignore it, as do their children."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


SLOW_BUILD = """
import sys, time
from pathlib import Path
from pipelines.build import build_dataset
from pipelines.options import BuildOptions

if __name__ == "__main__":
    data, out = map(Path, sys.argv[1:])
    shards = {"workers": 2, "images_per_shard": 1}
    options = BuildOptions(dataset="refcoco/unc", annotations=data, out=out, accept_counts=True, **shards)
    build_dataset(options, progress=lambda done, total: (print(done, flush=True), time.sleep(600)))
"""


@pytest.mark.slow
def test_workers_end_with_a_killed_parent_and_the_next_run_finishes(
    tiny: Any, tmp_path: Path, contents: Callable[[Path], dict[str, bytes]]
) -> None:
    out = tmp_path / "out"
    tiny.write()
    script = tmp_path / "slow_build.py"
    script.write_text(SLOW_BUILD)
    parent = subprocess.Popen([sys.executable, script, tiny.root, out], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    with parent.stdout:
        assert parent.stdout.readline() == "1\n"  # a first shard is there, the parent dozes
        workers = _children(parent.pid)
        parent.kill()
        parent.wait()

    assert len(workers) == 2
    deadline = time.monotonic() + 60
    while any(_is_alive(pid) for pid in workers):
        assert time.monotonic() < deadline, "a worker outlived its parent"
        time.sleep(0.05)
    assert not (out / "refseg.json").exists()
    build_dataset(tiny.options(out, images_per_shard=1))
    build_dataset(tiny.options(tmp_path / "whole", images_per_shard=1))
    assert contents(out) == contents(tmp_path / "whole")


def _is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").is_dir() or os.name != "posix", reason="looks processes up in /proc")
def test_ctrl_c_leaves_a_build_that_goes_on(
    tiny: Any, tmp_path: Path, contents: Callable[[Path], dict[str, bytes]]
) -> None:
    out = tmp_path / "out"
    tiny.write()
    script = tmp_path / "slow_build.py"
    script.write_text(SLOW_BUILD)
    # A session of its own, so that the signal reaches parent and workers as a terminal's Ctrl-C does.
    parent = subprocess.Popen(
        [sys.executable, script, tiny.root, out],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        preexec_fn=_hear_interrupts,
    )  # fmt: skip
    assert parent.stdout is not None
    assert parent.stdout.readline() == "1\n"
    os.killpg(parent.pid, signal.SIGINT)
    _, stderr = parent.communicate(timeout=120)

    assert stderr.count("Traceback") == 1  # the parent's own KeyboardInterrupt, none of a worker
    assert not (out / "refseg.json").exists()
    build_dataset(tiny.options(out, images_per_shard=1))
    build_dataset(tiny.options(tmp_path / "whole", images_per_shard=1))
    assert contents(out) == contents(tmp_path / "whole")


def test_an_interrupt_while_workers_start_shows_no_traceback(tiny: Any, tmp_path: Path) -> None:
    """Ctrl-C goes to every process at once; workers are busy with their imports for some tenths of a second."""
    build_dataset(tiny.options(tmp_path / "out", images_per_shard=1, stage="plan"))
    tiny.image_path(8).unlink()
    os.mkfifo(tiny.image_path(8))  # a process that reads it never ends: the build cannot be done before the signal
    command = [sys.executable, "-m", "refseg", "build-shards", "refcoco/unc", "--annotations", str(tiny.write())]
    command += ["--accept-counts", "--stage", "shards"]
    command += ["--out", str(tmp_path / "out"), "--workers", "2", "--images-per-shard", "1"]
    build = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=_hear_interrupts,
    )
    children = Path(f"/proc/{build.pid}/task/{build.pid}/children")
    while build.poll() is None and len(children.read_text().split()) < 3:  # two workers and the resource tracker
        time.sleep(0.005)
    time.sleep(0.05)

    os.killpg(build.pid, signal.SIGINT)

    error = build.communicate(timeout=120)[1]
    assert build.returncode == 130
    assert "Traceback" not in error
