"""Manages this machine's caches: private folders whose least recently used files are removed when space is needed.

Only the user can write to the folders, and files are opened without following links. Otherwise another user could put
a link into a cache, and the cache would overwrite the link's target. A file that a process holds open through
`open_in_use` has a shared lock and is never removed.
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
    """One file of a cache.

    Attributes:
        path: Path of the file.
        num_bytes: Size of the file in bytes.
        last_use: Time of the last use, in seconds since 1970.
    """

    path: Path
    num_bytes: int
    last_use: float


def cache_folder(kind: str) -> Path:
    """Return this machine's folder for one kind of cache: `$REFSEG_CACHE/<kind>`.

    Without `REFSEG_CACHE` it lies in the system's folder for caches of the user; on Linux this is
    `$XDG_CACHE_HOME/refseg`, by default `~/.cache/refseg`.

    Args:
        kind: Name of the cache, for example `decoded`.
    """
    chosen = os.environ.get("REFSEG_CACHE")
    # `~` is expanded here because a quoted value or a systemd unit's `Environment=` is not expanded by a shell.
    return (Path(chosen).expanduser() if chosen else user_cache_path("refseg", appauthor=False)) / kind


def make_cache_folder(folder: Path) -> None:
    """Make the folder of one kind of cache, or check an existing one; parent folders are not checked.

    Raises:
        OSError: If the folder cannot be made, is a link or not a folder, or other users may write to it.
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
                folder.chmod(_PRIVATE)  # earlier releases made folders that others could read
        elif facts.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            message = "belongs to another user and can be written by others; set REFSEG_CACHE to a folder of your own"
            raise OSError(errno.EPERM, message, str(folder)) from None


def open_cache_file(path: Path, flags: int) -> int:
    """Open a file of a cache without following a link; a file that `flags` create is private to its user.

    Raises:
        OSError: If the file cannot be opened, or is a link.
    """
    try:
        return os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError as error:
        if error.errno == errno.ELOOP:
            message = "is a symbolic link, which a cache does not follow; remove it"
            raise OSError(errno.ELOOP, message, str(path)) from None
        raise


def open_in_use(path: Path, flags: int) -> int:
    """Open a file of a cache by `open_cache_file`, and keep it in the cache until its descriptor is closed."""
    while True:
        descriptor = open_cache_file(path, flags)
        with suppress(OSError):  # on a file system without locks, `remove_unused` removes nothing
            lock(descriptor, shared=True)
        if is_at(descriptor, path):
            with suppress(OSError):  # fails for another user's file or a read-only one, which is then removed earlier
                os.utime(descriptor)  # records the time of this use
            return descriptor
        os.close(descriptor)  # another process removed the file between opening and locking


def least_recently_used(folder: Path) -> list[CacheEntry]:
    """List the files of a cache in the order in which they are to be removed, from the oldest to the latest use."""
    entries = []
    for path in folder.iterdir():
        with suppress(FileNotFoundError):  # another process renamed or removed it since the folder was listed
            facts = path.lstat()
            entries.append(CacheEntry(path, facts.st_size, facts.st_mtime))
    return sorted(entries, key=lambda entry: entry.last_use)


def remove_unused(path: Path) -> bool:
    """Remove a file of a cache unless it is in use; return True if the file no longer exists.

    Raises:
        OSError: If the file cannot be opened or removed.
    """
    try:
        descriptor = open_cache_file(path, os.O_RDONLY)
    except FileNotFoundError:
        return True
    try:
        if not lock(descriptor, wait=False):
            return False  # without locks, a file in use cannot be told from an unused one
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
    """Return True if `path` still names the open file, which was neither removed nor replaced since it was opened."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.lstat())
    except FileNotFoundError:
        return False


def reserve_space(descriptor: int, num_bytes: int) -> None:
    """Extend an open file to at least `num_bytes`, and allocate its disk space where the system can (macOS cannot).

    Raises:
        OSError: If the disk does not have that much free space.
    """
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, 0, num_bytes)
    elif os.fstat(descriptor).st_size < num_bytes:
        os.truncate(descriptor, num_bytes)
