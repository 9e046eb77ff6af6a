"""What a run leaves beside its checkpoints: the resolved recipe, its surroundings, and `metrics.jsonl`."""

import errno
import importlib.metadata
import json
import logging
import os
import platform
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from refseg import __version__
from refseg.aside import write_aside
from refseg.config import Recipe
from refseg.errors import TrainingError, UsageError
from refseg.lineage import Lineage
from refseg.sealed import BrokenSealError, parse_object

logger = logging.getLogger(__name__)

METRICS_NAME, RECIPE_NAME, ENVIRONMENT_NAME = "metrics.jsonl", "recipe.json", "environment.json"
DAMAGED_METRICS_NAME = "metrics.damaged.jsonl"
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Errors of a disk without room."""
_PACKAGES = (
    "torch", "torchvision", "timm", "accelerate", "numpy", "pillow", "pyarrow", "pycocotools", "pydantic",
    "safetensors",
)  # fmt: skip


class MetricsLog:
    """`metrics.jsonl`: one JSON object a line, each with `kind` and `step`, in the order of the steps.

    Opening it at a step drops what was written after that step: a resumed run writes those lines again, and the
    file is that of a run that was never interrupted. A file with damaged lines is copied before they are dropped.
    """

    def __init__(self, out: Path, *, step: int) -> None:
        """Open for appending.

        Args:
            out: The run's folder.
            step: Steps done; later lines, and a line torn by a crash, are cut off.

        Raises:
            TrainingError: If the disk refuses.
        """
        self.path = out / METRICS_NAME
        lines, damaged = _parse_metrics(self.path)
        if damaged:
            shutil.copyfile(self.path, out / DAMAGED_METRICS_NAME)
            logger.warning(
                "%s: %s damaged, dropped here and kept in %s", self.path, _lines(damaged), DAMAGED_METRICS_NAME
            )
        kept = [line for line in lines if line["step"] <= step]
        _write(self.path, "".join(json.dumps(line) + "\n" for line in kept))
        self._file = self.path.open("ab", buffering=0)  # a buffer would write again what a full disk has refused

    def write(self, kind: str, step: int, values: dict[str, Any]) -> None:
        """Append a line and hand it to the system.

        Raises:
            TrainingError: If the disk refuses.
        """
        line = json.dumps({"kind": kind, "step": step, **values}).encode() + b"\n"
        try:
            if self._file.write(line) < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            raise _unwritable(self.path, error) from error

    def sync(self) -> None:
        """Make the lines so far outlive a power cut; called before a checkpoint that counts on them."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def read_metrics(out: Path) -> list[dict[str, Any]]:
    """Lines of a run's `metrics.jsonl`; empty if there is no file. Damaged ones are left out with a warning."""
    lines, damaged = _parse_metrics(out / METRICS_NAME)
    if damaged:
        logger.warning("%s: %s damaged and left out", out / METRICS_NAME, _lines(damaged))
    return lines


def _parse_metrics(path: Path) -> tuple[list[dict[str, Any]], list[int]]:
    """The lines, and the numbers of damaged ones; a last line without its end, as a crash leaves it, is neither."""
    lines: list[dict[str, Any]] = []
    damaged: list[int] = []
    if not path.is_file():
        return lines, damaged
    *whole, _unfinished = path.read_bytes().split(b"\n")
    for number, text in enumerate(whole, 1):
        try:
            line = parse_object(text)
        except BrokenSealError:
            line = {}
        if _is_metrics_line(line):
            lines.append(line)
        else:
            damaged.append(number)
    return lines, damaged


def _is_metrics_line(line: dict[str, Any]) -> bool:
    """Whether a line has its kind, its step, and numbers; only the name of a split is a word."""
    words, step = [line.get("kind"), line.get("split", "")], line.get("step")
    numbers = [value for key, value in line.items() if key not in ("kind", "split")]
    is_step = type(step) is int and step >= 0
    return is_step and all(isinstance(word, str) for word in words) and all(type(n) in (int, float) for n in numbers)


def _lines(numbers: Sequence[int]) -> str:
    """For example `line 3 is`, `lines 3, 4 and 5 more are`."""
    if len(numbers) == 1:
        return f"line {numbers[0]} is"
    more = f" and {len(numbers) - 3} more" if numbers[3:] else ""
    return f"lines {', '.join(map(str, numbers[:3]))}{more} are"


def read_facts(path: Path, *, sections: Sequence[str] | None) -> dict[str, Any]:
    """What `recipe.json` or `environment.json` holds, for people; empty if there is no such file.

    Args:
        path: The file.
        sections: Keys whose values are objects, if they are there; None: all are.

    Raises:
        UsageError: If it cannot be read.
    """
    try:
        facts = parse_object(path.read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, BrokenSealError) as error:
        raise UsageError(f"{path}: cannot be read ({error}); restore it, or remove it to do without") from error
    wrong = [key for key in (facts if sections is None else sections) if not isinstance(facts.get(key, {}), dict)]
    if wrong:
        raise UsageError(f"{path}: {wrong[0]} is not an object; restore the file, or remove it to do without")
    return facts


def write_recipe(out: Path, recipe: Recipe) -> None:
    """Write `recipe.json`: the settings of the run, resolved.

    Args:
        out: The run's folder.
        recipe: Of the last start that had steps to make.
    """
    _write(out / RECIPE_NAME, json.dumps(recipe.to_dict(), indent=1) + "\n")


def write_environment(
    out: Path,
    lineage: Lineage,
    *,
    val_digest: str,
    num_processes: int,
    device: str,
) -> None:
    """Write `environment.json`: what the run is made of and where it ran last.

    Args:
        out: The run's folder.
        lineage: What is trained on, and the models that the start weights come from.
        val_digest: Of the dataset validated on; empty without validation.
        num_processes: Ranks.
        device: Kind of device.
    """
    facts = {
        "refseg": __version__,
        "git_commit": _git_commit(),
        "python": platform.python_version(),
        "packages": {name: importlib.metadata.version(name) for name in _PACKAGES},
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name() if device == "cuda" else _cpu_name(),
        "cuda": torch.version.cuda if device == "cuda" else None,
        "cpu": _cpu_name(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gigabytes": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "num_processes": num_processes,
        "command": shlex.join(sys.argv),
        **lineage.to_json(),
        "val_dataset_digest": val_digest,
    }
    _write(out / ENVIRONMENT_NAME, json.dumps(facts, indent=1) + "\n")


def _write(path: Path, text: str) -> None:
    """Write a file whole or not at all.

    Raises:
        TrainingError: If the disk refuses.
    """
    try:
        write_aside(path, text)
    except OSError as error:  # a full disk names no file
        raise _unwritable(path, error) from error


def _unwritable(path: Path, error: OSError) -> TrainingError:
    remedy = "make room" if error.errno in _FULL else "see to its permissions and its disk"
    return TrainingError(f"{path}: cannot be written ({error.strerror}); {remedy}, and the same command resumes")


def _cpu_name() -> str:
    """The processor's name; Python itself knows it on few systems."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _git_commit() -> str | None:
    """Commit of the checkout this package runs from, with `-dirty` where files differ; None outside a checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=40", "--match="]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
