"""Kills builds at seeded points and resumes each of them.

Usage: python scripts/kill_build.py --points 200 --seed 0

After each kill, the unfinished build must not open as a dataset. When the same build is run again, it must write the
same bytes as an undisturbed build. Otherwise the exit code is 1, and the options that repeat only this point are
printed. This process forks, so it starts no threads.
"""

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec
from killing import die, hook_changes, in_child, nth, wait_for

import pipelines.build
from pipelines.build import build_dataset
from pipelines.build_folder import BUILD_FOLDER, PLAN_NAME, RECEIPTS_FOLDER
from pipelines.build_plan import load_plan
from pipelines.build_shard import BuildTask, Receipt, build_shard
from pipelines.options import BuildOptions
from pipelines.spill import Spill
from pipelines.tars import TarWriter
from pipelines.toy import draw_toy
from pipelines.verify import verify_dataset
from refseg.dataset.descriptor import DESCRIPTOR_NAME, load_descriptor
from refseg.errors import DatasetError, WorkerError
from refseg.storage import LocalFolder, RemoteFolder, is_remote, open_folder

KINDS = {
    "step": (40, "1 worker, killed at the n-th change of the disk"),
    "moment": (15, "1 worker, killed after a random time"),
    "worker": (10, "2 workers, one of them killed at its n-th change of the disk"),
    "parent": (10, "2 workers, their parent killed when the k-th shard is finished"),
    "upload": (15, "to object storage, killed before, during or after the n-th request to write or remove"),
    "upload-moment": (10, "to object storage, killed after a random time"),
}
"""The kinds of points, each with the share of all points in percent and a description."""
PHASES = ("planning", "shards", "finalize", "finished")
_SECONDS_AT_MOST = 120.0
_STEPS_OF_A_WORKER = 40
_STEP_VARIABLE = "REFSEG_KILL_STEP"
_WORKER_DIED = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """The source and folders that all points share, with measurements of an undisturbed build.

    Attributes:
        source: Folder of annotations and images.
        base: Folder for builds on the disk.
        bucket: URL for builds in object storage.
        expected: Content of every file of the undisturbed build, by name.
        digest: Digest of the undisturbed dataset.
        num_steps: Number of file system changes in a build with one worker.
        num_requests: Number of write and remove requests in a build to object storage.
        seconds: Duration of a build with one worker, to `disk` and to `bucket`.
    """

    source: Path
    base: Path
    bucket: str
    expected: dict[str, bytes]
    digest: str
    num_steps: int
    num_requests: int
    seconds: dict[str, float]


def build(source: Path, out: str, *, workers: int = 1) -> None:
    """Build the dataset. One picture is damaged, so that the build also writes rejects."""
    given: dict[str, Any] = {"images_per_shard": 2, "on_bad_sample": "skip", "accept_counts": True}
    build_dataset(BuildOptions(dataset="toy/refseg", annotations=source, out=out, workers=workers, **given))


def hook_disk(on_step: Callable[[], bool]) -> None:
    """Call `on_step` before each file system change of a build. If it returns True, the process is killed there."""
    hook_changes(
        (
            (os, ("fsync", "mkdir", "rmdir", "unlink")),
            (Path, ("replace", "write_bytes")),
            (TarWriter, ("add", "finish")),
            (Spill, ("flush",)),
        ),
        on_step,
    )


def hook_requests(on_request: Callable[[], str]) -> None:
    """Call `on_request` before each write or remove request. It decides when the process is killed.

    Args:
        on_request: Function that returns `before`, `after`, `during` followed by seconds, or an empty text.
    """

    def hook(name: str) -> None:
        before = getattr(RemoteFolder, name)

        def hooked(*args: Any) -> None:
            when = on_request()
            if when == "before":
                die()
            if when.startswith("during"):
                threading.Timer(float(when.removeprefix("during")), die).start()
            before(*args)
            if when:
                die()

        setattr(RemoteFolder, name, hooked)

    hook("publish")
    hook("remove")


def count_steps(hook: Callable[[Callable[[], Any]], None], no: Any, work: Callable[[], None], base: Path) -> int:
    """Count the calls of a hook in an undisturbed run of `work`."""
    note = base / "count"

    def count() -> None:
        calls = 0

        def step() -> Any:
            nonlocal calls
            calls += 1
            return no

        hook(step)
        work()
        with note.open("w") as file:
            file.write(str(calls))

    if in_child(count) != 0:
        raise SystemExit("the undisturbed build failed")
    return int(note.read_text())


def build_shard_hooked(task: BuildTask) -> Receipt:
    """Run `build_shard` in a worker that is killed at the step that the environment names."""
    number = os.environ.pop(_STEP_VARIABLE, "")
    if number:
        hook_disk(nth(int(number), True, False))
    return build_shard(task)


