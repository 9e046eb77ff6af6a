"""A folder beside a result in which it is made, so that the result appears whole or not at all."""

import fcntl
import glob
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def folder_aside(out: Path) -> Iterator[Path]:
    """Make a hidden folder beside `out`, and remove it with all that is still in it at the end.

    A process that is killed cannot remove its folder. The next call for the same `out` does: each folder is locked for
    as long as its process lives.

    Args:
        out: Where the result will be; folders above it are made.

    Raises:
        OSError: If the folder cannot be made.
    """
    out = out.absolute()
    out.parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(out)
    aside = out.with_name(f".{out.name[:_LONGEST_NAME]}.{secrets.token_hex(4)}.part")
    aside.mkdir()
    descriptor = os.open(aside, os.O_RDONLY)
    try:
        with suppress(OSError):  # file systems without locks: such a folder is never taken for an abandoned one
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield aside
    finally:
        shutil.rmtree(aside, ignore_errors=True)
        os.close(descriptor)


_LONGEST_NAME = 200
"""Bytes of a name that leave room for what is added, in the 255 that file systems allow."""


def _remove_abandoned(out: Path) -> None:
    for path in out.parent.glob(f".{glob.escape(out.name[:_LONGEST_NAME])}.????????.part"):
        with suppress(OSError):
            descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(path, ignore_errors=True)
            finally:
                os.close(descriptor)
