"""The loader over many epochs: nothing grows, nothing is left behind, and a killed worker is noticed."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).with_name("soak.py")
EPOCHS = 20


def shared_memory(pids: list[int]) -> list[str]:
    """Segments that some processes made through torch: these are named by who made them."""
    made = tuple(f"torch_{pid}_" for pid in pids)
    return [path.name for path in Path("/dev/shm").iterdir() if path.name.startswith(made)]


@pytest.fixture(scope="module", params=["threads", "processes"])
def soaked(request: pytest.FixtureRequest, dataset: Path) -> dict[str, Any]:
    """What 20 epochs in a process of their own held, and what that left."""
    command = [sys.executable, str(SCRIPT), str(dataset), request.param, str(EPOCHS)]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=300, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr
    report: dict[str, Any] = json.loads(done.stdout)
    assert bool(report["workers"]) == (request.param == "processes")
    return report


@pytest.mark.slow
def test_memory_is_flat_over_20_epochs(soaked: dict[str, Any]) -> None:
    memory = soaked["memory"]

    assert len(memory) == EPOCHS
    assert memory[-1] <= 1.03 * memory[2], [f"{held / 1e6:.1f} MB" for held in memory]


@pytest.mark.slow
def test_no_descriptor_worker_thread_or_shared_memory_is_left(soaked: dict[str, Any]) -> None:
    first, *during, last = soaked["files"]

    assert last <= first
    assert max(during) == max(during[:4])
    assert soaked["left"] == []
    assert soaked["threads"] == []
    assert [pid for pid in soaked["workers"] if Path(f"/proc/{pid}").exists()] == []
    assert shared_memory([*soaked["workers"], soaked["pid"]]) == []


TRAINING = """
import multiprocessing, sys, time
from pathlib import Path
from refseg.data.index import ManifestIndex
from refseg.data.loader import RefLoader
from refseg.data.transforms import Geometry

loader = RefLoader(
    ManifestIndex.open(Path(sys.argv[1]), ["train"]), geometry=Geometry(kind="stretch", size=(32, 32)),
    sampling="sentence", global_batch=1, num_tokens=8, seed=0, shuffle=True, remainder="pad", num_workers=2,
    worker_kind="processes",
)
for batch in loader:
    print(*(child.pid for child in multiprocessing.active_children()), flush=True)
    time.sleep(20)  # a step, which the error breaks off
"""


def test_a_killed_worker_is_an_error_within_seconds_and_no_hang(dataset: Path) -> None:
    training = subprocess.Popen(
        [sys.executable, "-c", TRAINING, str(dataset)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert training.stdout is not None
        workers = [int(pid) for pid in training.stdout.readline().split()]
        assert len(workers) == 2
        os.kill(workers[0], signal.SIGKILL)
        begin = time.monotonic()
        _, said = training.communicate(timeout=30)
    finally:
        training.kill()
        training.communicate()

    assert time.monotonic() - begin < 10
    assert training.returncode not in (0, -signal.SIGKILL)
    assert f"worker (pid {workers[0]}) is killed by signal" in said
    assert [pid for pid in workers if Path(f"/proc/{pid}").exists()] == []
    assert shared_memory([*workers, training.pid]) == []
