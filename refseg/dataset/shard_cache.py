"""The cache of remote shards: whole tars, named by the hash of their content, shared by all processes of a machine.

A tar is downloaded to a `.part` file under an exclusive `flock`, hashed during the download, and then renamed. A reader
holds a shared `flock` on the tar. The kernel releases the locks of a process that dies, so no lock can be stale.
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
"""Environment variable: the largest size of the cache, in gigabytes (10^9 bytes)."""

_DEFAULT_PART_OF_DISK = 0.8
_BLOCK_BYTES = 16 << 20  # size of one request; a lost connection costs one request
_TRIES = 2  # number of downloads of an object before a wrong hash is an error

Fetched = Literal["here", "busy", "no room"]
"""Result of a fetch: the tar is in the cache, another process is downloading it, or it does not fit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tar:
    """A shard's tar: its address, and its expected size and hash.

    Attributes:
        address: Path or URL.
        num_bytes: Size in bytes.
        sha256: SHA-256 of its content.
        stored_images: Size of the pictures in the tar. None if they have the size that the rows state.
    """

    address: str
    num_bytes: int
    sha256: str
    stored_images: StoredImages | None = None

    def __str__(self) -> str:
        return self.address

    @property
    def is_remote(self) -> bool:
        """True if the address is a URL."""
        return is_remote(self.address)

    def check_picture(self, jpeg: bytes | memoryview, size: tuple[int, int]) -> None:
        """Check that the header of a picture of this tar states the size at which it was stored.

        Args:
            jpeg: Bytes of the picture.
            size: `(height, width)` in pixels, as the picture's rows state.

        Raises:
            ImageError: If the sizes differ.
        """
        check_jpeg_size(jpeg, size if self.stored_images is None else self.stored_images.picture_size(size))

    def read(self, start: int, num_bytes: int) -> bytes:
        """Read part of a remote tar with one request (and its retries).

        Raises:
            DatasetError: If the object does not exist.
            StorageError: If storage refuses or fails.
        """
        try:
            return read_file(self.address, start, num_bytes)
        except FileNotFoundError as error:
            raise DatasetError(
                f"{self}: found no such object, expected {self.num_bytes} bytes; copy the shard again from its "
                "source or build the dataset again"
            ) from error


class ShardCache:
    """A folder of tars of limited size. Least recently used tars are removed first, but never a tar in use."""

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        """Use a folder as a cache. It is created when the first tar is fetched.

        Args:
            folder: A folder on a local disk. A network file system would be slow and may not support `flock`.
            limit_bytes: Largest total size in bytes, unfinished downloads included.
        """
        self.folder = folder
        self.limit_bytes = limit_bytes
        self._has_failed = False

    @classmethod
    def of_this_machine(cls, kind: str = "shards") -> "ShardCache | None":
        """Return the cache in the folder `REFSEG_CACHE` with the limit `REFSEG_CACHE_GIGABYTES`.

        The default limit is 80 % of the disk space that is free or already used by the cache. If the folder cannot be
        created or read, the function logs a warning and returns None.

        Args:
            kind: Name of the subfolder: `shards`, or `index` for indexes. Each has the whole limit.

        Raises:
            UsageError: If the limit is not a number, or below 0.
        """
        folder = cache_folder(kind)
        text = os.environ.get(LIMIT_VARIABLE, "")
        try:
            asked = int(float(text) * 1e9) if text else None
        except (ValueError, OverflowError):
            asked = -1
        if asked is not None and asked < 0:
            raise UsageError(f"{LIMIT_VARIABLE} is {text!r}; expected a number of gigabytes (0 or more), such as 200")
        try:
            make_cache_folder(folder)
            held = sum(entry.num_bytes for entry in _entries(folder))
            possible = shutil.disk_usage(folder).free + held
        except OSError as error:
            logger.warning("%s", _no_cache(folder, error))
            return None
        return cls(folder, int(_DEFAULT_PART_OF_DISK * possible) if asked is None else min(asked, possible))

    def open(self, tar: Tar) -> int | None:
        """Return a file descriptor of a cached tar, or None if the tar is not in the cache.

        The tar is not removed from the cache while the descriptor is open.
        """
        try:
            return open_in_use(self.path(tar), os.O_RDONLY)
        except OSError:  # missing, unreadable or a symbolic link; all are treated as missing
            return None

    def fetch(self, tar: Tar, *, wait: bool = True) -> Fetched:
        """Download a tar into the cache; of several processes and threads that ask for it, one downloads.

        If the folder cannot be written, a warning is logged once and the result is "no room".

        Args:
            tar: A remote tar.
            wait: True to wait while another process downloads the tar. False to return "busy" instead.

        Raises:
            DatasetError: If the object is missing, or differs from the tar that was built at each of two downloads.
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
        # Example of the locking: processes A and B both want tar T.
        #   A opens T.part and locks it. B opens the same T.part and waits for the lock.
        #   A finishes: it renames T.part to T.tar and unlocks. B gets its lock, but its descriptor is now T.tar.
        #   B sees that T.part is another file or gone (`is_at` is False), starts again, and finds T.tar.
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
                    continue  # the process that held the lock has finished or given up
                done = False
                try:
                    if _is_file(final):  # another process finished between the first check and this lock
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
        """Remove a damaged tar. A process that has it open can still read it."""
        with suppress(OSError):  # the tar is missing, or the cache is read-only
            self.path(tar).unlink()

    def path(self, tar: Tar) -> Path:
        """Return the path of a tar in the cache, whether it exists or not."""
        return self.folder / f"{tar.sha256}.tar"

    def _make_room(self, descriptor: int, part: Path, num_bytes: int) -> bool:
        """Reserve disk space for a download, removing least recently used tars. Return False if there is too little."""
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
                reserve_space(descriptor, num_bytes)  # at once, so that other processes count it
            except OSError as error:
                logger.warning("%s: the disk has no room for %d bytes (%s)", self.folder, num_bytes, error.strerror)
                return False
            return True

    @contextmanager
    def _sole_owner(self) -> Iterator[None]:
        """Hold the lock under which one process at a time adds up sizes and removes tars."""
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
        "network in every epoch, one request each; set REFSEG_CACHE to a writable folder on this machine"
    )


def _download(tar: Tar, descriptor: int) -> None:
    """Copy an object into an open file and compare its hash; a wrong hash causes a second download.

    Raises:
        DatasetError: If the object is missing, or differs from the tar that was built at each download.
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
        "the object is damaged or belongs to another dataset; copy the shard again from its source or build the "
        "dataset again"
    )


def _entries(folder: Path) -> list[CacheEntry]:
    """Return the files of the cache, unfinished downloads included, the least recently used first."""
    return [entry for entry in least_recently_used(folder) if entry.path.suffix in (".tar", ".part")]


def _is_file(path: Path) -> bool:
    """Return True for a regular file but not for a symbolic link, which a rename would replace."""
    return path.is_file() and not path.is_symlink()
