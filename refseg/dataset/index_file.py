"""The index of a split in one file, which readers map into memory instead of reading manifests.

The file is in the format of safetensors: the length of a header, the header in JSON, and the arrays one after the
other. The arrays have a fixed order, from wide to narrow numbers, so that each begins at a multiple of its number's
size. Packed masks, most of the file, are the last. The header follows from the lengths of the arrays alone. Equal
manifests therefore give equal bytes, and a reader computes all offsets instead of reading them from the file.
"""

import hashlib
import itertools
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from refseg.dataset.descriptor import Descriptor, IndexEntry
from refseg.dataset.index_rows import Arrays, FlatRows, continued, read_flat
from refseg.errors import DatasetError
from refseg.json_text import parse_json
from refseg.storage import Folder

MASKS = "mask_bytes"
"""Name of the last array. Each mask has its hash in `mask_xxh3`, which is compared whenever the mask is read."""
_KINDS = {
    "int64": (
        "ref_id", "source_rank", "row_image", "sentence_start", "category_start", "mask_start", "manifest_start",
        "sent_id", "token_start", "sent_start",
        "image_id", "row_start", "image_offset", "image_bytes", "sample_bytes", "file_name_start", "tar_start",
    ),
    "uint64": ("sample_xxh3", "mask_xxh3", "manifest_xxh3"),
    "int32": ("num_runs", "height", "width", "image_shard"),
    "int16": ("row_dataset",),
    "uint16": ("tokens",),
    "bool": ("no_target", "sentence_exists"),
    "uint8": ("category_bytes", "sent_bytes", "file_name_bytes", "tar_bytes", MASKS),
}  # fmt: skip
"""Names of arrays by the type of their numbers, in the order of the file; all are little-endian."""
_NAMES = {
    "int64": "I64", "uint64": "U64", "int32": "I32", "int16": "I16", "uint16": "U16", "bool": "BOOL", "uint8": "U8",
}  # fmt: skip
"""Names that safetensors has for types of numbers."""
ARRAYS = {name: np.dtype(kind).newbyteorder("<") for kind, names in _KINDS.items() for name in names}
"""The type of each array's numbers."""
_ALIGNMENT = 64
_MOST_HEADER_BYTES = 1 << 16
_COPIED_BYTES = 1 << 22


def write_indexes(place: Folder, descriptor: Descriptor, stage: Path) -> tuple[IndexEntry, ...]:
    """Write and publish the index of each split of a dataset whose manifests are already written.

    Args:
        place: The dataset's folder.
        descriptor: Descriptor of the dataset, without indexes.
        stage: Local folder for unfinished files; it must be on the file system of `place` if that is local.

    Returns:
        The descriptor's entries of the indexes.

    Raises:
        DamageError: If a manifest is not the one that was built, or has rows that the format forbids.
        OSError: If a file cannot be written.
    """
    indexes = []
    for split in descriptor.splits:
        entries = [entry for entry in descriptor.shards if entry.split == split]
        with tempfile.TemporaryDirectory(prefix="tmp-index-", dir=stage) as scratch:
            with IndexWriter(Path(scratch)) as writer:
                for rows in read_flat(place, descriptor, entries):
                    writer.add(rows)
                indexes.append(writer.finish(Path(scratch) / "index", split))
            place.publish(Path(scratch) / "index", indexes[-1].name)
    return tuple(indexes)


