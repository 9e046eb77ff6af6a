"""Writes and reads `metrics.jsonl`, `recipe.json` and `environment.json` of a run."""

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
"""Errors of a disk without free space."""
_PACKAGES = (
    "torch", "torchvision", "timm", "accelerate", "numpy", "pillow", "pyarrow", "pycocotools", "pydantic",
    "safetensors",
)  # fmt: skip


class MetricsLog:
    """Appends to `metrics.jsonl`. Each line is a JSON object with `kind` and `step`, ordered by step.

    Opening the file at a step removes the lines of later steps. A resumed run writes those lines again, so that the
    file equals the file of an uninterrupted run. If lines are damaged, the file is copied before they are removed.
    """

    def __init__(self, out: Path, *, step: int) -> None:
        """Open the file for appending, and remove later lines and an incomplete last line.

        Args:
            out: The run's folder.
            step: Number of completed steps. Lines of later steps are removed.

        Raises:
            TrainingError: If the file cannot be written.
        """
        self.path = out / METRICS_NAME
        lines, damaged = _parse_metrics(self.path)
        if damaged:
            shutil.copyfile(self.path, out / DAMAGED_METRICS_NAME)
            logger.warning(
                "%s: %s damaged and dropped; a copy of the file is in %s",
                self.path,
                _lines(damaged),
                DAMAGED_METRICS_NAME,
            )
        kept = [line for line in lines if line["step"] <= step]
        _write(self.path, "".join(json.dumps(line) + "\n" for line in kept))
        # The file is unbuffered: a buffer would keep data that a full disk has refused, and write them again later.
        self._file = self.path.open("ab", buffering=0)

    def write(self, kind: str, step: int, values: dict[str, Any]) -> None:
        """Append a line. It is written to the file at once, without a buffer in this process.

        Raises:
            TrainingError: If the line cannot be written.
        """
        line = json.dumps({"kind": kind, "step": step, **values}).encode() + b"\n"
        try:
            if self._file.write(line) < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            raise _unwritable(self.path, error) from error

    def sync(self) -> None:
        """Flush the lines to the disk, so that they survive a power failure.

        This is called before a checkpoint is written.
        """
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def read_metrics(out: Path) -> list[dict[str, Any]]:
    """Read the lines of a run's `metrics.jsonl`. The result is empty if the file does not exist.

    Damaged lines are skipped with a warning.
    """
    lines, damaged = _parse_metrics(out / METRICS_NAME)
    if damaged:
        logger.warning("%s: %s damaged and left out", out / METRICS_NAME, _lines(damaged))
    return lines


def _parse_metrics(path: Path) -> tuple[list[dict[str, Any]], list[int]]:
    """Return the valid lines, and the line numbers of the damaged ones.

    A crash may leave a last line without a newline. It is neither returned nor reported as damaged.
    """
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
    """Return True if a line has kind and step, and all other values are numbers. A split name may be a text."""
    words, step = [line.get("kind"), line.get("split", "")], line.get("step")
    numbers = [value for key, value in line.items() if key not in ("kind", "split")]
    is_step = type(step) is int and step >= 0
    return is_step and all(isinstance(word, str) for word in words) and all(type(n) in (int, float) for n in numbers)


def _lines(numbers: Sequence[int]) -> str:
    """Return the subject of a message, for example `line 3 is` or `lines 3, 4, 5 and 2 more are`."""
    if len(numbers) == 1:
        return f"line {numbers[0]} is"
    more = f" and {len(numbers) - 3} more" if numbers[3:] else ""
    return f"lines {', '.join(map(str, numbers[:3]))}{more} are"


def read_facts(path: Path, *, sections: Sequence[str] | None) -> dict[str, Any]:
    """Read `recipe.json` or `environment.json` for display. The result is empty if the file does not exist.

    Args:
        path: Path of the file.
        sections: Keys whose values must be objects if they are present. If None, all values must be objects.

    Raises:
        UsageError: If the file cannot be read, or a value is not an object.
    """
    try:
        facts = parse_object(path.read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, BrokenSealError) as error:
        raise UsageError(
            f"{path}: cannot be read ({error}); restore it, or remove it to continue without it"
        ) from error
    wrong = [key for key in (facts if sections is None else sections) if not isinstance(facts.get(key, {}), dict)]
    if wrong:
        raise UsageError(f"{path}: {wrong[0]} is not an object; restore the file, or remove it to continue without it")
    return facts


def write_recipe(out: Path, recipe: Recipe) -> None:
    """Write the resolved settings of the run to `recipe.json`.

    Args:
        out: The run's folder.
        recipe: Recipe of the run. Only a start that has steps to train writes the file.
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
    """Write versions, machine, command and training set of the run's last start to `environment.json`.

    Args:
        out: The run's folder.
        lineage: The training set, and the models from which the training started.
        val_digest: Digest of the validation dataset. Empty without validation.
        num_processes: Number of processes.
        device: Type of the device, for example `cuda`.
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
    """Write a file. It becomes visible only when it is complete.

    Raises:
        TrainingError: If the file cannot be written.
    """
    try:
        write_aside(path, text)
    except OSError as error:  # the error of a full disk does not name the file
        raise _unwritable(path, error) from error


def _unwritable(path: Path, error: OSError) -> TrainingError:
    remedy = "free disk space" if error.errno in _FULL else "check its permissions and its disk"
    return TrainingError(
        f"{path}: cannot be written ({error.strerror}); {remedy}, then run the same command again to resume"
    )


def _cpu_name() -> str:
    """Return the processor's name. Python's own function returns it only on few systems."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _git_commit() -> str | None:
    """Return the commit of this package's checkout, with `-dirty` if files were changed.

    Return None outside a checkout.
    """
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=40", "--match="]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
