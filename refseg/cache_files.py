"""This machine's caches: private folders of files that may be removed, least recently used first, never one in use.

The folders belong to their user alone and files are opened without following links: another user who may write into a
cache could put a link there, and the cache would overwrite its target. A file is in use while somebody holds a shared
lock on it (`open_in_use`).
"""

import errno
import os
import stat
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from platformdirs import user_cache_path

from refseg.locks import lock, unlock

_PRIVATE = 0o700


class CacheEntry(NamedTuple):
    """A file of a cache.

    Attributes:
        path: Path of the file.
        num_bytes: Its size.
        last_use: When it was last used, in seconds since 1970.
    """

    path: Path
    num_bytes: int
    last_use: float


def cache_folder(kind: str) -> Path:
    """This machine's folder for what can be made again: `$REFSEG_CACHE/<kind>`.

    Without `REFSEG_CACHE` it lies where the system keeps a user's caches; on Linux in `$XDG_CACHE_HOME/refseg`, by
    default `~/.cache/refseg`.

    Args:
        kind: For example `decoded`.
    """
    chosen = os.environ.get("REFSEG_CACHE")
    # A shell expands `~` in some places and not in others, such as a quoted value or a unit's Environment=.
    return (Path(chosen).expanduser() if chosen else user_cache_path("refseg", appauthor=False)) / kind


def make_cache_folder(folder: Path) -> None:
    """Make a folder for one kind of cache, or check the one that is there; parent folders are not checked.

    Raises:
        OSError: If it cannot be made, is a link or not a folder, or others may write there.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder.parent)) from None
    try:
        folder.mkdir(_PRIVATE)
    except FileExistsError:
        facts = folder.lstat()
        if not stat.S_ISDIR(facts.st_mode):
            message = "is a link or a file, expected a folder: a cache follows no links; remove it"
            raise OSError(errno.ENOTDIR, message, str(folder)) from None
        if facts.st_uid == os.getuid():
            if stat.S_IMODE(facts.st_mode) & ~_PRIVATE:
                folder.chmod(_PRIVATE)  # made by an earlier release
        elif facts.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            message = "belongs to another user and can be written by others; set REFSEG_CACHE to a folder of your own"
            raise OSError(errno.EPERM, message, str(folder)) from None


def open_cache_file(path: Path, flags: int) -> int:
    """Open a file of a cache, made if `flags` say so: for its user alone, and never through a link.

    Raises:
        OSError: If it cannot be opened, or is a link.
    """
    try:
        return os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError as error:
        if error.errno == errno.ELOOP:
            message = "is a symbolic link, which a cache does not follow; remove it"
            raise OSError(errno.ELOOP, message, str(path)) from None
        raise


def open_in_use(path: Path, flags: int) -> int:
    """Open a file of a cache as `open_cache_file`; it stays in the cache until its descriptor is closed."""
    while True:
        descriptor = open_cache_file(path, flags)
        with suppress(OSError):  # where there are no locks nothing is removed either
            lock(descriptor, shared=True)
        if is_at(descriptor, path):
            with suppress(OSError):  # of another user in a shared cache, or read-only: it ages a little faster
                os.utime(descriptor)  # used just now
            return descriptor
        os.close(descriptor)  # removed between opening and locking


def least_recently_used(folder: Path) -> list[CacheEntry]:
    """The files of a cache in the order in which they are to be removed: what was used last comes last."""
    entries = []
    for path in folder.iterdir():
        with suppress(FileNotFoundError):  # finished or removed meanwhile
            facts = path.lstat()
            entries.append(CacheEntry(path, facts.st_size, facts.st_mtime))
    return sorted(entries, key=lambda entry: entry.last_use)


def remove_unused(path: Path) -> bool:
    """Remove a file of a cache unless it is in use; True if it is gone.

    Raises:
        OSError: If it cannot be opened or removed.
    """
    try:
        descriptor = open_cache_file(path, os.O_RDONLY)
    except FileNotFoundError:
        return True
    try:
        if not lock(descriptor, wait=False):
            return False  # without locks nobody can tell
        try:
            if is_at(descriptor, path):
                path.unlink()
        finally:
            unlock(descriptor)
        return True
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)


def is_at(descriptor: int, path: Path) -> bool:
    """True if an open file still has this name: it was not removed, or replaced, since it was opened."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.lstat())
    except FileNotFoundError:
        return False


def reserve_space(descriptor: int, num_bytes: int) -> None:
    """Make an open file at least so long, and take the disk space where the system can (macOS cannot).

    Raises:
        OSError: If there is not so much space.
    """
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, 0, num_bytes)
    elif os.fstat(descriptor).st_size < num_bytes:
        os.truncate(descriptor, num_bytes)
