"""Compares the losses and scores of two commits in the current environment.

Usage: scripts/compare_loss A [B]. Without B, commit A is compared with the working tree.

The code of each commit runs in a temporary worktree. It draws and builds the toy dataset, and trains on it with the
recipe `tests/golden/toy_loss.toml` of this checkout.
"""

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

RECIPE = Path(__file__).resolve().parents[1] / "tests" / "golden" / "toy_loss.toml"
_COMMANDS = (
    ["refseg.cli", "toy", "--out", "source", "--images", "60", "--size", "96", "--seed", "0"],
    ["refseg.cli", "build-shards", "toy/refseg", "--annotations", "source", "--out", "shards", "--workers", "1"],
    ["refseg.train", "recipe.toml", "--out", "run"],
)  # fmt: skip
"""The modules whose `main` is called, with the arguments. The command line changes less often than the functions."""
_CALL = """
import importlib, pathlib, sys
tree, module, *arguments = sys.argv[1:]
import pipelines, refseg
for package in (pipelines, refseg):
    if not pathlib.Path(package.__file__).resolve().is_relative_to(pathlib.Path(tree).resolve()):
        sys.exit(f"{package.__file__}: another code than that of {tree} was imported")
sys.argv = [module, *arguments]
sys.exit(importlib.import_module(module).main(arguments))
"""


class CompareError(Exception):
    """The code of one commit cannot be run. The message names the commit and the reason."""


