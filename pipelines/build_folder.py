"""The folder of a build: one build at a time, traces of killed ones removed, a new one undone after a fault."""

import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from pipelines.plan import BUILD_FOLDER, PLAN_NAME, SAMPLES_FOLDER
from pipelines.shards import RECEIPTS_FOLDER
from refseg.dataset.descriptor import DESCRIPTOR_NAME, INDEX_SUFFIX
from refseg.errors import BuildError, RefsegError, StorageError, WorkerError
from refseg.locks import lock
from refseg.storage import Folder, LocalFolder

logger = logging.getLogger(__name__)

_LOCK_NAME = "lock"


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
            if path.name.startswith("tmp-"):
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