def kill_step(bench: Bench, out: str, rng: random.Random) -> bool:
    """Kill a build at a file system change.

    Like all `kill_` functions, it returns False if the build had ended before.
    """
    number = rng.randint(1, bench.num_steps)

    def work() -> None:
        hook_disk(nth(number, True, False))
        build(bench.source, out)

    return in_child(work) == -signal.SIGKILL


def kill_moment(bench: Bench, out: str, rng: random.Random) -> bool:
    """Kill a build after a random time."""
    child = in_child(lambda: build(bench.source, out), wait=False)
    time.sleep(rng.uniform(0, bench.seconds["bucket" if is_remote(out) else "disk"]))
    os.kill(child, signal.SIGKILL)
    return wait_for(child) == -signal.SIGKILL


def kill_worker(bench: Bench, out: str, rng: random.Random) -> bool:
    """Kill a worker at a file system change. The parent then ends with an error and keeps the finished shards."""
    number = rng.randint(1, _STEPS_OF_A_WORKER)

    def work() -> int:
        os.environ[_STEP_VARIABLE] = str(number)
        pipelines.build.build_shard = build_shard_hooked  # type: ignore[attr-defined]
        try:
            build(bench.source, out, workers=2)
        except WorkerError:
            return _WORKER_DIED
        return 0

    return in_child(work) == _WORKER_DIED


def kill_parent(bench: Bench, out: str, rng: random.Random) -> bool:
    """Kill the parent of the workers when some shards are finished, and wait until the workers have ended."""
    num_receipts = rng.randint(0, 6)

    def work() -> None:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())  # multiprocessing would warn of leaked resources
        build(bench.source, out, workers=2)

    child = in_child(work, wait=False)
    receipts, end = Path(out, RECEIPTS_FOLDER), time.monotonic() + _SECONDS_AT_MOST
    while time.monotonic() < end and not Path(out, DESCRIPTOR_NAME).exists():
        with suppress(FileNotFoundError):
            if len(list(receipts.iterdir())) >= num_receipts:
                break
        time.sleep(0.001)
    time.sleep(rng.uniform(0, 0.02 if num_receipts else 2))
    workers = children_of(child)
    os.kill(child, signal.SIGKILL)
    was_killed = wait_for(child) == -signal.SIGKILL
    end = time.monotonic() + _SECONDS_AT_MOST
    while any(is_alive(worker) for worker in workers):
        if time.monotonic() > end:
            raise SystemExit(f"{out}: a worker outlived its parent")
        time.sleep(0.01)
    return was_killed


def kill_upload(bench: Bench, out: str, rng: random.Random) -> bool:
    """Kill a build at a request to object storage."""
    number, when = rng.randint(1, bench.num_requests), rng.choice(("before", f"during{rng.uniform(0, 0.01)}", "after"))

    def work() -> None:
        hook_requests(nth(number, when, ""))
        build(bench.source, out)

    return in_child(work) == -signal.SIGKILL


KILLS = {
    "step": kill_step, "moment": kill_moment, "worker": kill_worker, "parent": kill_parent, "upload": kill_upload,
    "upload-moment": kill_moment,
}  # fmt: skip


def children_of(process: int) -> list[int]:
    """Return the ids of the children of a process."""
    try:
        return [int(child) for child in Path(f"/proc/{process}/task/{process}/children").read_text().split()]
    except FileNotFoundError:
        return []


def is_alive(process: int) -> bool:
    """Return True if a process is running, and False if it has ended or is a zombie."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def contents(out: str) -> dict[str, bytes]:
    """Return the content of every file below a folder, by name."""
    files, root = fsspec.core.url_to_fs(out, use_listings_cache=False)
    return {name.removeprefix(f"{root}/"): files.cat_file(name) for name in files.find(root)}


def examine(bench: Bench, out: str) -> int:
    """Check the state after a kill, build again, and compare the result with the undisturbed build.

    Returns:
        The exit code: 10 plus the index in `PHASES` of the phase in which the build was killed.

    Raises:
        AssertionError: If a check fails.
    """
    folder = open_folder(out)
    if folder.size(DESCRIPTOR_NAME) is None:
        try:
            load_descriptor(out)
        except DatasetError:
            pass
        else:
            raise AssertionError("an unfinished build opens as a dataset")
        plan = load_plan(folder) if folder.size(PLAN_NAME) is not None else None
        num_receipts = len(open_folder(folder.join(RECEIPTS_FOLDER)).list())
        phase = 0 if plan is None else 2 if num_receipts == len(plan.shards) else 1
    else:
        phase = 3
        assert load_descriptor(out).digest == bench.digest, "the dataset has another digest"
        faults = verify_dataset(out, workers=1)
        assert not faults, f"the published dataset is damaged: {faults[0]}"
    build(bench.source, out)
    assert load_descriptor(out).digest == bench.digest, "the resumed build has another digest"
    found = contents(out)
    differing = sorted(name for name in {**found, **bench.expected} if found.get(name) != bench.expected.get(name))
    assert not differing, f"the resumed build differs in {', '.join(differing)}"
    assert not isinstance(folder, LocalFolder) or not (folder.path / BUILD_FOLDER).exists(), "the plan still exists"
    return 10 + phase


def start_server(base: Path) -> int:
    """Start an S3 server on loopback, configure fsspec, make the bucket, and return the server's process id."""
    note = base / "port"

    def serve() -> None:
        import logging

        from moto.server import ThreadedMotoServer

        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        server.start()
        (base / "port.part").write_text(str(server.get_host_and_port()[1]))
        (base / "port.part").rename(note)
        while os.getppid() == parent:
            time.sleep(0.5)

    parent = os.getpid()
    server = in_child(serve, wait=False)
    while not note.exists():
        time.sleep(0.02)
    options = {"endpoint_url": f"http://127.0.0.1:{note.read_text()}", "key": "k", "secret": "s"}
    os.environ["FSSPEC_S3"] = json.dumps(options)
    fsspec.config.conf["s3"] = options
    if in_child(lambda: fsspec.filesystem("s3").mkdir("kills")) != 0:
        raise SystemExit("the S3 server does not answer")
    return server


