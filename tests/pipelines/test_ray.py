"""Builds on Ray: all tests of this file use a real Ray instance with two cores."""

import logging
import os
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from pipelines.build import build_dataset
from pipelines.engines.ray import MAX_RETRIES, run_ray
from refseg.cli import main
from refseg.errors import ImageError, RefsegError, StorageError, UsageError, WorkerError
from tests.ports import free_port

# Functions for Ray are defined inside tests, so that Ray pickles them by value: workers cannot import this module.


@pytest.fixture(scope="module")
def ray_here() -> Iterator[Any]:
    """A Ray instance to which this process is connected, like a user's program."""
    ray = pytest.importorskip("ray")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        quiet = {"include_dashboard": False, "log_to_driver": False, "logging_level": logging.ERROR}
        ray.init(address="local", num_cpus=2, object_store_memory=100 << 20, **quiet)
        yield ray
        ray.shutdown()


@pytest.mark.slow
def test_every_engine_and_order_gives_the_same_bytes(
    ray_here: Any, tiny: Any, tmp_path: Path, contents: Callable[[Path], dict[str, bytes]]
) -> None:
    """Processes (1, 2, 4), array tasks from the last to the first, Ray."""

    def build(name: str, **more: Any) -> dict[str, bytes]:
        build_dataset(tiny.options(tmp_path / name, images_per_shard=1, **more))
        return contents(tmp_path / name)

    expected = build("1")
    assert len([name for name in expected if name.endswith(".tar")]) == 5
    for workers in (2, 4):
        assert build(str(workers), workers=workers) == expected
    assert build("ray", engine="ray", workers=2) == expected
    assert ray_here.is_initialized()  # a connection that was there stays

    build("array", stage="plan")
    for task_index in (2, 1, 0):
        build("array", stage="shards", task_index=task_index, task_count=3)
    assert build("array", stage="finalize") == expected


@pytest.mark.slow
def test_a_fault_of_the_data_reads_as_from_local_processes(ray_here: Any, tiny: Any, tmp_path: Path) -> None:
    image = tiny.image_path(8)
    image.write_bytes(image.read_bytes()[:-20])
    messages = []
    for engine in ("local", "ray"):
        with pytest.raises(ImageError) as caught:
            build_dataset(tiny.options(tmp_path / engine, engine=engine))
        messages.append(str(caught.value))
        assert not (tmp_path / engine).exists()
    assert messages[0] == messages[1]
    assert "image 8" in messages[0]


@pytest.mark.slow
def test_what_a_task_raises_comes_through_whole_and_is_not_tried_again(ray_here: Any, tmp_path: Path) -> None:
    log = tmp_path / "log"

    def fail(number: int) -> int:
        with log.open("a") as file:
            file.write(f"{number}\n")
        raise StorageError(5, "writing failed 5 times", f"s3://bucket/{number}")

    with pytest.raises(StorageError, match=r"^s3://bucket/7: writing failed 5 times$"):
        list(run_ray(fail, [7], 2, name=str))
    assert log.read_text() == "7\n"


@pytest.mark.slow
def test_a_task_whose_worker_dies_is_tried_again(ray_here: Any, tmp_path: Path) -> None:
    def die_once(number: int) -> int:
        mark = tmp_path / str(number)
        if not mark.exists():
            mark.touch()
            os._exit(1)
        return number

    assert sorted(run_ray(die_once, [1, 2], 2, name=str)) == [1, 2]


@pytest.mark.slow
def test_a_task_whose_worker_dies_each_time_is_named(ray_here: Any, tmp_path: Path) -> None:
    def die(number: int) -> int:
        if number == 2:
            with (tmp_path / "log").open("a") as file:
                file.write("again\n")
            os._exit(1)
        return number

    with pytest.raises(
        WorkerError, match=r"Ray: 1 tasks failed, each 4 times \(train-00002\); the first: WorkerCrashed"
    ):
        list(run_ray(die, [1, 2], 1, name=lambda number: f"train-{number:05d}"))
    assert len((tmp_path / "log").read_text().split()) == 1 + MAX_RETRIES


@pytest.mark.slow
def test_no_more_tasks_are_begun_than_were_allowed(ray_here: Any, tmp_path: Path) -> None:
    def mark(number: int) -> int:
        (tmp_path / str(number)).touch()
        return number

    with closing(run_ray(mark, range(9), 2, name=str)) as results:
        next(results)
        deadline = time.monotonic() + 120
        while len(list(tmp_path.iterdir())) < 2 and time.monotonic() < deadline:
            time.sleep(0.1)
        time.sleep(1)  # would suffice for all nine
        assert len(list(tmp_path.iterdir())) == 2
        assert len(list(results)) == 8


@pytest.mark.slow
def test_who_drops_results_after_ray_has_ended_is_not_held_up(ray_here: Any) -> None:
    results = run_ray(lambda number: number, range(9), 2, name=str)
    assert next(results) in range(9)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ray_here, "is_initialized", lambda: False)
        patch.setattr(ray_here, "wait", lambda *args, **kwargs: pytest.fail("would start Ray anew"))
        results.close()


