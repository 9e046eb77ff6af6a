"""Local processes: each result once, the same bytes with any number of workers, and an end on request."""

import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipelines.build import build_dataset
from pipelines.engines import run_local, run_tasks, usable_cores
from refseg.errors import UsageError, WorkerError

# Spawned workers import functions by their modules, so these tests use functions of the standard library.


def _children() -> list[int]:
    """Return the child processes of this one, without multiprocessing's resource tracker."""
    children = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()
    return [int(child) for child in children if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()]


@pytest.mark.parametrize("workers", [1, 2])
def test_every_result_comes_once(workers: int) -> None:
    assert sorted(run_local(math.isqrt, [n * n for n in range(20)], workers)) == list(range(20))


def test_without_tasks_nothing_is_started() -> None:
    assert list(run_local(math.isqrt, [], 4)) == []
    assert list(run_tasks("ray", math.isqrt, [], 4, name=str)) == []


def test_one_worker_is_this_process_and_takes_a_task_when_its_result_is_wanted() -> None:
    taken: list[int] = []
    results = run_local(taken.append, [1, 2, 3], 1)
    next(results)
    assert taken == [1]


def test_what_a_task_raises_comes_through() -> None:
    with pytest.raises(ValueError, match="invalid literal for int"):
        list(run_local(int, ["1", "one", "2"], 2))
    assert _children() == []


def test_a_dead_worker_is_an_error_that_names_the_tasks_at_work() -> None:
    with pytest.raises(
        WorkerError, match=r"a worker process died at one of .*train-9.*; run the same command to resume"
    ):
        list(run_local(os._exit, [9, 9], 2, name=lambda code: f"train-{code}"))
    assert _children() == []


def test_who_wants_no_more_results_ends_the_workers_at_once() -> None:
    results = run_local(time.sleep, [0, 600, 600], 2)
    next(results)
    assert len(_children()) == 2

    begin = time.monotonic()
    results.close()  # type: ignore[attr-defined]
    assert time.monotonic() - begin < 300  # half of what the tasks take
    assert _children() == []


def test_an_interrupt_ends_the_workers_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("pipelines.engines.local.wait", interrupted)
    begin = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        list(run_local(time.sleep, [600, 600], 2))
    assert time.monotonic() - begin < 300  # half of what the tasks take
    assert _children() == []


def test_cores_are_those_of_the_job_and_not_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {3, 5, 7}, raising=False)
    assert usable_cores() == 3


def test_an_unknown_engine_is_refused(tiny: Any, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--engine spark: expected local or ray"):
        tiny.options(tmp_path / "out", engine="spark")


def test_a_build_whose_worker_died_is_kept_and_goes_on(
    tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, contents: Callable[[Path], dict[str, bytes]]
) -> None:
    def die(*args: object, **kwargs: object) -> Any:
        yield from run_tasks(*args, **kwargs)  # type: ignore[arg-type]
        raise WorkerError("a worker process died")

    with monkeypatch.context() as patch:
        patch.setattr("pipelines.build.run_tasks", die)
        with pytest.raises(WorkerError):
            build_dataset(tiny.options(tmp_path / "out"))
    kept = [name for name in contents(tmp_path / "out") if name.endswith(".tar")]
    assert len(kept) == 3
    before = {name: (tmp_path / "out" / name).stat().st_mtime_ns for name in kept}

    build_dataset(tiny.options(tmp_path / "out"))
    assert {name: (tmp_path / "out" / name).stat().st_mtime_ns for name in kept} == before
    build_dataset(tiny.options(tmp_path / "whole"))
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
