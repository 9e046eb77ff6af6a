"""The loader over many epochs: memory does not grow, nothing is left behind, and a killed worker is reported."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from torch._C import _remove_worker_pids, _set_worker_pids

from refseg.data.index import ManifestIndex
from refseg.data.loader import RefLoader
from refseg.data.order import BatchPlan
from refseg.data.packer import Packed, Packer
from refseg.data.worker_death import report_worker_death
from refseg.errors import DatasetError, TrainingError
from refseg.reading import Reading
from tests.warm_python import python

SCRIPT = Path(__file__).with_name("soak.py")
EPOCHS = 12


def shared_memory(pids: list[int]) -> list[str]:
    """Return the shared memory that some processes created through torch, whose names contain the process id."""
    made = tuple(f"torch_{pid}_" for pid in pids)
    return [path.name for path in Path("/dev/shm").iterdir() if path.name.startswith(made)]


@pytest.fixture(scope="module", params=["threads", "processes"])
def soaked(request: pytest.FixtureRequest, dataset: Path) -> dict[str, Any]:
    """Return the report of 12 epochs in a separate process, and the shared memory that it left."""
    command = [sys.executable, str(SCRIPT), str(dataset), request.param, str(EPOCHS)]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=300, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr
    report: dict[str, Any] = json.loads(done.stdout)
    assert bool(report["workers"]) == (request.param == "processes")
    return report


@pytest.mark.slow
def test_memory_is_flat_over_12_epochs(soaked: dict[str, Any]) -> None:
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
import multiprocessing, os, sys, time
from pathlib import Path
from refseg.data.index import ManifestIndex
from refseg.data.loader import RefLoader
from refseg.reading import Reading

reading = Reading(
    geometry="stretch", input_size=(32, 32), sampling="sentence", global_batch=1, num_tokens=8, remainder="pad",
    num_workers=2, worker_kind="processes",
)
loader = RefLoader(ManifestIndex.open(Path(sys.argv[1]), ["train"]), reading)
for batch in loader:
    print(os.getpid(), *(child.pid for child in multiprocessing.active_children()), flush=True)
    time.sleep(600)  # a step, which the error breaks off
"""


def test_a_killed_worker_is_an_error_that_breaks_off_the_step(dataset: Path) -> None:
    training = subprocess.Popen(
        [python(), "-c", TRAINING, str(dataset)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert training.stdout is not None
        pid, *workers = [int(pid) for pid in training.stdout.readline().split()]
        assert len(workers) == 2
        os.kill(workers[0], signal.SIGKILL)
        _, said = training.communicate(timeout=300)
    finally:
        training.kill()
        training.communicate()

    assert training.returncode not in (0, -signal.SIGKILL)
    assert f"worker (pid {workers[0]}) is killed by signal" in said
    assert [pid for pid in workers if Path(f"/proc/{pid}").exists()] == []
    assert shared_memory([*workers, pid]) == []


class KillsWhoSentIt:
    """An object that kills its sender at the moment at which the receiver unpickles it."""

    def __reduce__(self) -> tuple[Any, tuple[int, int]]:
        return os.kill, (os.getpid(), signal.SIGKILL)


def make_loader(index: ManifestIndex) -> RefLoader:
    reading = Reading(
        geometry="stretch", input_size=(32, 32), sampling="sentence", global_batch=4, num_tokens=8, remainder="pad",
        num_workers=1, worker_kind="processes",
    )  # fmt: skip
    return RefLoader(index, reading)


def test_a_worker_killed_while_its_batch_is_received_is_the_same_error(
    train_index: ManifestIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack = Packer.__getitem__

    def pack_and_die(packer: Packer, plan: BatchPlan) -> Packed:
        packed = pack(packer, plan)
        # Images are unpacked first; all other tensors are fetched from the worker, which is dead by then.
        return packed._replace(batch=packed.batch._replace(images=KillsWhoSentIt()))

    monkeypatch.setattr(Packer, "__getitem__", pack_and_die)
    for _ in range(6):  # it shows as one error or another
        with pytest.raises(
            TrainingError, match=r"worker \(pid \d+\) (is killed by signal: Killed|exited unexp\w+); if"
        ):
            list(make_loader(train_index))


BROKEN_OFF = [ConnectionResetError(104, "reset"), EOFError(), RuntimeError("received 0 items of ancillary data")]


@pytest.mark.parametrize("error", BROKEN_OFF, ids=lambda error: type(error).__name__)
def test_what_breaks_off_before_the_signal_comes_waits_for_it(error: Exception) -> None:
    said = "DataLoader worker (pid 7) is killed by signal: Killed. "

    def notice(number: int, frame: object) -> None:
        raise RuntimeError(said)

    before = signal.signal(signal.SIGALRM, notice)
    signal.setitimer(signal.ITIMER_REAL, 0.2)
    try:
        with (
            pytest.raises(TrainingError, match=r"^DataLoader worker \(pid 7\) is killed by signal: Killed; if memory"),
            report_worker_death(signal_seconds=5.0),
        ):
            raise error
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_a_death_is_named_even_if_the_notice_of_the_signal_was_lost() -> None:
    """The handler of the signal may raise inside a destructor, where Python drops exceptions."""
    before = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    worker = subprocess.Popen(["sleep", "600"])
    _set_worker_pids(id(worker), (worker.pid,))
    worker.kill()
    try:
        with (
            pytest.raises(TrainingError, match=rf"^DataLoader worker \(pid {worker.pid}\) is killed by signal: Killed"),
            report_worker_death(signal_seconds=60.0),
        ):
            raise ConnectionResetError(104, "reset")
    finally:
        _remove_worker_pids(id(worker))
        worker.wait()
        signal.signal(signal.SIGCHLD, before)


def test_an_error_that_is_no_death_stays_what_it_is() -> None:
    for error in (RuntimeError("out of memory"), DatasetError("DataLoader worker (pid 1) read a damaged shard")):
        with pytest.raises(type(error), match=str(error)[:8]), report_worker_death():
            raise error


def test_a_death_that_shows_during_a_step_is_the_same_error() -> None:
    with (
        pytest.raises(TrainingError, match=r"^DataLoader worker \(pid 7, 9\) exited unexpectedly; if memory ran out"),
        report_worker_death(),
    ):
        raise RuntimeError("DataLoader worker (pid(s) 7, 9) exited unexpectedly")