@pytest.mark.slow
def test_who_wants_no_more_results_waits_for_the_tasks_in_flight(ray_here: Any, tmp_path: Path) -> None:
    def doze(seconds: float) -> float:
        (tmp_path / f"begun-{seconds}").touch()
        while seconds and not (tmp_path / "ended-0").exists():  # its worker may have started later
            time.sleep(0.01)
        time.sleep(seconds)
        (tmp_path / f"ended-{seconds}").touch()
        return seconds

    results = run_ray(doze, [0, 0.5, 1, 600], 2, name=str)
    assert next(results) == 0
    results.close()  # type: ignore[attr-defined]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["begun-0", "begun-0.5", "ended-0", "ended-0.5"]


def test_without_ray_the_way_to_it_is_said(
    tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("pipelines.engines.ray.find_spec", lambda name: None)
    out = tmp_path / "out"
    assert main(["build-shards", "refcoco/unc", "--annotations", str(tiny.write()), "--out", str(out), *_RAY]) == 2
    assert "--engine ray: Ray is not installed; pip install 'refseg[ray]'" in capsys.readouterr().err
    assert not out.exists()


def test_an_address_where_nobody_listens_is_an_error_at_once(
    tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    monkeypatch.setattr("ray.init", lambda **_: pytest.fail("would wait for a cluster"))
    with pytest.raises(UsageError, match=r"cannot use Ray at 127\.0\.0\.1:1 \(.*refused\); start the cluster"):
        build_dataset(tiny.options(tmp_path / "out", engine="ray"))
    assert not (tmp_path / "out").exists()


_RAY = ("--accept-counts", "--images-per-shard", "1", "--engine", "ray", "--workers", "2")


def _marked(mark: str) -> list[int]:
    """Return all processes that a command started, found by a mark in their environment."""
    found = []
    for folder in Path("/proc").iterdir():
        try:
            if folder.name.isdigit() and mark.encode() in (folder / "environ").read_bytes():
                found.append(int(folder.name))
        except OSError:  # not ours, or gone
            continue
    return found


@pytest.mark.slow
@pytest.mark.parametrize("is_ended", [False, True])
def test_the_command_starts_ray_and_leaves_no_process(tiny: Any, tmp_path: Path, is_ended: bool) -> None:
    mark, out = uuid.uuid4().hex, tmp_path / "out"
    stage = "shards" if is_ended else "all"
    if is_ended:
        build_dataset(tiny.options(out, images_per_shard=1, stage="plan"))
        tiny.image_path(8).rename(tmp_path / "kept.jpg")
        os.mkfifo(tiny.image_path(8))  # a task waits for ever for what it reads here
    command = [sys.executable, "-W", "error", "-m", "refseg", "build-shards", "refcoco/unc"]
    command += ["--annotations", str(tiny.write()), "--out", str(out), "--stage", stage, *_RAY]
    environ = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"} | {"MARK": mark}
    build = subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    if is_ended:
        deadline = time.monotonic() + 300
        while len(list(out.glob("*.tar"))) < 4:
            assert time.monotonic() < deadline
            assert build.poll() is None
            time.sleep(0.05)
        build.terminate()
    printed, error = build.communicate(timeout=300)

    assert build.returncode == (143 if is_ended else 0), error
    assert "Traceback" not in error
    assert ("5 shards, 5 images" in printed) is not is_ended
    assert (out / "refseg.json").exists() is not is_ended
    deadline = time.monotonic() + 120
    while _marked(mark):
        assert time.monotonic() < deadline, [Path(f"/proc/{each}/cmdline").read_text() for each in _marked(mark)]
        time.sleep(0.1)


@pytest.mark.slow
def test_a_cluster_is_used_and_only_left(
    tiny: Any, tmp_path: Path, contents: Callable[[Path], dict[str, bytes]]
) -> None:
    address = f"127.0.0.1:{free_port()}"
    environ = os.environ | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": uuid.uuid4().hex, "RAY_ADDRESS": address}
    start = [str(Path(sys.executable).with_name("ray")), "start", "--head", "--node-ip-address=127.0.0.1"]
    start += ["--port", address.partition(":")[2]]
    start += ["--num-cpus=2", "--include-dashboard=false", "--disable-usage-stats", "--block"]
    start += ["--min-worker-port=0", "--max-worker-port=0"]  # any: the default range may hold the cluster's own port
    head = subprocess.Popen(start, env=environ, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 300
        while not _is_open(address):
            assert time.monotonic() < deadline
            assert head.poll() is None
            time.sleep(0.1)
        command = [sys.executable, "-W", "error", "-m", "refseg", "build-shards", "refcoco/unc", *_RAY]
        command += ["--annotations", str(tiny.write()), "--out", str(tmp_path / "out")]
        run = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=300)
        assert run.returncode == 0, run.stderr
        assert "starting on this machine" not in run.stderr
        assert _is_open(address)
        assert head.poll() is None
    finally:
        head.terminate()
        head.wait(timeout=60)
    build_dataset(tiny.options(tmp_path / "local", images_per_shard=1))
    assert contents(tmp_path / "out") == contents(tmp_path / "local")


def _is_open(address: str) -> bool:
    host, _, port = address.partition(":")
    try:
        socket.create_connection((host, int(port)), 1).close()
    except OSError:
        return False
    return True


def test_errors_of_ours_travel_between_processes() -> None:
    """Ray and process pools pickle them."""
    import pickle

    for error in (StorageError(5, "failed", "s3://bucket"), *(each("text") for each in RefsegError.__subclasses__())):
        if not isinstance(error, OSError) or error.filename:
            again = pickle.loads(pickle.dumps(error))
            assert (type(again), str(again)) == (type(error), str(error))
