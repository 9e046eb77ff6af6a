"""The node's cache of remote shards: whole tars by the hash of their content, shared by all processes of a machine.

A tar is downloaded aside under an exclusive `flock`, hashed on the way, and renamed; who reads one holds a shared
`flock` on it. The kernel drops the locks of a process that dies, so no lock can be stale.
"""

import errno
import hashlib
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from refseg.cache_files import (
    CacheEntry,
    cache_folder,
    is_at,
    least_recently_used,
    make_cache_folder,
    open_cache_file,
    open_in_use,
    remove_unused,
    reserve_space,
)
from refseg.dataset.descriptor import StoredImages
from refseg.errors import DatasetError, StorageError, UsageError
from refseg.jpeg_header import check_jpeg_size
from refseg.locks import lock, unlock
from refseg.storage import is_remote, read_file

logger = logging.getLogger(__name__)

LIMIT_VARIABLE = "REFSEG_CACHE_GIGABYTES"
"""Environment variable: how much the cache may hold, in 10^9 bytes."""

_DEFAULT_PART_OF_DISK = 0.8
_BLOCK_BYTES = 16 << 20  # of one request; a cut connection costs one of them
_TRIES = 2  # downloads of an object whose hash is wrong

Fetched = Literal["here", "busy", "no room"]
"""Result of a fetch: the tar is in the cache, another process is downloading it, or it does not fit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tar:
    """A shard's tar: where it is and what it must be.

    Attributes:
        address: Path or URL.
        num_bytes: Size.
        sha256: Of its content.
        stored_images: Size of the pictures in it; None: they have their rows' size.
    """

    address: str
    num_bytes: int
    sha256: str
    stored_images: StoredImages | None = None

    def __str__(self) -> str:
        return self.address

    @property
    def is_remote(self) -> bool:
        """True if it lies at a URL."""
        return is_remote(self.address)

    def check_picture(self, jpeg: bytes | memoryview, size: tuple[int, int]) -> None:
        """Check that a picture of this tar has the size it was stored at, by its header.

        Args:
            jpeg: The file.
            size: `(height, width)` of its rows, in pixels.

        Raises:
            ImageError: If it has another.
        """
        check_jpeg_size(jpeg, size if self.stored_images is None else self.stored_images.picture_size(size))

    def read(self, start: int, num_bytes: int) -> bytes:
        """Part of a remote tar, by one request (and its retries).

        Raises:
            DatasetError: If there is no such object.
            StorageError: If storage refuses or fails.
        """
        try:
            return read_file(self.address, start, num_bytes)
        except FileNotFoundError as error:
            raise DatasetError(
                f"{self}: there is no such object, expected {self.num_bytes} bytes; copy the shard again from its "
                "source or build the dataset again"
            ) from error


class ShardCache:
    """A folder of tars of bounded size, from which the least recently used go first, and none in use."""

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        """Use a folder, made when needed.

        Args:
            folder: On a disk of this machine: network file systems are slow here and may not know `flock`.
            limit_bytes: What it holds at most, unfinished downloads included.
        """
        self.folder = folder
        self.limit_bytes = limit_bytes
        self._has_failed = False

    @classmethod
    def of_this_machine(cls, kind: str = "shards") -> "ShardCache | None":
        """The cache that `REFSEG_CACHE` and `REFSEG_CACHE_GIGABYTES` say; by default 80 % of what the disk can give.

        None, and a warning, if its folder cannot be made or looked into.

        Args:
            kind: Name of its folder: `shards`, or `index` for indexes, whose limit is counted apart.

        Raises:
            UsageError: If the limit is no number, or below 0.
        """
        folder = cache_folder(kind)
        text = os.environ.get(LIMIT_VARIABLE, "")
        try:
            asked = int(float(text) * 1e9) if text else None
        except (ValueError, OverflowError):
            asked = -1
        if asked is not None and asked < 0:
            raise UsageError(f"{LIMIT_VARIABLE} is {text!r}; expected a number of gigabytes from 0 on, for example 200")
        try:
            make_cache_folder(folder)
            held = sum(entry.num_bytes for entry in _entries(folder))
            possible = shutil.disk_usage(folder).free + held
        except OSError as error:
            logger.warning("%s", _no_cache(folder, error))
            return None
        return cls(folder, int(_DEFAULT_PART_OF_DISK * possible) if asked is None else min(asked, possible))

    def open(self, tar: Tar) -> int | None:
        """A file descriptor of a tar that is here, None if it is not. While it is open the tar stays in the cache."""
        try:
            return open_in_use(self.path(tar), os.O_RDONLY)
        except OSError:  # it is not here, cannot be read, or is a link: as if it were not here
            return None

    def fetch(self, tar: Tar, *, wait: bool = True) -> Fetched:
        """Bring a tar here; of several processes and threads one downloads.

        Where the folder cannot be written a warning says so, once, and there is "no room".

        Args:
            tar: A remote one.
            wait: For another's download; False: say "busy" instead.

        Raises:
            DatasetError: If the object is missing, or twice another than was built.
            StorageError: If storage refuses or fails.
        """
        try:
            return self._fetch(tar, wait=wait)
        except StorageError:
            raise
        except OSError as error:
            if not self._has_failed:
                logger.warning("%s", _no_cache(self.folder, error))
            self._has_failed = True
            return "no room"

    def _fetch(self, tar: Tar, *, wait: bool) -> Fetched:
        final = self.path(tar)
        part = final.with_suffix(".part")
        while True:
            if _is_file(final):
                return "here"
            make_cache_folder(self.folder)
            descriptor = open_cache_file(part, os.O_RDWR | os.O_CREAT)
            try:
                if not lock(descriptor, wait=wait):
                    raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK), str(self.folder))
                if not is_at(descriptor, part):
                    continue  # who held the lock finished or gave up meanwhile
                done = False
                try:
                    if _is_file(final):  # this part was begun a moment after another was finished
                        return "here"
                    if not self._make_room(descriptor, part, tar.num_bytes):
                        return "no room"
                    _download(tar, descriptor)
                    part.rename(final)
                    done = True
                    return "here"
                finally:
                    if not done:
                        part.unlink(missing_ok=True)
            except BlockingIOError:
                return "busy"
            finally:
                unlock(descriptor)
                os.close(descriptor)

    def discard(self, tar: Tar) -> None:
        """Remove a tar that turned out to be damaged; who reads it goes on reading it."""
        with suppress(OSError):  # it is not there, or the cache is read-only
            self.path(tar).unlink()

    def path(self, tar: Tar) -> Path:
        """The file of a tar, whether it is here or not."""
        return self.folder / f"{tar.sha256}.tar"

    def _make_room(self, descriptor: int, part: Path, num_bytes: int) -> bool:
        """Take disk space for a download, removing what was used least recently; False: there is not enough."""
        with self._sole_owner():
            held = [entry for entry in _entries(self.folder) if entry.path != part]
            total = num_bytes + sum(entry.num_bytes for entry in held)
            for entry in held:
                if total <= self.limit_bytes:
                    break
                if remove_unused(entry.path):
                    total -= entry.num_bytes
            if total > self.limit_bytes:
                return False
            try:
                reserve_space(descriptor, num_bytes)  # now, so that others count it
            except OSError as error:
                logger.warning("%s: no space for %d bytes (%s)", self.folder, num_bytes, error.strerror)
                return False
            return True

    @contextmanager
    def _sole_owner(self) -> Iterator[None]:
        """One process at a time adds up sizes."""
        descriptor = open_cache_file(self.folder / "lock", os.O_RDWR | os.O_CREAT)
        try:
            lock(descriptor)
            yield
        finally:
            unlock(descriptor)
            os.close(descriptor)


def _no_cache(folder: Path, error: OSError) -> str:
    return (
        f"{folder}: the cache of remote shards cannot be used ({error}): images that are not in it are read over the "
        "network in every epoch, one request each; set REFSEG_CACHE to a folder of this machine that can be written"
    )


def _download(tar: Tar, descriptor: int) -> None:
    """Copy an object into an open file, hashing on the way.

    Raises:
        DatasetError: If it is missing, or twice another than was built.
        StorageError: If storage refuses or fails.
    """
    found = ""
    for _ in range(_TRIES):
        sha256 = hashlib.sha256()
        start = 0
        while start < tar.num_bytes:
            block = tar.read(start, min(_BLOCK_BYTES, tar.num_bytes - start))
            if not block:
                break
            sha256.update(block)
            view = memoryview(block)
            while view:
                num_written = os.pwrite(descriptor, view, start)
                view, start = view[num_written:], start + num_written
        if sha256.hexdigest() == tar.sha256:
            return
        found = f"{start} bytes with sha256 {sha256.hexdigest()}"
        logger.warning("%s: found %s, expected sha256 %s", tar, found, tar.sha256)
    raise DatasetError(
        f"{tar}: found {found} at each of {_TRIES} downloads, expected {tar.num_bytes} bytes with sha256 {tar.sha256}: "
        "the object is damaged or another's; copy the shard again from its source or build the dataset again"
    )


def _entries(folder: Path) -> list[CacheEntry]:
    """What the cache holds, unfinished downloads included; what was used last comes last."""
    return [entry for entry in least_recently_used(folder) if entry.path.suffix in (".tar", ".part")]


def _is_file(path: Path) -> bool:
    """True for a file, not for a link to one: a rename replaces the link."""
    return path.is_file() and not path.is_symlink()
