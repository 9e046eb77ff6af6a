"""Stages as jobs of a scheduler: in any order, twice at once, preempted, and with the bundled script for Slurm."""

import errno
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipelines.build import build_dataset
from refseg.cli import main
from refseg.dataset.descriptor import load_descriptor
from refseg.errors import BuildError, DatasetError, UsageError
from tests.warm_python import python

Contents = Callable[[Path], dict[str, bytes]]
SCRIPT = Path(__file__).parents[2] / "scripts" / "build_array.sbatch"

# A replacement for Slurm's sbatch: it records its arguments and runs the job at once, an array in reverse order.
SBATCH = """\
#!{python}
import os, subprocess, sys
arguments = sys.argv[1:]
with open({log!r}, "a") as log:
    print(" ".join(arguments), file=log)
options = {{}}
while arguments[0].startswith("--"):
    name, _, value = arguments.pop(0).partition("=")
    options[name] = value
environ = {{**os.environ, **dict([options["--export"].removeprefix("ALL,").split("=")]), "SLURM_CPUS_PER_TASK": "1"}}
first, _, last = options.get("--array", "0-0").partition("-")
for number in reversed(range(int(first), int(last) + 1)):
    if "--array" in options:
        environ |= {{"SLURM_ARRAY_TASK_ID": str(number), "SLURM_ARRAY_TASK_COUNT": str(int(last) + 1),
                     "SLURM_ARRAY_TASK_MIN": first, "SLURM_ARRAY_TASK_MAX": last}}
    subprocess.run(["bash", *arguments], env=environ, check=True, stdout=sys.stderr)
print(f"{{len(open({log!r}).readlines()) + 70}};cluster")
"""


