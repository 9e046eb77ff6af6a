"""The folder of a build: its files in the making, one build at a time, traces of killed ones removed, faults undone."""

import hashlib
import logging
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from refseg.dataset.descriptor import DESCRIPTOR_NAME, INDEX_SUFFIX
from refseg.errors import BuildError, RefsegError, StorageError, WorkerError
from refseg.locks import lock
from refseg.storage import Folder, LocalFolder

logger = logging.getLogger(__name__)

BUILD_FOLDER = ".build"
"""Holds plan, samples, receipts and temporary files inside the dataset's folder while it is built."""
PLAN_NAME = f"{BUILD_FOLDER}/plan.json"
SAMPLES_FOLDER = f"{BUILD_FOLDER}/samples"
"""A file per shard with its checked records."""
RECEIPTS_FOLDER = f"{BUILD_FOLDER}/receipts"
"""One file per finished shard."""
_LOCK_NAME = "lock"
_SCRATCH = "tmp-"


@contextmanager
def own_folder(folder: Folder, *, is_new: bool) -> Iterator[None]:
    """Hold the folder for one build: lock, sweep; after a fault of the data, undo a new build."""
    path = folder.path if isinstance(folder, LocalFolder) else None
    made = [parent for parent in (path, *path.parents) if not parent.exists()] if path else []
    if path:
        for name in (RECEIPTS_FOLDER, SAMPLES_FOLDER):
            (path / name).mkdir(parents=True, exist_ok=True)
    with lock_folder(folder):
        if folder.size(DESCRIPTOR_NAME) is not None or (folder.size(PLAN_NAME) is None) != is_new:
            raise BuildError(f"{folder}: another build was at work here just now; run the same command again")
        _sweep(folder)
        try:
            yield
        except RefsegError as error:
            if is_new and not isinstance(error, StorageError | WorkerError):
                _undo(folder)
                with suppress(OSError):  # another process uses a parent folder that we made
                    for parent in made:
                        parent.rmdir()
            raise


@contextmanager
def lock_folder(folder: Folder, *, shared: bool = False) -> Iterator[None]:
    """Keep two builds out of one local folder. Object stores have no locks: there, two builds write the same bytes."""
    if not isinstance(folder, LocalFolder):
        yield
        return
    with (folder.path / BUILD_FOLDER / _LOCK_NAME).open("w") as file:
        try:
            if not lock(file, shared=shared, wait=False):
                logger.warning(
                    "%s: this file system has no locks; let no two builds of different inputs meet here", folder
                )
        except BlockingIOError as error:
            raise BuildError(f"{folder}: another build is at work here; wait for it, or give another --out") from error
        yield


def _sweep(folder: Folder) -> None:
    """Remove what killed writers left half done."""
    if isinstance(folder, LocalFolder):
        for path in (folder.path / BUILD_FOLDER).iterdir():
            if path.name.startswith(_SCRATCH):
                shutil.rmtree(path) if path.is_dir() else path.unlink()


def _undo(folder: Folder) -> None:
    """Remove all that a build wrote."""
    for name in folder.list():
        if name.endswith((".tar", ".parquet", INDEX_SUFFIX)):
            folder.remove(name)
    folder.remove(BUILD_FOLDER)


def remove_leftovers(folder: Folder) -> None:
    """Remove what a kill after the commit left behind, where the storage may be written."""
    try:
        folder.remove(BUILD_FOLDER)
    except OSError as error:
        logger.warning("%s: %s cannot be removed (%s); no reader needs it", folder, BUILD_FOLDER, error)


@contextmanager
def scratch_folder(folder: Folder) -> Iterator[Path]:
    """A new folder of this machine for files in the making, beside the dataset's own if that is local.

    No two writers share one, on whichever machines and in whichever containers they are. What is left in it is removed.
    """
    beside = folder.path / BUILD_FOLDER if isinstance(folder, LocalFolder) else None
    with tempfile.TemporaryDirectory(prefix=_SCRATCH, dir=beside) as scratch:
        yield Path(scratch)


@contextmanager
def scratch_files(folder: Folder, *names: str) -> Iterator[list[Path]]:
    """Paths in a `scratch_folder`."""
    with scratch_folder(folder) as scratch:
        yield [scratch / name.replace("/", "-") for name in names]


def publish_bytes(folder: Folder, data: bytes, name: str) -> None:
    """Write a small file and publish it."""
    with scratch_files(folder, name) as (path,):
        path.write_bytes(data)
        folder.publish(path, name)


def hash_file(path: Path) -> str:
    """SHA-256 of a local file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
