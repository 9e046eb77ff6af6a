"""Stores raw records on disk, one file per shard, so that planning holds only one shard in memory."""

import pickle
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipelines.sources.plain_pickle import PlainUnpickler

_BUFFERED_BYTES = 64 << 20
_TOO_DEEP = "a value nested too deep"


class Spill:
    """Entries of plain values in one file per shard. A file is read in the order in which entries were appended.

    Args:
        folder: Folder for the files. It must be empty.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._buffers: dict[int, bytearray] = defaultdict(bytearray)
        self._num_buffered = 0

    def add(self, shard: int, *entry: Any) -> None:
        """Append an entry to a shard's file."""
        try:
            data = pickle.dumps(entry, protocol=5)
        except RecursionError:  # stored in a form that the check rejects
            data = pickle.dumps((*entry[:-1], _flatten(entry[-1])), protocol=5)
        self._buffers[shard] += data
        self._num_buffered += len(data)
        if self._num_buffered > _BUFFERED_BYTES:
            self.flush()

    def flush(self) -> None:
        """Write buffered entries to the files. It must be called before reading."""
        for shard, buffer in self._buffers.items():
            with spill_path(self._folder, shard).open("ab") as file:
                file.write(buffer)
        self._buffers.clear()
        self._num_buffered = 0


def _flatten(record: Any) -> Any:
    """Return a record without nested values. Ids are kept, so that the record can be found and reported."""
    if not isinstance(record, dict):
        return _TOO_DEEP
    fields = {name: value for name, value in record.items() if isinstance(name, str)}
    return {name: value if isinstance(value, str | int | float) else _TOO_DEEP for name, value in fields.items()}


def spill_path(folder: Path, shard: int) -> Path:
    """Return the path of a shard's file. It does not exist if nothing was added."""
    return folder / f"{shard:07d}.pickle"


def read_spill(path: Path) -> Iterator[tuple[Any, ...]]:
    """Yield the entries of a file."""
    with path.open("rb") as file:
        num_bytes = path.stat().st_size
        while file.tell() < num_bytes:
            yield PlainUnpickler(file, path).load()
