"""Files and folders made aside: each appears at its name whole or not at all, and a reader never finds half of one."""

import glob
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from refseg.locks import lock

_LONGEST_NAME = 200
"""Characters of a name that leave room for what is added, in the 255 bytes that file systems allow."""


@contextmanager
def file_aside(path: Path, *, synced: bool = False, is_shared: bool = False) -> Iterator[Path]:
    """Give a hidden path in the folder of `path` to write a file to; at the end the file is renamed to `path`.

    After an error nothing of it stays. What a killed process leaves is written over by the next one.

    Args:
        path: Where the file will be; its folder is there.
        synced: Flush the file and its name to the disk, so that they outlive a power cut.
        is_shared: Other processes may write the same file meanwhile: each gets a path of its own.

    Raises:
        OSError: If the file cannot be renamed, or is not there.
    """
    aside = _hidden(path, is_shared=is_shared)
    try:
        yield aside
        if synced:
            sync_path(aside)
        aside.replace(path)
    except BaseException:
        with suppress(OSError):  # on a read-only file system also what is not there cannot be removed
            aside.unlink(missing_ok=True)
        raise
    if synced:
        sync_path(path.parent)


def write_aside(path: Path, content: str | bytes, *, synced: bool = False) -> None:
    """Write a file whole or not at all; text as UTF-8. As `file_aside`."""
    with file_aside(path, synced=synced) as aside:
        if isinstance(content, str):
            aside.write_text(content, encoding="utf-8")
        else:
            aside.write_bytes(content)


@contextmanager
def folder_aside(out: Path, *, synced: bool = False, is_shared: bool = False, replace: bool = False) -> Iterator[Path]:
    """Give an empty hidden folder beside `out` to write to; at the end it is renamed to `out`.

    After an error nothing of it stays. A process that is killed cannot remove its folder. The next call for the same
    `out` does: of shared folders those that no living process has locked.

    Args:
        out: Where the folder will be: nothing, or an empty folder. Folders above it are made.
        synced: Flush the files directly in it and their names to the disk, so that they outlive a power cut.
        is_shared: Other processes may make the same folder meanwhile: each gets one of its own.
        replace: Remove what is at `out`, once the new folder is ready to take its place.

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
        with suppress(OSError):  # without a lock such a folder is never taken for an abandoned one
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
    """Flush a local file's content, or a folder's entries (new names), to the disk."""
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