@pytest.fixture
def expected(tiny: Any, tmp_path: Path, contents: Contents) -> dict[str, bytes]:
    """The files of an undisturbed build with one image to a shard."""
    build_dataset(tiny.options(tmp_path / "whole", images_per_shard=1))
    return contents(tmp_path / "whole")


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put an `sbatch` and this Python's `refseg` on the path; return the file with its arguments."""
    folder, log = tmp_path / "bin", tmp_path / "sbatch.log"
    folder.mkdir()
    sbatch, refseg = folder / "sbatch", folder / "refseg"
    sbatch.write_text(SBATCH.format(python=sys.executable, log=str(log)))
    refseg.write_text(f'#!/bin/sh\nexec {python()} -m refseg "$@"\n')
    for script in (sbatch, refseg):
        script.chmod(script.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return log


def command(tiny: Any, out: Path) -> list[str]:
    return [
        "refcoco/unc", "--annotations", str(tiny.write()), "--out", str(out), "--images-per-shard", "1",
        "--accept-counts",
    ]  # fmt: skip


@pytest.mark.slow
def test_the_script_for_slurm_submits_three_jobs_and_builds_the_same_bytes(
    tiny: Any, tmp_path: Path, slurm: Path, contents: Contents, expected: dict[str, bytes]
) -> None:
    out = tmp_path / "out"
    run = subprocess.run([SCRIPT, "3", *command(tiny, out)], capture_output=True, text=True)

    assert run.returncode == 0, run.stderr
    assert run.stdout == "submitted: plan 71, shards 72 (array of 3), finalize 73\n"
    plan, shards, finalize = slurm.read_text().splitlines()
    assert "--export=ALL,REFSEG_STAGE=plan" in plan
    assert "--dependency" not in plan
    assert "--export=ALL,REFSEG_STAGE=shards --dependency=afterok:71 --array=0-2" in shards
    assert "--export=ALL,REFSEG_STAGE=finalize --dependency=afterok:72" in finalize
    # 5 shards in 3 parts, the last part first.
    assert run.stderr.index("built 1 of 5") < run.stderr.index("built 2 of 5")
    assert contents(out) == expected


def test_the_script_for_slurm_says_how_it_is_called(slurm: Path) -> None:
    for arguments in (["refcoco/unc", "--out", "out"], ["0", "refcoco/unc"], []):
        run = subprocess.run([SCRIPT, *arguments], capture_output=True, text=True)
        assert run.returncode == 2
        assert "build_array.sbatch NUM_TASKS DATASET --annotations DIR" in run.stderr
    assert not slurm.exists()


@pytest.mark.parametrize(
    ("array", "built"),
    [
        ([(0, 0, 1, 2), (1, 0, 1, 2)], [3, 2]),
        ([(9, 5, 9, 3), (5, 5, 9, 3), (7, 5, 9, 3)], [1, 2, 2]),
        ([(4, 4, 4, 1)], [5]),
    ],
    ids=["0-1", "5-9:2", "4"],
)
def test_parts_are_those_of_slurms_array(
    tiny: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    array: list[tuple[int, ...]],
    built: list[int],
) -> None:
    build = ["build-shards", *command(tiny, tmp_path / "out"), "--workers", "1", "--json"]
    assert main([*build, "--stage", "plan"]) == 0
    capsys.readouterr()
    for numbers, num_built in zip(array, built, strict=True):
        for name, number in zip(("ID", "MIN", "MAX", "COUNT"), numbers, strict=True):
            monkeypatch.setenv(f"SLURM_ARRAY_TASK_{name}", str(number))
        assert main([*build, "--stage", "shards"]) == 0
        assert json.loads(capsys.readouterr().out)["built"] == num_built
    assert main([*build, "--stage", "finalize"]) == 0


def test_an_array_with_gaps_is_refused(
    tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, number in (("ID", 2), ("MIN", 1), ("MAX", 9), ("COUNT", 3)):  # --array=1,2,9
        monkeypatch.setenv(f"SLURM_ARRAY_TASK_{name}", str(number))
    assert main(["build-shards", *command(tiny, tmp_path / "out"), "--stage", "shards"]) == 2
    assert "Slurm's array has gaps (task 2, 3 tasks from 1 to 9)" in capsys.readouterr().err


def test_stages_need_those_before(tiny: Any, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for stage in ("shards", "finalize"):
        with pytest.raises(BuildError, match="found no plan; run the same command with --stage plan first"):
            build_dataset(tiny.options(out, stage=stage))
    assert not out.exists()
    build_dataset(tiny.options(out, stage="plan"))
    build_dataset(tiny.options(out, stage="shards", task_index=1, task_count=2))
    with pytest.raises(
        BuildError, match=r"2 of 3 shards are not built \(val-00000, testA-00000\); run their tasks again"
    ):
        build_dataset(tiny.options(out, stage="finalize"))
    with pytest.raises(DatasetError):
        load_descriptor(out)


def test_stages_of_another_dataset_are_refused(tiny: Any, tmp_path: Path) -> None:
    build_dataset(tiny.options(tmp_path / "out", stage="plan"))
    with pytest.raises(UsageError, match=r"found refcoco/unc, expected refcoco/google"):
        build_dataset(tiny.options(tmp_path / "out", stage="shards", dataset="refcoco/google"))
    build_dataset(tiny.options(tmp_path / "out"))
    with pytest.raises(UsageError, match=r"found refcoco/unc, expected refcoco/google"):
        build_dataset(tiny.options(tmp_path / "out", stage="finalize", dataset="refcoco/google"))


def test_a_machine_with_other_releases_is_refused(tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build_dataset(tiny.options(tmp_path / "out", stage="plan"))
    monkeypatch.setattr(
        "pipelines.build_shard.installed_tools", lambda: {"refseg_version": "0.1.0", "pyarrow": "0.0.1"}
    )
    with pytest.raises(BuildError, match=r"differ from those of the plan \(pyarrow: .*, now 0\.0\.1\)"):
        build_dataset(tiny.options(tmp_path / "out", stage="shards"))


def test_tasks_may_run_in_another_working_folder(
    tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, contents: Contents, expected: dict[str, bytes]
) -> None:
    monkeypatch.chdir(tmp_path)
    options = tiny.options(Path("out"), stage="plan", images_per_shard=1)
    build_dataset(replace(options, annotations=Path("data")))
    monkeypatch.chdir("/")
    build_dataset(tiny.options(tmp_path / "out", images_per_shard=1, stage="shards"))
    build_dataset(tiny.options(tmp_path / "out", images_per_shard=1, stage="finalize"))
    assert contents(tmp_path / "out") == expected


def test_a_kill_after_the_descriptor_leaves_nothing_that_finalize_does_not_remove(
    tiny: Any, tmp_path: Path, contents: Contents
) -> None:
    out = tmp_path / "out"
    build_dataset(tiny.options(out, stage="plan"))
    build_dataset(tiny.options(out, stage="shards"))
    shutil.copytree(out / ".build", tmp_path / "kept")
    build_dataset(tiny.options(out, stage="finalize"))
    finished = contents(out)

    for stage in ("finalize", "plan", "all"):
        shutil.copytree(tmp_path / "kept", out / ".build")
        assert build_dataset(tiny.options(out, stage=stage)).was_complete
        assert contents(out) == finished


def test_another_build_that_ended_meanwhile_is_not_built_over(
    tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, contents: Contents
) -> None:
    """Another process plans or finishes a build between the first check of a folder and its lock."""
    from pipelines import build

    out = tmp_path / "out"
    look = build._refuse_foreign
    for stage in ("plan", "all"):

        def meanwhile(folder: Any, stage: str = stage) -> None:
            look(folder)
            monkeypatch.setattr(build, "_refuse_foreign", look)
            build_dataset(tiny.options(out, stage=stage))

        monkeypatch.setattr(build, "_refuse_foreign", meanwhile)
        with pytest.raises(BuildError, match="another build has just changed this folder; run the same command again"):
            build_dataset(tiny.options(out, seed=1))
        assert build_dataset(tiny.options(out)).descriptor is not None
        shutil.rmtree(out)


def test_a_file_system_without_locks_is_named_and_used(
    tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def flock(handle: int, kind: int) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr("fcntl.flock", flock)
    assert build_dataset(tiny.options(tmp_path / "out")).descriptor is not None
    assert "this file system has no locks; do not run builds with different inputs in it at once" in caplog.text


def start_task(tiny: Any, out: Path, *, workers: int) -> subprocess.Popen[str]:
    """Start stage `shards` in a process; with workers it is a direct child of this process."""
    executable = sys.executable if workers > 1 else python()
    build = [executable, "-m", "refseg", "build-shards", *command(tiny, out), "--stage", "shards"]
    build += ["--workers", str(workers)]
    return subprocess.Popen(build, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


class Obstacle:
    """An image whose readers wait indefinitely; `restore` puts the file back, but waiting readers keep waiting."""

    def __init__(self, image: Path) -> None:
        self.image, self.kept, self.pipe = image, image.with_suffix(".kept"), image.with_suffix(".pipe")
        self.image.rename(self.kept)
        os.mkfifo(self.image)
        self.handle = -1

    def wait(self) -> None:
        """Wait until a process reads it."""
        deadline = time.monotonic() + 300
        while self.handle < 0:
            assert time.monotonic() < deadline
            with suppress(OSError):  # nobody reads
                self.handle = os.open(self.image, os.O_WRONLY | os.O_NONBLOCK)
            time.sleep(0.01)

    def restore(self) -> None:
        self.image.rename(self.pipe)
        self.kept.rename(self.image)


@pytest.fixture
def obstacle(tiny: Any) -> Iterator[Callable[[int], Obstacle]]:
    made: list[Obstacle] = []

    def make(image_id: int) -> Obstacle:
        made.append(Obstacle(tiny.image_path(image_id)))
        return made[-1]

    yield make
    for each in made:
        if each.handle >= 0:
            os.close(each.handle)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_a_preempted_task_ends_at_once_and_goes_on_later(
    tiny: Any,
    tmp_path: Path,
    contents: Contents,
    expected: dict[str, bytes],
    obstacle: Callable[[int], Obstacle],
    workers: int,
) -> None:
    """Slurm sends SIGTERM and, some seconds later, SIGKILL; a task in the middle of a shard does not finish it."""
    out = tmp_path / "out"
    build_dataset(tiny.options(out, images_per_shard=1, stage="plan"))
    image = obstacle(12)
    task = start_task(tiny, out, workers=workers)
    image.wait()
    receipts = out / ".build" / "receipts"
    while workers == 2 and len(list(receipts.glob("*.json"))) < 4:  # the other worker has done the rest
        time.sleep(0.01)
    workers_alive = _children(task.pid)
    assert len(workers_alive) == (2 if workers == 2 else 0)
    task.terminate()
    error = task.communicate(timeout=120)[1]  # the image that it waits for never comes

    assert task.returncode == 128 + signal.SIGTERM, error
    assert "interrupted; run the same command again to resume" in error
    assert "Traceback" not in error
    assert not any(Path(f"/proc/{process}").exists() for process in workers_alive)
    assert not list((out / ".build").glob("tmp-*")) or workers == 2
    with pytest.raises(BuildError, match=r"shards are not built"):
        build_dataset(tiny.options(out, images_per_shard=1, stage="finalize"))

    image.restore()
    tars = [out / f"{path.stem}.tar" for path in receipts.glob("*.json")]
    before = {path.name: path.stat().st_mtime_ns for path in tars}
    task = start_task(tiny, out, workers=workers)
    assert f"{len(before)} of 5 shards were built before" in task.communicate(timeout=300)[1]
    assert task.returncode == 0
    assert before.items() <= {path.name: path.stat().st_mtime_ns for path in out.glob("*.tar")}.items()
    build_dataset(tiny.options(out, images_per_shard=1, stage="finalize"))
    assert contents(out) == expected


def test_one_part_may_be_built_twice_at_once_but_not_finalized_meanwhile(
    tiny: Any,
    tmp_path: Path,
    contents: Contents,
    expected: dict[str, bytes],
    obstacle: Callable[[int], Obstacle],
) -> None:
    out = tmp_path / "out"
    build_dataset(tiny.options(out, images_per_shard=1, stage="plan"))
    image = obstacle(8)
    first = start_task(tiny, out, workers=1)
    image.wait()
    image.restore()
    second = start_task(tiny, out, workers=1)
    assert "Traceback" not in second.communicate(timeout=300)[1]
    assert second.returncode == 0

    with pytest.raises(BuildError, match="another build uses this folder; wait for it"):
        build_dataset(tiny.options(out, images_per_shard=1, stage="finalize"))
    first.terminate()
    first.communicate(timeout=120)
    build_dataset(tiny.options(out, images_per_shard=1, stage="finalize"))
    assert contents(out) == expected


def test_twins_write_the_same_shards_at_once(
    tiny: Any, tmp_path: Path, contents: Contents, expected: dict[str, bytes]
) -> None:
    out = tmp_path / "out"
    build_dataset(tiny.options(out, images_per_shard=1, stage="plan"))
    twins = [start_task(tiny, out, workers=1) for _ in range(2)]
    for twin in twins:
        assert "Traceback" not in twin.communicate(timeout=300)[1]
        assert twin.returncode == 0
    build_dataset(tiny.options(out, images_per_shard=1, stage="finalize"))
    assert contents(out) == expected


def _children(process: int) -> list[int]:
    """Return the workers of a process."""
    children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    return [int(child) for child in children if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()]


@pytest.mark.parametrize("stage", ["shards", "finalize"])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 4}, "seed: 0, now 4"),
        ({"mask_rule": "legacy"}, "mask_rule: union, now legacy"),
        ({"splits": ("val",)}, "splits: val testA, now val"),
        ({"images_per_shard": 1}, "images_per_shard: 2, now 1"),
        ({"store": "letterbox:8"}, "store: none, now letterbox:8"),
    ],
)
def test_a_stage_with_other_options_than_the_plans_is_refused_by_name(
    tiny: Any, tmp_path: Path, stage: str, changes: dict[str, Any], message: str
) -> None:
    build_dataset(tiny.options(tmp_path / "out", stage="plan"))

    with pytest.raises(BuildError, match=message):
        build_dataset(tiny.options(tmp_path / "out", stage=stage, **changes))


def test_a_slurm_variable_that_is_no_number_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name, value in {"ID": "x", "COUNT": "3"}.items():
        monkeypatch.setenv(f"SLURM_ARRAY_TASK_{name}", value)
    command = ["build-shards", "refcoco/unc", "--annotations", "a", "--out", str(tmp_path), "--stage", "shards"]

    assert main(command) == 2
