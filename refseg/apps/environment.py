"""Describes this machine and installation, with versions, cores, GPUs, disk speed and extras."""

import importlib.metadata
import os
import platform
import re
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from refseg import __version__

_PROBE_BYTES = 64 << 20


def describe_environment(folder: Path) -> dict[str, Any]:
    """Return versions, processor, memory, GPUs, disk speed and extras. The name of a number contains the unit.

    Args:
        folder: Folder whose disk is timed with a temporary file of 64 MiB.
    """
    requirements = _requirements()
    write, read = _disk_speed(folder)
    return {
        "refseg": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: _version(name) or "missing" for name in requirements[""]},
        "extras": {extra: all(map(_version, names)) for extra, names in requirements.items() if extra},
        "cores": len(os.sched_getaffinity(0)),
        "cores_of_machine": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "memory_gigabytes": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "shared_memory_gigabytes": _free_gigabytes(Path("/dev/shm")),
        "cuda": torch.version.cuda,
        "gpus": [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())],
        "disk": {
            "folder": str(folder),
            "free_gigabytes": _free_gigabytes(folder),
            "write_megabytes_per_second": write,
            "read_megabytes_per_second": read,
        },
        "open_files": _open_files_limit(),
        "executable": sys.executable,
    }


def _requirements() -> dict[str, list[str]]:
    """Return the packages that this installation declares, by extra. Packages without an extra have the key "".

    An extra may contain other extras. Their packages are then included.
    """
    found: dict[str, list[str]] = {"": []}
    contains: dict[str, list[str]] = {}
    for line in importlib.metadata.requires("refseg") or []:
        match = re.match(r"([\w.-]+)(?:\[([^\]]*)\])?", line)
        extra = re.search(r"extra == ['\"]([\w-]+)", line)
        assert match is not None, line
        names = found.setdefault(extra[1] if extra else "", [])
        if match[1] == "refseg":
            contains.setdefault(extra[1] if extra else "", []).extend(match[2].split(","))
        else:
            names.append(match[1])

    def whole(extra: str) -> list[str]:
        return [*found[extra], *(name for other in contains.get(extra, ()) for name in whole(other.strip()))]

    return {extra: whole(extra) for extra in found}


def _version(package: str) -> str | None:
    """Return the installed version of a package. Return None if it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _disk_speed(folder: Path) -> tuple[float, float]:
    """Return the speed in MB/s of writing a file to the disk, and of reading it without the page cache."""
    block = os.urandom(1 << 20)
    with tempfile.TemporaryFile(dir=folder) as file:
        begin = time.perf_counter()
        for _ in range(_PROBE_BYTES >> 20):
            file.write(block)
        file.flush()
        os.fsync(file.fileno())
        write = time.perf_counter() - begin
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        file.seek(0)
        begin = time.perf_counter()
        while file.read(1 << 20):
            pass
        read = time.perf_counter() - begin
    return round(_PROBE_BYTES / 1e6 / write, 1), round(_PROBE_BYTES / 1e6 / read, 1)


def _free_gigabytes(folder: Path) -> float | None:
    if not folder.is_dir():
        return None
    facts = os.statvfs(folder)
    return round(facts.f_bavail * facts.f_frsize / 1e9, 1)


def _open_files_limit() -> int:
    import resource

    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]
