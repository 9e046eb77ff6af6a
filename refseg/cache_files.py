"""Files of this machine's caches: in folders of their user alone, and opened without following links.

Without this, another user who may write into a cache could put a link there, and the cache would overwrite its target.
"""

import errno
import os
import stat
from pathlib import Path

_PRIVATE = 0o700


def make_cache_folder(folder: Path) -> None:
    """Make a folder for one kind of cache, or check the one that is there; parent folders are not checked.

    Raises:
        OSError: If it cannot be made, is a link or no folder, or others may write there.
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


def read_cache_file(path: Path) -> bytes:
    """All bytes of a file of a cache; errors as of `open_cache_file`."""
    with open(open_cache_file(path, os.O_RDONLY), "rb") as file:
        return file.read()
