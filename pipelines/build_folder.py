"""Locks the folder of a build, manages temporary files, and removes files after kills and faults."""

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
"""Name of the folder for the plan, samples, receipts and temporary files. It exists only during the build."""
PLAN_NAME = f"{BUILD_FOLDER}/plan.json"
SAMPLES_FOLDER = f"{BUILD_FOLDER}/samples"
"""Folder with one file of checked records per shard."""
RECEIPTS_FOLDER = f"{BUILD_FOLDER}/receipts"
"""Folder with one file per finished shard."""
_LOCK_NAME = "lock"
_SCRATCH = "tmp-"


@contextmanager
def own_folder(folder: Folder, *, is_new: bool) -> Iterator[None]:
    """Lock a folder for one build. Temporary files of killed builds are removed.

    If the data has a fault, all files and folders that a new build created are removed.

    Example: a build is killed while it writes shard 7. The kernel releases the lock, and the next build acquires it.
    The next build removes the temporary files of shard 7 and builds shard 7 again. Shards with receipts are kept.

    Args:
        folder: The dataset's folder.
        is_new: True if the folder has no plan yet; False to resume.

    Raises:
        BuildError: If another build uses the folder.
    """
    path = folder.path if isinstance(folder, LocalFolder) else None
    made = [parent for parent in (path, *path.parents) if not parent.exists()] if path else []
    if path:
        for name in (RECEIPTS_FOLDER, SAMPLES_FOLDER):
            (path / name).mkdir(parents=True, exist_ok=True)
    with lock_folder(folder):
        if folder.size(DESCRIPTOR_NAME) is not None or (folder.size(PLAN_NAME) is None) != is_new:
            raise BuildError(f"{folder}: another build has just changed this folder; run the same command again")
        _sweep(folder)
        try:
            yield
        except RefsegError as error:
            if is_new and not isinstance(error, StorageError | WorkerError):
                _undo(folder)
                with suppress(OSError):  # another process uses a parent folder that this build created
                    for parent in made:
                        parent.rmdir()
            raise


@contextmanager
def lock_folder(folder: Folder, *, shared: bool = False) -> Iterator[None]:
    """Lock a local folder, so that two builds do not use it at the same time.

    Object stores have no locks. There, two builds with the same inputs write the same bytes.

    Args:
        folder: The dataset's folder.
        shared: True for the stage `shards`, of which several processes may run at the same time.

    Raises:
        BuildError: If another build uses the folder.
    """
    if not isinstance(folder, LocalFolder):
        yield
        return
    with (folder.path / BUILD_FOLDER / _LOCK_NAME).open("w") as file:
        try:
            if not lock(file, shared=shared, wait=False):
                logger.warning(
                    "%s: this file system has no locks; do not run builds with different inputs in it at once", folder
                )
        except BlockingIOError as error:
            raise BuildError(f"{folder}: another build uses this folder; wait for it, or give another --out") from error
        yield


def _sweep(folder: Folder) -> None:
    """Remove the temporary files of killed processes."""
    if isinstance(folder, LocalFolder):
        for path in (folder.path / BUILD_FOLDER).iterdir():
            if path.name.startswith(_SCRATCH):
                shutil.rmtree(path) if path.is_dir() else path.unlink()


def _undo(folder: Folder) -> None:
    """Remove all files that a build wrote."""
    for name in folder.list():
        if name.endswith((".tar", ".parquet", INDEX_SUFFIX)):
            folder.remove(name)
    folder.remove(BUILD_FOLDER)


def remove_leftovers(folder: Folder) -> None:
    """Remove the build folder that a killed process left; log a warning if it cannot be removed."""
    try:
        folder.remove(BUILD_FOLDER)
    except OSError as error:
        logger.warning("%s: %s cannot be removed (%s); readers ignore it", folder, BUILD_FOLDER, error)


@contextmanager
def scratch_folder(folder: Folder) -> Iterator[Path]:
    """Yield a new local folder for temporary files. It is in the dataset's folder if the dataset is local.

    The name is unique even among several machines and containers. The folder is removed at the end of the block.
    """
    beside = folder.path / BUILD_FOLDER if isinstance(folder, LocalFolder) else None
    with tempfile.TemporaryDirectory(prefix=_SCRATCH, dir=beside) as scratch:
        yield Path(scratch)


@contextmanager
def scratch_files(folder: Folder, *names: str) -> Iterator[list[Path]]:
    """Yield paths of temporary files in a `scratch_folder`."""
    with scratch_folder(folder) as scratch:
        yield [scratch / name.replace("/", "-") for name in names]


def publish_bytes(folder: Folder, data: bytes, name: str) -> None:
    """Write a small file and publish it."""
    with scratch_files(folder, name) as (path,):
        path.write_bytes(data)
        folder.publish(path, name)


def hash_file(path: Path) -> str:
    """Return the SHA-256 of a local file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
