"""Reads whole samples from local or remote tars and checks each by its hash.

A remote tar is read from the machine's cache once it is there. Until then each sample is one ranged request, so a run
starts at once. A dataset larger than the cache keeps a fixed part of its tars there, so that tars are not evicted and
downloaded again in every epoch.
"""

import logging
import os
import weakref
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from refseg.dataset.read_ahead import ReadAhead
from refseg.dataset.shard_cache import LIMIT_VARIABLE, ShardCache, Tar
from refseg.errors import DatasetError

logger = logging.getLogger(__name__)

HEADER_BYTES = 512
"""Size of a tar member's header: a sample starts this many bytes before its JPEG."""
_MAX_OPEN_SHARDS = 256  # file descriptors of a process; the usual limit is 1,024
_REMEDY = "copy the shard again from its source or build the dataset again"


class ShardFiles:
    """Tars by number. Each process opens a tar at its first use; threads read without a lock.

    Attributes:
        tars: All tars.
        cached: Positions of the remote tars that are kept in the cache: the first ones, as many as fit.
    """

    def __init__(self, tars: Sequence[Tar]) -> None:
        self.tars = tuple(tars)
        self.cached: frozenset[int] = frozenset()
        self._cache: ShardCache | None = None
        self._open: dict[int, _OpenShard] = {}
        self._ahead: ReadAhead | None = None
        remote = [number for number, tar in enumerate(self.tars) if tar.is_remote]
        if remote:
            self._cache = ShardCache.of_this_machine()
            self.cached = self._choose(remote, self._cache) if self._cache is not None else frozenset()

    def read_sample(self, shard: int, *, start: int, num_bytes: int, xxh3: int, where: str) -> NDArray[np.uint8]:
        """Read a whole sample and compare its hash.

        If the hash of a sample of a remote tar is wrong, its bytes are requested once more.

        Args:
            shard: Position of the tar.
            start: Offset of the sample in the tar.
            num_bytes: Length of the sample, which includes headers, JPEG, JSON and padding.
            xxh3: XXH3-64 of those bytes.
            where: Name of the sample, for messages.

        Returns:
            `(num_bytes,)` bytes, writable.

        Raises:
            DatasetError: If the tar is missing or truncated, or the bytes differ from those that were built.
            StorageError: If storage refuses or fails.
        """
        opened = self._opened(shard)
        sample = self._request(shard, start, num_bytes) if opened is None else opened.read(start, num_bytes)
        found = xxhash.xxh3_64_intdigest(sample.data)
        if found != xxh3 and self.tars[shard].is_remote:
            if opened is not None:
                self._drop(shard, where)
            sample = self._request(shard, start, num_bytes)
            found = xxhash.xxh3_64_intdigest(sample.data)
        if len(sample) != num_bytes:
            raise DatasetError(
                f"{where}: found {len(sample)} bytes at offset {start}, expected {num_bytes}: the shard is truncated; "
                f"{_REMEDY}"
            )
        if found != xxh3:
            raise DatasetError(
                f"{where}: found a sample with XXH3 {found:016x}, expected {xxh3:016x}: the shard is damaged or "
                f"belongs to another dataset; {_REMEDY}"
            )
        return sample

    def fetch_ahead(self, shards: Iterable[int]) -> None:
        """Start to download remote tars into the cache in the background. Earlier downloads are cancelled.

        Args:
            shards: Positions of tars in the order in which they will be needed. Local tars, and those that the cache
                has no room for, are skipped.
        """
        if self._ahead is not None:
            self._ahead.stop()
            self._ahead = None
        wanted = [self.tars[number] for number in shards if number in self.cached]
        if wanted and self._cache is not None:
            self._ahead = ReadAhead(self._cache, wanted)

    def check_ahead(self, *, wait: bool = False) -> None:
        """Raise the error of the background downloads, if there was one.

        Args:
            wait: Wait until all requested tars are in the cache.

        Raises:
            DatasetError: If an object is missing, or differs from the tar that was built at each of two downloads.
            StorageError: If storage refuses or fails.
        """
        if self._ahead is not None:
            if wait:
                self._ahead.join()
            self._ahead.check()

    def _choose(self, remote: Sequence[int], cache: ShardCache) -> frozenset[int]:
        """Return the positions of the first remote tars, as many as fit into the cache."""
        sizes = np.array([self.tars[number].num_bytes for number in remote])
        num_fitting = int(np.searchsorted(np.cumsum(sizes), cache.limit_bytes, side="right"))
        if num_fitting < len(remote):
            here, all_bytes = int(sizes[:num_fitting].sum()), int(sizes.sum())
            logger.warning(
                "%s and %d more remote shards hold %.3f GB, but the cache %s holds at most %.3f GB: in every epoch "
                "%.3f GB will be read over the network with one request per image. Give the cache a larger disk or "
                "limit (REFSEG_CACHE, %s), copy the dataset to this machine, or stream it (refseg.data.webdataset)",
                self.tars[remote[0]], len(remote) - 1, all_bytes / 1e9, cache.folder, cache.limit_bytes / 1e9,
                (all_bytes - here) / 1e9, LIMIT_VARIABLE,
            )  # fmt: skip
        return frozenset(remote[:num_fitting])

    def _opened(self, shard: int) -> "_OpenShard | None":
        """Return the open file of a tar. Return None if the tar is remote and not in the cache."""
        opened = self._open.get(shard)
        if opened is not None:
            return opened
        tar = self.tars[shard]
        if tar.is_remote:
            descriptor = None if self._cache is None else self._cache.open(tar)
            if descriptor is None:
                return None
        else:
            try:
                descriptor = os.open(tar.address, os.O_RDONLY | os.O_CLOEXEC)
            except OSError as error:
                raise DatasetError(
                    f"{tar}: cannot be opened ({error.strerror}); copy or build the shard again"
                ) from error
        while len(self._open) >= _MAX_OPEN_SHARDS:
            self._open.pop(next(iter(self._open)), None)
        opened = self._open[shard] = _OpenShard(descriptor)
        return opened

    def _request(self, shard: int, start: int, num_bytes: int) -> NDArray[np.uint8]:
        return np.frombuffer(bytearray(self.tars[shard].read(start, num_bytes)), np.uint8)

    def _drop(self, shard: int, where: str) -> None:
        """Remove a damaged tar from the cache."""
        logger.warning("%s: damaged in the cache; it was removed there and is read again from its source", where)
        assert self._cache is not None, "a remote tar can be open only through the cache"
        self._cache.discard(self.tars[shard])
        self._open.pop(shard, None)

    def __getstate__(self) -> dict[str, Any]:
        """Return the state without open files and threads, which another process cannot use."""
        return {**self.__dict__, "_open": {}, "_ahead": None}


class _OpenShard:
    """An open file. It is closed when it is no longer referenced."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        weakref.finalize(self, os.close, descriptor)

    def read(self, start: int, num_bytes: int) -> NDArray[np.uint8]:
        """Read `num_bytes` bytes from offset `start`; fewer if the file ends before."""
        data = np.empty(num_bytes, np.uint8)
        return data[: os.preadv(self.descriptor, [data.data], start)]
