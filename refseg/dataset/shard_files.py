"""The tars behind an index, local or remote: whole samples, each checked by its hash.

A remote tar is read from the node's cache once it is there, and by one ranged request a sample until then. So a run
starts at once, and a dataset larger than the cache is read without the cache's content being replaced all the time.
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
"""Of a tar member: a sample starts so far before its JPEG."""
_MAX_OPEN_SHARDS = 256  # descriptors a process holds; the usual limit is 1,024
_REMEDY = "copy the shard again from its source or build the dataset again"


class ShardFiles:
    """Tars by number, each opened on first use in each process; reading needs no lock.

    Attributes:
        tars: All of them.
        cached: Positions of the remote ones that the cache has room for: the first of them.
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
        """`(num_bytes,)` bytes of a whole sample, writable.

        Args:
            shard: Position of the tar.
            start: Of the sample in the tar.
            num_bytes: Of the sample: headers, JPEG, JSON, padding.
            xxh3: XXH3-64 of those bytes.
            where: The sample in words, for messages.

        Raises:
            DatasetError: If the tar is missing or cut short, or the bytes are not those that were built; of a remote
                tar they are asked for once more before.
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
                f"{where}: found {len(sample)} bytes at offset {start}, expected {num_bytes}: the shard is cut short; "
                f"{_REMEDY}"
            )
        if found != xxh3:
            raise DatasetError(
                f"{where}: found a sample with XXH3 {found:016x}, expected {xxh3:016x}: the shard is damaged or "
                f"another's; {_REMEDY}"
            )
        return sample

    def fetch_ahead(self, shards: Iterable[int]) -> None:
        """Begin to bring remote tars into the cache in the background, instead of what was begun before.

        Args:
            shards: Positions, in the order in which they will be needed; those that are local or that the cache has
                no room for are passed over.
        """
        if self._ahead is not None:
            self._ahead.stop()
            self._ahead = None
        wanted = [self.tars[number] for number in shards if number in self.cached]
        if wanted and self._cache is not None:
            self._ahead = ReadAhead(self._cache, wanted)

    def check_ahead(self, *, wait: bool = False) -> None:
        """Raise what the background met.

        Args:
            wait: Until all that was asked for is in the cache.

        Raises:
            DatasetError: If an object is missing, or twice another than was built.
            StorageError: If storage refuses or fails.
        """
        if self._ahead is not None:
            if wait:
                self._ahead.join()
            self._ahead.check()

    def _choose(self, remote: Sequence[int], cache: ShardCache) -> frozenset[int]:
        """The first tars, as many as fit."""
        sizes = np.array([self.tars[number].num_bytes for number in remote])
        num_fitting = int(np.searchsorted(np.cumsum(sizes), cache.limit_bytes, side="right"))
        if num_fitting < len(remote):
            here, all_bytes = int(sizes[:num_fitting].sum()), int(sizes.sum())
            logger.warning(
                "%s and %d more remote shards hold %.3f GB, the cache %s at most %.3f GB: in every epoch %.3f GB will "
                "be read over the network, one request an image. Give the cache a larger disk or limit (REFSEG_CACHE, "
                "%s), copy the dataset to this machine, or stream it (refseg.data.webdataset)",
                self.tars[remote[0]], len(remote) - 1, all_bytes / 1e9, cache.folder, cache.limit_bytes / 1e9,
                (all_bytes - here) / 1e9, LIMIT_VARIABLE,
            )  # fmt: skip
        return frozenset(remote[:num_fitting])

    def _opened(self, shard: int) -> "_OpenShard | None":
        """A tar of this machine, open; None if it is a remote one that is not in the cache."""
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
        """Remove a tar from the cache that is not what was put there."""
        logger.warning("%s: damaged in the cache; removed there and read anew", where)
        assert self._cache is not None, "only what came out of the cache is dropped from it"
        self._cache.discard(self.tars[shard])
        self._open.pop(shard, None)

    def __getstate__(self) -> dict[str, Any]:
        """Without open files and threads, which mean nothing in another process."""
        return {**self.__dict__, "_open": {}, "_ahead": None}


class _OpenShard:
    """An open file; closed when nothing refers to it."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        weakref.finalize(self, os.close, descriptor)

    def read(self, start: int, num_bytes: int) -> NDArray[np.uint8]:
        """At most `num_bytes` from `start`; fewer where the file ends."""
        data = np.empty(num_bytes, np.uint8)
        return data[: os.preadv(self.descriptor, [data.data], start)]