def set_up(base: Path, *, with_bucket: bool) -> Bench:
    """Draw the source, build it undisturbed, and count the file system changes and the requests."""
    source = base / "source"
    draw_toy(source, num_images=12, seed=0, image_size=(96, 96))
    spoilt = sorted(source.rglob("*.jpg"))[0]
    spoilt.write_bytes(spoilt.read_bytes()[:-200])
    whole, bucket = str(base / "whole"), "s3://kills/out"
    num_steps = count_steps(hook_disk, False, lambda: build(source, whole), base)
    begin = time.monotonic()
    in_child(lambda: build(source, str(base / "timed")))
    seconds = {"disk": time.monotonic() - begin, "bucket": 0.0}
    num_requests = 0
    if with_bucket:
        begin = time.monotonic()
        num_requests = count_steps(hook_requests, "", lambda: build(source, f"{bucket}-counted"), base)
        seconds["bucket"] = time.monotonic() - begin
    return Bench(
        source=source, base=base, bucket=bucket, expected=contents(whole), digest=load_descriptor(whole).digest,
        num_steps=num_steps, num_requests=num_requests, seconds=seconds,
    )  # fmt: skip


def try_point(bench: Bench, kind: str, seed: int, number: int) -> str | None:
    """Kill one build and examine it. Return the phase in which it was killed; None if the build had ended before.

    Raises:
        SystemExit: If a check fails.
    """
    rng = random.Random(f"{seed} {kind} {number}")
    name = f"{kind}-{number}"
    out = f"{bench.bucket}-{name}" if kind.startswith("upload") else str(bench.base / name)
    was_killed = KILLS[kind](bench, out, rng)
    code = in_child(lambda: examine(bench, out))
    if code < 10:
        raise SystemExit(
            f"failed: {kind} {number} of seed {seed}; repeat only this point by: --only {kind} --first {number}"
        )
    shutil.rmtree(out, ignore_errors=True)
    return PHASES[code - 10] if was_killed else None


def main() -> int:
    """Run all points and print a line for each kind."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, default=200, help="total number of kills (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the points (default: %(default)s)")
    parser.add_argument("--only", nargs="+", choices=KINDS, default=tuple(KINDS), help="kinds of points to run")
    parser.add_argument("--first", type=int, default=0, metavar="N", help="start with the N-th point of each kind")
    args = parser.parse_args()

    shares = {kind: KINDS[kind][0] for kind in args.only}
    wanted = {kind: args.points * share // sum(shares.values()) for kind, share in shares.items()}
    wanted[args.only[0]] += args.points - sum(wanted.values())
    server = None
    begin = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="kill-build-") as folder:
        base = Path(folder)
        try:
            with_bucket = any(kind.startswith("upload") for kind in wanted)
            if with_bucket:
                server = start_server(base)
            bench = set_up(base, with_bucket=with_bucket)
            for kind, num_points in wanted.items():
                phases: Counter[str] = Counter()
                missed, number = 0, args.first
                while phases.total() < num_points:
                    phase = try_point(bench, kind, args.seed, number)
                    phases.update([phase] if phase else [])
                    missed += phase is None
                    number += 1
                where = ", ".join(f"{phases[phase]} {phase}" for phase in PHASES)
                print(f"{kind}: {num_points} kills ({KINDS[kind][1]}): {where}; {missed} had ended before", flush=True)
        finally:
            if server is not None:
                os.kill(server, signal.SIGKILL)
                wait_for(server)
    total = sum(wanted.values())
    print(
        f"{total} kills, seed {args.seed}, {time.monotonic() - begin:.0f} s: no unfinished build opened as a dataset, "
        f"and every resumed build ended with digest {bench.digest:.12} and the same {len(bench.expected)} files"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
