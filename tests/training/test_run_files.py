"""The files of a run besides checkpoints are read back, and damage in them is reported without a traceback."""

import errno
import json
from pathlib import Path

import pytest

from refseg.config import Recipe
from refseg.errors import TrainingError, UsageError
from refseg.training.run_files import MetricsLog, read_facts, read_metrics, write_recipe
from refseg.training.run_folder import lock_run, refuse_other_contents

LINES = [{"kind": "train", "step": step, "loss": 0.5} for step in (1, 2, 3)]


def write_lines(out: Path, *texts: str, end: str = "\n") -> Path:
    path = out / "metrics.jsonl"
    path.write_text("\n".join(texts) + end)
    return path


@pytest.mark.parametrize(
    "damaged",
    ["", "{", "[]", "[" * 100_000, '{"kind": "train"}', '{"kind": "train", "step": "2"}', '{"kind": 1, "step": 2}',
     '{"kind": "train", "step": 2, "loss": "x"}', '{"kind": "train", "step": -1}', '{"kind": "train", "step": true}'],
)  # fmt: skip
def test_a_damaged_line_of_the_metrics_costs_that_line_alone_and_is_named(
    tmp_path: Path, damaged: str, caplog: pytest.LogCaptureFixture
) -> None:
    first, _, third = map(json.dumps, LINES)
    path = write_lines(tmp_path, first, damaged, third)
    before = path.read_bytes()

    assert read_metrics(tmp_path) == [LINES[0], LINES[2]]
    assert f"{path}: line 2 is damaged and left out" in caplog.text

    MetricsLog(tmp_path, step=3).close()
    assert path.read_text() == f"{first}\n{third}\n"
    assert (tmp_path / "metrics.damaged.jsonl").read_bytes() == before
    assert "line 2 is damaged and dropped; a copy of the file is in metrics.damaged.jsonl" in caplog.text


def test_a_last_line_that_a_crash_has_cut_is_no_damage(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_lines(tmp_path, json.dumps(LINES[0]), json.dumps(LINES[1])[:20], end="")

    assert read_metrics(tmp_path) == LINES[:1]
    assert caplog.text == ""


def test_a_full_disk_is_named_by_the_file_that_it_refuses(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    write_lines(tmp_path, json.dumps(LINES[0]))
    monkeypatch.setattr(Path, "write_text", full)

    with pytest.raises(TrainingError, match=r"recipe\.json: cannot be written \(No space left on device\); free disk"):
        write_recipe(tmp_path, recipe)
    with pytest.raises(TrainingError, match=r"metrics\.jsonl: cannot be written \(No space left on device\)"):
        MetricsLog(tmp_path, step=1)
    assert read_metrics(tmp_path) == LINES[:1]


def test_a_read_only_file_system_is_not_called_full(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, *_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system", str(path))

    for name in ("write_text", "unlink"):
        monkeypatch.setattr(Path, name, refuse)
    message = r"recipe\.json: cannot be written \(Read-only file system\); check its permissions"
    with pytest.raises(TrainingError, match=message):
        write_recipe(tmp_path, recipe)


@pytest.mark.parametrize("text", ["{", "[]", "[" * 100_000, '{"model": 1}', '{"model": []}'])
def test_facts_that_cannot_be_read_are_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "recipe.json").write_text(text)
    with pytest.raises(UsageError, match=r"recipe\.json: .*restore"):
        read_facts(tmp_path / "recipe.json", sections=None)

    (tmp_path / "recipe.json").unlink()
    assert read_facts(tmp_path / "recipe.json", sections=None) == {}


@pytest.mark.parametrize(
    "names",
    [
        ["photo.jpg"],
        ["notes.txt", ".lock"],
        ["checkpoints/last.ckpt"],
        ["recipe.json"],  # a lock file of another program, empty here
        ["step-00000012/state.json"],
        ["metrics.jsonl"],
        ["environment.json"],
    ],
)
def test_a_folder_that_holds_something_else_than_a_run_is_refused(tmp_path: Path, names: list[str]) -> None:
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()

    with pytest.raises(UsageError, match=r"--out .*: holds .*, but not a run of refseg; expected a new or empty"):
        refuse_other_contents(tmp_path)


def test_the_folder_of_a_run_is_taken_whatever_else_lies_in_it(tmp_path: Path) -> None:
    refuse_other_contents(tmp_path / "new")
    refuse_other_contents(tmp_path)  # empty
    with lock_run(tmp_path):
        refuse_other_contents(tmp_path)  # killed before the first step
    (tmp_path / "environment.json").write_text(json.dumps({"refseg": "0.1.0", "packages": {}, "dataset_digest": ""}))
    refuse_other_contents(tmp_path)  # killed before it has written its recipe
    (tmp_path / "notes.txt").touch()
    (tmp_path / "recipe.json").write_text(json.dumps({"model": {}, "data": {}, "train": {}, "eval": {}}))
    refuse_other_contents(tmp_path)
    (tmp_path / "recipe.json").unlink()
    (tmp_path / "checkpoints" / "step-00000004").mkdir(parents=True)
    refuse_other_contents(tmp_path)


def test_a_file_in_the_place_of_a_run_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run").touch()

    with pytest.raises(UsageError, match=r"--out .*run: is a file, expected a folder for the run"):
        refuse_other_contents(tmp_path / "run")


def test_a_file_system_without_locks_is_reported_and_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr("fcntl.flock", refuse)

    with lock_run(tmp_path):
        pass
    assert "this file system has no locks; do not start a second run in this folder" in caplog.text


@pytest.mark.parametrize("was_there", [False, True])
def test_a_run_that_is_refused_at_once_leaves_no_new_folder(tmp_path: Path, was_there: bool) -> None:
    out = tmp_path / "run"
    if was_there:
        out.mkdir()
    with pytest.raises(UsageError), lock_run(out):
        raise UsageError("no such dataset")

    assert out.exists() == was_there


def test_a_run_that_fails_after_it_has_written_keeps_what_it_wrote(tmp_path: Path) -> None:
    def fail_later() -> None:
        with lock_run(tmp_path / "run"):
            (tmp_path / "run" / "metrics.jsonl").touch()
            raise UsageError("the loss is not a number")

    with pytest.raises(UsageError):
        fail_later()

    assert (tmp_path / "run" / "metrics.jsonl").exists()
