"""Writes files and folders under a temporary name and renames them, so that a reader never sees an unfinished one."""

import glob
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from refseg.locks import lock

_LONGEST_NAME = 200
"""Characters of the name that are kept, so that prefix and suffix still fit in the file systems' limit of 255 bytes."""


@contextmanager
def file_aside(path: Path, *, synced: bool = False, is_shared: bool = False) -> Iterator[Path]:
    """Give a hidden path in the folder of `path` to write a file to; at the end the file is renamed to `path`.

    After an error the temporary file is removed. The next writer replaces a file that a killed process left behind.

    Args:
        path: Final path of the file; its folder must exist.
        synced: Flush the file and its name to the disk, so that they survive a power failure.
        is_shared: Other processes may write the same file at the same time: each gets a temporary path of its own.

    Raises:
        OSError: If the file was not written, or cannot be renamed.
    """
    aside = _hidden(path, is_shared=is_shared)
    try:
        yield aside
        if synced:
            sync_path(aside)
        aside.replace(path)
    except BaseException:
        with suppress(OSError):  # a read-only file system refuses to remove even a file that does not exist
            aside.unlink(missing_ok=True)
        raise
    if synced:
        sync_path(path.parent)


def write_aside(path: Path, content: str | bytes, *, synced: bool = False) -> None:
    """Write a whole file by `file_aside`; text is encoded as UTF-8."""
    with file_aside(path, synced=synced) as aside:
        if isinstance(content, str):
            aside.write_text(content, encoding="utf-8")
        else:
            aside.write_bytes(content)


@contextmanager
def folder_aside(out: Path, *, synced: bool = False, is_shared: bool = False, replace: bool = False) -> Iterator[Path]:
    """Give an empty hidden folder beside `out` to write to; at the end it is renamed to `out`.

    After an error the hidden folder is removed. A killed process leaves its hidden folder behind, and the next call
    for the same `out` removes it. With `is_shared` it removes only folders that no living process has locked.

    Args:
        out: Final path of the folder. Nothing or an empty folder may exist there. Parent folders are created.
        synced: Flush the folder's files and their names to the disk, so that they survive a power failure.
        is_shared: Other processes may make the same folder at the same time: each gets a hidden folder of its own.
        replace: Remove an existing folder at `out` once the new one is complete.

    Raises:
        OSError: If the folder cannot be made or renamed.
    """
    out = out.absolute()
    out.parent.mkdir(parents=True, exist_ok=True)
    workplace = _hidden(out, is_shared=is_shared)
    if is_shared:
        _remove_abandoned(out)
    else:
        shutil.rmtree(workplace, ignore_errors=True)
    workplace.mkdir()
    descriptor = os.open(workplace, os.O_RDONLY)
    folder = workplace / "new"
    try:
        with suppress(OSError):  # on a file system without locks, `_remove_abandoned` removes nothing
            lock(descriptor)
        folder.mkdir()
        yield folder
        if synced:
            for path in (*folder.iterdir(), folder):
                sync_path(path)
        if replace and out.exists():
            out.rename(workplace / "earlier")  # removed with the workplace
        folder.rename(out)
        if synced:
            sync_path(out.parent)
    finally:
        shutil.rmtree(workplace, ignore_errors=True)
        os.close(descriptor)


def sync_path(path: Path) -> None:
    """Flush the content of a local file, or the entries of a folder (its new names), to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _hidden(path: Path, *, is_shared: bool) -> Path:
    mark = f".{secrets.token_hex(4)}" if is_shared else ""
    return path.with_name(f".{path.name[:_LONGEST_NAME]}{mark}.part")


def _remove_abandoned(out: Path) -> None:
    for path in out.parent.glob(f".{glob.escape(out.name[:_LONGEST_NAME])}.????????.part"):
        with suppress(OSError):
            descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                if lock(descriptor, wait=False):
                    shutil.rmtree(path, ignore_errors=True)
            finally:
                os.close(descriptor)