class IndexWriter:
    """Writes an index manifest by manifest.

    Each array grows in a file of its own, so memory does not grow with the split; `finish` joins the files.

    Args:
        scratch: Folder for the files of the arrays, which the caller removes.
    """

    def __init__(self, scratch: Path) -> None:
        self._files: dict[str, IO[bytes]] = {name: (scratch / name).open("w+b") for name in ARRAYS}
        self._lengths: dict[str, int] = {}
        self._tars: dict[str, int] = {}

    def __enter__(self) -> "IndexWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for file in self._files.values():
            file.close()

    def add(self, rows: FlatRows) -> None:
        """Append the rows of one manifest."""
        before = dict(self._lengths)
        numbers = [self._tars.setdefault(tar, len(self._tars)) for tar in rows.tars]
        arrays = {**rows.arrays, "image_shard": np.array(numbers, np.int32)[rows.arrays["image_shard"]]}
        for name, values in continued(arrays, before):
            self._write(name, values)

    def finish(self, path: Path, split: str) -> IndexEntry:
        """Join the arrays to the index file.

        Args:
            path: Path of the new file.
            split: Name of the split.

        Returns:
            The descriptor's entry of the index.
        """
        names = [tar.encode() for tar in self._tars]
        self._write("tar_start", np.cumsum([0, *map(len, names)]))
        self._write("tar_bytes", np.frombuffer(b"".join(names), np.uint8))
        sha256, arrays_xxh3 = hashlib.sha256(), xxhash.xxh3_64()
        with path.open("wb") as out:

            def put(data: bytes, *, is_mask: bool = False) -> None:
                out.write(data)
                sha256.update(data)
                if not is_mask:
                    arrays_xxh3.update(data)

            put(_header(self._lengths))
            for name, file in self._files.items():
                file.seek(0)
                while data := file.read(_COPIED_BYTES):
                    put(data, is_mask=name == MASKS)
            num_bytes = out.tell()
        return IndexEntry(
            split=split, num_bytes=num_bytes, sha256=sha256.hexdigest(), arrays_xxh3=arrays_xxh3.hexdigest()
        )

    def _write(self, name: str, values: NDArray[Any]) -> None:
        self._files[name].write(np.ascontiguousarray(values, ARRAYS[name]).data)
        self._lengths[name] = self._lengths.get(name, 0) + len(values)


def map_arrays(data: Any) -> Arrays:
    """Return the arrays of an index file, read-only and without a copy.

    Args:
        data: The content of the file, as a memory map or as bytes.

    Raises:
        DatasetError: If the content is not an index; the message names no file.
    """
    num_bytes = len(data)
    header_bytes = int.from_bytes(data[:8], "little")
    try:
        if not header_bytes <= min(num_bytes - 8, _MOST_HEADER_BYTES):
            raise ValueError("it has no header")
        fields = parse_json(bytes(data[8 : 8 + header_bytes]))
        lengths = {name: fields[name]["shape"][0] for name in ARRAYS}
        if not all(type(length) is int and 0 <= length <= num_bytes for length in lengths.values()):
            raise ValueError("its arrays have no lengths")
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise DatasetError("found a file that is not an index") from error
    header = _header(lengths)
    offset = len(header)
    if bytes(data[:offset]) != header or num_bytes != offset + _num_bytes(lengths):
        raise DatasetError("found arrays of another order or kind than an index has")
    arrays = {}
    for name, kind in ARRAYS.items():
        arrays[name] = np.frombuffer(data, kind, lengths[name], offset)
        offset += lengths[name] * kind.itemsize
    return arrays


def split_tars(arrays: Arrays) -> list[str]:
    """Return the names of an index's tars; `image_shard` has positions in this list."""
    ends, text = arrays["tar_start"].tolist(), arrays["tar_bytes"].tobytes()
    return [text[start:end].decode() for start, end in itertools.pairwise(ends)]


def _header(lengths: Mapping[str, int]) -> bytes:
    fields, offset = {}, 0
    for name, kind in ARRAYS.items():
        end = offset + lengths[name] * kind.itemsize
        fields[name] = {"dtype": _NAMES[kind.name], "shape": [lengths[name]], "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(fields, separators=(",", ":"))
    text += " " * (-(8 + len(text)) % _ALIGNMENT)
    return len(text).to_bytes(8, "little") + text.encode()


def _num_bytes(lengths: Mapping[str, int]) -> int:
    return sum(lengths[name] * kind.itemsize for name, kind in ARRAYS.items())
