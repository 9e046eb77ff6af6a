"""The index of a split in one file, which readers map into memory instead of reading manifests.

The file is in the format of safetensors: the length of a header, the header in JSON, and the arrays one after the
other. Ours have one order, by the size of their numbers, so that each lies where its kind of number may lie; packed
masks, most of the file, are the last. The header is as it has to be for the arrays' lengths, so equal manifests give
equal bytes, and a reader takes no position from the file.
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
"""The last array. Each mask has its hash in `mask_xxh3`, which is compared whenever the mask is read."""
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
"""Arrays by the kind of their numbers, in the order of the file; all are little-endian."""
_NAMES = {
    "int64": "I64", "uint64": "U64", "int32": "I32", "int16": "I16", "uint16": "U16", "bool": "BOOL", "uint8": "U8",
}  # fmt: skip
"""What safetensors calls a kind of number."""
ARRAYS = {name: np.dtype(kind).newbyteorder("<") for kind, names in _KINDS.items() for name in names}
"""The kind of each array."""
_ALIGNMENT = 64
_MOST_HEADER_BYTES = 1 << 16
_COPIED_BYTES = 1 << 22


def write_indexes(place: Folder, descriptor: Descriptor, stage: Path) -> tuple[IndexEntry, ...]:
    """Write and publish the index of each split of a dataset whose manifests are there.

    Args:
        place: The dataset's folder.
        descriptor: Descriptor of the dataset, without indexes.
        stage: Folder of this machine for files in the making; on the same file system if `place` is local.

    Returns:
        What the descriptor says of them.

    Raises:
        DamageError: If a manifest is another than was built, or has rows that the format forbids.
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
    """Writes an index, manifest by manifest, into files of which the index is put together at the end.

    Args:
        scratch: Folder for those files, which the caller removes.
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
        """Append a manifest."""
        before = dict(self._lengths)
        numbers = [self._tars.setdefault(tar, len(self._tars)) for tar in rows.tars]
        arrays = {**rows.arrays, "image_shard": np.array(numbers, np.int32)[rows.arrays["image_shard"]]}
        for name, values in continued(arrays, before):
            self._write(name, values)

    def finish(self, path: Path, split: str) -> IndexEntry:
        """Put the file together.

        Args:
            path: The new file.
            split: Whose index it is.
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
    """The arrays of an index file, read-only and without a copy.

    Args:
        data: The bytes of the file: a memory map, or bytes.

    Raises:
        DatasetError: If they are not an index; the message names no file.
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
    """What the rows of an index call their tars."""
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
