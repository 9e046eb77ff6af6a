"""The tars behind an index: open for reading, whole samples checked by their hash."""

import os
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from refseg.errors import DatasetError

HEADER_BYTES = 512
"""Of a tar member: a sample starts so far before its JPEG."""
_MAX_OPEN_SHARDS = 256  # descriptors a process holds; the usual limit is 1,024
_REMEDY = "copy the shard again from its source or build the dataset again"


class ShardFiles:
    """Tars by number, each opened on first use in each process; `pread` needs no lock on them."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = tuple(paths)
        self._open: dict[int, _OpenShard] = {}

    def read_sample(self, shard: int, *, start: int, num_bytes: int, xxh3: int, where: str) -> NDArray[np.uint8]:
        """`(num_bytes,)` bytes of a whole sample, writable.

        Args:
            shard: Position of the tar.
            start: Of the sample in the tar.
            num_bytes: Of the sample: headers, JPEG, JSON, padding.
            xxh3: XXH3-64 of those bytes.
            where: The sample in words, for messages.

        Raises:
            DatasetError: If the tar is missing or cut short, or the bytes are not those that were built.
        """
        sample = np.empty(num_bytes, np.uint8)
        num_read = os.preadv(self._descriptor_of(shard), [sample.data], start)
        if num_read != num_bytes:
            raise DatasetError(
                f"{where}: found {num_read} bytes at offset {start}, expected {num_bytes}: the shard is cut short; "
                f"{_REMEDY}"
            )
        found = xxhash.xxh3_64_intdigest(sample.data)
        if found != xxh3:
            raise DatasetError(
                f"{where}: found a sample with XXH3 {found:016x}, expected {xxh3:016x}: the shard is damaged or "
                f"another's; {_REMEDY}"
            )
        return sample

    def _descriptor_of(self, shard: int) -> int:
        """File descriptor of a tar."""
        opened = self._open.get(shard)
        if opened is None:
            while len(self._open) >= _MAX_OPEN_SHARDS:
                self._open.pop(next(iter(self._open)))
            opened = self._open[shard] = _OpenShard(self.paths[shard])
        return opened.descriptor

    def __getstate__(self) -> dict[str, Any]:
        """Without the open files, which mean nothing in another process."""
        return {**self.__dict__, "_open": {}}


class _OpenShard:
    """A tar open for reading; closed when nothing refers to it."""

    def __init__(self, path: Path) -> None:
        try:
            self.descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise DatasetError(f"{path}: cannot be opened ({error.strerror}); copy or build the shard again") from error
        weakref.finalize(self, os.close, self.descriptor)
