"""`scripts/compare_loss`: two commits, each by its own code, and no worktree left behind."""

import importlib.util
import os
import shutil
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
_spec = importlib.util.spec_from_file_location("compare_loss", ROOT / "scripts" / "compare_loss.py")
assert _spec is not None
assert _spec.loader is not None
compare_loss = importlib.util.module_from_spec(_spec)
sys.modules["compare_loss"] = compare_loss  # its dataclass looks itself up there
_spec.loader.exec_module(compare_loss)

IDENTITY = ["-c", "user.name=t", "-c", "user.email=t@example.org"]


def git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(["git", *IDENTITY, *arguments], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def change(repository: Path, path: str, old: str, new: str) -> None:
    """A commit with one change."""
    text = (repository / path).read_text(encoding="utf-8")
    assert old in text
    (repository / path).write_text(text.replace(old, new), encoding="utf-8")
    git(repository, "commit", "--quiet", "--all", "-m", "a change")


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A repository of its own with this tree's code, as one commit."""
    folder = tmp_path / "repository"
    folder.mkdir()
    for name in ("refseg", "pipelines", "manifests"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("scripts/compare_loss", "scripts/compare_loss.py", "tests/golden/toy_loss.toml"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, folder / name)
    git(folder, "init", "--quiet")
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "-m", "as it is")
    return folder


def compare(repository: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    environ = {**os.environ, "PYTHON": sys.executable}
    command = [str(repository / "scripts" / "compare_loss"), *arguments]
    return subprocess.run(command, cwd=repository, env=environ, capture_output=True, text=True, timeout=300)


def trace(*losses: float, score: float = 0.5) -> Any:
    return compare_loss.Trace(name="it", losses=list(losses), scores={"oIoU": score, "mIoU": score})


@pytest.mark.slow
def test_a_changed_number_is_found_from_the_first_step_and_equal_code_gives_equal_losses(repository: Path) -> None:
    change(repository, "refseg/training/losses.py", "weights.dice * (1 -", "1.01 * weights.dice * (1 -")

    changed = compare(repository, "HEAD~1", "HEAD")
    assert changed.returncode == 1, changed.stderr
    lines = changed.stdout.splitlines()
    assert len(lines) == 1 + 30 + 2 + 1
    assert lines[-1].startswith("losses differ from step 1 on: by ")
    assert len(git(repository, "worktree", "list").splitlines()) == 1
    again = compare_loss.run_tree(repository, "working tree")
    assert [f"{loss:.8f}" for loss in again.losses] == [line.split()[2] for line in lines[1:31]]


@pytest.mark.parametrize(
    ("last", "code", "said"),
    [(4.0, 0, "all losses are equal to the bit"), (4.5, 1, "losses differ from step 2 on: by at most 5.0e-01")],
)
def test_a_commit_is_compared_with_the_working_tree(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], last: float, code: int, said: str
) -> None:
    monkeypatch.setattr(compare_loss, "find_commit", lambda repository, name: f"hash of {name}")
    monkeypatch.setattr(compare_loss, "worktree", lambda repository, commit: nullcontext(Path(commit)))
    traces = {"hash of HEAD": trace(1.0, 4.0), "working tree": trace(1.0, last)}
    monkeypatch.setattr(compare_loss, "run_tree", lambda tree, name: traces[name])
    monkeypatch.setattr(compare_loss.signal, "signal", lambda *_: None)

    assert compare_loss.main(["HEAD"]) == code
    assert capsys.readouterr().out.splitlines()[-1].startswith(said)


def test_a_commit_that_cannot_be_run_is_named_and_its_worktree_removed(repository: Path) -> None:
    # That its own code is what runs, and not the installed one, shows in that it fails.
    change(repository, "refseg/errors.py", "class RefsegError", "raise SystemExit('broken here')\nclass RefsegError")

    done = compare(repository, "HEAD")

    assert done.returncode == 1
    assert f"error: {git(repository, 'rev-parse', 'HEAD')[:12]}: refseg.cli toy" in done.stderr
    assert "broken here" in done.stderr
    assert len(git(repository, "worktree", "list").splitlines()) == 1


def test_what_is_no_commit_is_wrong_usage(repository: Path) -> None:
    done = compare(repository, "v9")

    assert done.returncode == 2
    assert "v9: found no such commit in" in done.stderr
    assert compare(repository).returncode == 2


def test_other_code_than_the_checkouts_is_refused(tmp_path: Path) -> None:
    # In an empty folder Python finds the installed package, which must not pass for the folder's.
    with pytest.raises(compare_loss.CompareError, match=r"another code than that of .* was imported"):
        compare_loss.run_tree(tmp_path, "empty")


def test_the_table_says_where_and_how_far() -> None:
    # 2.0 to 2.5 is a quarter of it; 4.0 to 4.5 an eighth.
    a, b = trace(1.0, 2.0, 4.0), trace(1.0, 2.5, 4.5)

    assert (
        compare_loss.describe(a, b).splitlines()[-1]
        == "losses differ from step 2 on: by at most 5.0e-01, 2.5e-01 of the loss"
    )
    assert compare_loss.distance(a, b) == 0.25
    assert compare_loss.distance(a, a) == 0
    assert compare_loss.distance(a, trace(1.0, 2.0, 4.0, score=0.75)) == 0.25
    assert compare_loss.distance(a, trace(1.0, 2.0)) == float("inf")