class CommitError(CompareError):
    """An argument is not the name of a commit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """The losses and scores of a training.

    Attributes:
        name: Name of the commit.
        losses: Training loss of each step, the first step first.
        scores: `oIoU` and `mIoU` after the last step.
    """

    name: str
    losses: list[float]
    scores: dict[str, float]


def run_tree(tree: Path, name: str) -> Trace:
    """Draw a toy set, build shards and train with the code of a checkout.

    Args:
        tree: Folder of the checkout.
        name: Name of the checkout, for messages.

    Raises:
        CompareError: If a command fails, or code from outside the folder was imported.
    """
    # PYTHONPATH takes precedence over the refseg that is installed in the environment.
    environ = {**os.environ, "PYTHONPATH": str(tree), "PYTHONSAFEPATH": "1", "TQDM_DISABLE": "1"}
    with tempfile.TemporaryDirectory(prefix="compare_loss-") as folder:
        environ["REFSEG_CACHE"] = f"{folder}/cache"
        recipe = RECIPE.read_text(encoding="utf-8")
        settings = tree / "refseg" / "model_config.py"
        if settings.is_file() and "random_start" not in settings.read_text(encoding="utf-8"):
            recipe = recipe.replace("random_start = true\n", "")  # older commits do not have this key
        (Path(folder) / "recipe.toml").write_text(recipe, encoding="utf-8")
        for command in _COMMANDS:
            call = [sys.executable, "-c", _CALL, str(tree), *command]
            done = subprocess.run(call, cwd=folder, env=environ, capture_output=True, text=True)
            if done.returncode:
                raise CompareError(f"{name}: {' '.join(command)}: exit code {done.returncode}\n{done.stderr.strip()}")
        text = (Path(folder) / "run" / "metrics.jsonl").read_text(encoding="utf-8")
    lines = [json.loads(line) for line in text.splitlines()]
    return Trace(
        name=name,
        losses=[line["loss"] for line in lines if line["kind"] == "train"],
        scores={score: lines[-1][score] for score in ("oIoU", "mIoU")},
    )


def find_commit(repository: Path, commit: str) -> str:
    """Return the full hash of a commit.

    Raises:
        CommitError: If the commit does not exist.
    """
    command = [
        "git",
        "-C",
        str(repository),
        "rev-parse",
        "--verify",
        "--quiet",
        "--end-of-options",
        f"{commit}^{{commit}}",
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise CommitError(f"{commit}: found no such commit in {repository}; expected a hash, a tag or a branch")
    return done.stdout.strip()


@contextlib.contextmanager
def worktree(repository: Path, commit: str) -> Iterator[Path]:
    """Yield a temporary checkout of a commit; it is removed at the end, unless SIGKILL ends the process."""
    with tempfile.TemporaryDirectory(prefix="compare_loss-tree-") as folder:
        tree = Path(folder) / "tree"
        git = ["git", "-C", str(repository), "worktree"]
        try:
            subprocess.run([*git, "add", "--quiet", "--detach", str(tree), commit], check=True)
            yield tree
        finally:
            subprocess.run([*git, "remove", "--force", str(tree)], check=False)


def describe(a: Trace, b: Trace) -> str:
    """Return a table of both traces with their differences."""
    lines = [f"step  {a.name:>12}  {b.name:>12}  difference"]
    for step, (x, y) in enumerate(zip(a.losses, b.losses, strict=False), 1):
        lines.append(f"{step:4d}  {x:12.8f}  {y:12.8f}  {'' if x == y else f'{y - x:+.1e}'}".rstrip())
    for score, x in a.scores.items():
        y = b.scores[score]
        lines.append(f"{score}  {x:12.8f}  {y:12.8f}  {'' if x == y else f'{y - x:+.1e}'}".rstrip())
    if len(a.losses) != len(b.losses):
        lines.append(f"the numbers of steps differ: {len(a.losses)} and {len(b.losses)}")
    pairs = list(zip(a.losses, b.losses, strict=False))
    first = next((step for step, (x, y) in enumerate(pairs, 1) if x != y), None)
    if first is None:
        lines.append("all losses are equal to the bit")
    else:
        absolute = max(abs(y - x) for x, y in pairs)
        relative = max(_share(x, y) for x, y in pairs)
        lines.append(f"losses differ from step {first} on: by at most {absolute:.1e}, {relative:.1e} of the loss")
    return "\n".join(lines)


def distance(a: Trace, b: Trace) -> float:
    """Return the largest difference of two traces: relative for losses, absolute for scores.

    It is infinite if the numbers of steps differ.
    """
    if len(a.losses) != len(b.losses):
        return float("inf")
    shares = [_share(x, y) for x, y in zip(a.losses, b.losses, strict=True)]
    return max(*shares, *(abs(a.scores[score] - b.scores[score]) for score in a.scores))


def _share(x: float, y: float) -> float:
    return abs(y - x) / max(abs(x), 1e-12)


def main(argv: Sequence[str] | None = None) -> int:
    """Compare two commits.

    Returns:
        The exit code. 0: the traces are equal, bit for bit or within the tolerance. 1: they differ, or a commit cannot
        be run. 2: the command line is wrong.
    """
    parser = argparse.ArgumentParser(prog="scripts/compare_loss", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("a", metavar="A", help="a commit")
    parser.add_argument("b", metavar="B", nargs="?", help="another commit (default: the working tree)")
    parser.add_argument(
        "--tolerance",
        type=float,
        default=0.0,
        metavar="SHARE",
        help="largest relative difference of a loss and absolute difference of a score (default: 0)",
    )
    args = parser.parse_args(argv)
    repository = Path(__file__).resolve().parents[1]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that worktrees are removed
    try:
        commits = [find_commit(repository, name) for name in (args.a, args.b) if name is not None]
        traces = []
        for commit in commits:
            with worktree(repository, commit) as tree:
                traces.append(run_tree(tree, commit[:12]))
        if len(traces) == 1:
            traces.append(run_tree(repository, "working tree"))
    except CompareError as error:
        print(f"scripts/compare_loss: error: {error}", file=sys.stderr)
        return 2 if isinstance(error, CommitError) else 1
    print(describe(*traces))
    return 0 if distance(*traces) <= args.tolerance else 1


if __name__ == "__main__":
    sys.exit(main())
