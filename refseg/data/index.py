"""The index of a dataset: its manifests as flat arrays, and where each image lies.

Nothing here is per-object Python: a dataset of millions of images is a few dozen arrays, which worker processes share
with their parent (fork) or receive once (spawn).
"""

import hashlib
import json
import os
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash
from jaxtyping import UInt8
from numpy.typing import NDArray
from torch import Tensor

from refseg import tokenizer
from refseg.data.decode import decode_rgb
from refseg.descriptor import Descriptor, ShardEntry, load_descriptor
from refseg.errors import DatasetError, ImageError, UsageError

_COLUMNS = [
    "ref_id", "image_id", "file_name", "height", "width", "category", "no_target", "mask", "sentences",
    "shard", "image_offset", "image_bytes", "image_xxh3",
]  # fmt: skip
_MAX_OPEN_SHARDS = 256  # descriptors a process holds; the usual limit is 1,024


class SentenceIds(NamedTuple):
    """What names one expression outside this index.

    Attributes:
        split: Of its ref.
        ref_id: Id in the source.
        image_id: COCO image id.
        sent_id: Id in the source.
    """

    split: str
    ref_id: int
    image_id: int
    sent_id: int


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class ManifestIndex:
    """Some splits of one dataset, as flat arrays over rows (refs), sentences, and images.

    Rows are in the order of the manifests; sentences in the order of their rows; the rows of one image are adjacent.
    A "position" counts from 0 within this index; an "id" is the source's.

    Attributes:
        folder: Of the dataset.
        descriptor: What `refseg.json` says.
        splits: In the dataset's order.
        digest: SHA-256 of the descriptor's digest and the splits: the same samples in the same order.

        ref_id: `(rows,)` int64.
        row_split: `(rows,)` int16, position in `splits`.
        row_image: `(rows,)` int64, position of the ref's image.
        no_target: `(rows,)` bool.
        category: `(rows,)` strings.
        mask_start: `(rows + 1,)` int64, where each row's run lengths start in `mask_counts`.
        mask_counts: uint32 run lengths, column-major, zeros first.
        sentence_start: `(rows + 1,)` int64, where each row's sentences start.

        sent_id: `(sentences,)` int64.
        raw: `(sentences,)` strings as annotated.
        sent: `(sentences,)` strings as cleaned by the dataset's authors.
        token_start: `(sentences + 1,)` int64, where each sentence's ids start in `tokens`.
        tokens: uint16 ids with SOS and EOS.

        image_id: `(images,)` int64; an image that has refs in several splits is there once for each.
        file_name: `(images,)` strings.
        height: `(images,)` int32, pixels.
        width: `(images,)` int32, pixels.
        row_start: `(images + 1,)` int64, where each image's rows start.
        shards: File names of the tars.
        image_shard: `(images,)` int32, position in `shards`.
        image_offset: `(images,)` int64, of the JPEG in the tar.
        image_bytes: `(images,)` int64, length of the JPEG.
        image_xxh3: `(images,)` uint64, XXH3-64 of the JPEG.
    """

    folder: Path
    descriptor: Descriptor
    splits: tuple[str, ...]
    digest: str

    ref_id: NDArray[np.int64]
    row_split: NDArray[np.int16]
    row_image: NDArray[np.int64]
    no_target: NDArray[np.bool_]
    category: pa.StringArray
    mask_start: NDArray[np.int64]
    mask_counts: NDArray[np.uint32]
    sentence_start: NDArray[np.int64]

    sent_id: NDArray[np.int64]
    raw: pa.StringArray
    sent: pa.StringArray
    token_start: NDArray[np.int64]
    tokens: NDArray[np.uint16]

    image_id: NDArray[np.int64]
    file_name: pa.StringArray
    height: NDArray[np.int32]
    width: NDArray[np.int32]
    row_start: NDArray[np.int64]
    shards: tuple[str, ...]
    image_shard: NDArray[np.int32]
    image_offset: NDArray[np.int64]
    image_bytes: NDArray[np.int64]
    image_xxh3: NDArray[np.uint64]

    _open_shards: dict[int, "_OpenShard"] = field(default_factory=dict, init=False)

    @classmethod
    def open(cls, folder: Path, splits: Sequence[str]) -> "ManifestIndex":
        """Read the manifests of some splits.

        Args:
            folder: Of a finished dataset.
            splits: Names of splits; their order does not matter.

        Raises:
            DatasetError: If the dataset is unfinished, made with another tokenizer, or its files are not those the
                descriptor names.
            UsageError: If the dataset has no such split, or none is asked for.
        """
        descriptor = load_descriptor(folder)
        if descriptor.tokenizer != tokenizer.IDENTITY:
            raise DatasetError(
                f"{folder}: its token ids were made by tokenizer {descriptor.tokenizer}, expected "
                f"{tokenizer.IDENTITY}; build the dataset again with this release"
            )
        if unknown := [split for split in splits if split not in descriptor.splits]:
            raise UsageError(
                f"{folder}: {descriptor.dataset} has no split {', '.join(map(repr, unknown))}; "
                f"expected some of {', '.join(descriptor.splits)}"
            )
        if not splits:
            raise UsageError(f"{folder}: no split was asked for; expected some of {', '.join(descriptor.splits)}")
        chosen = tuple(split for split in descriptor.splits if split in splits)
        entries = [entry for entry in descriptor.shards if entry.split in chosen]
        tables = [_read_manifest(folder, entry) for entry in entries]
        split_of_shard = np.array([chosen.index(entry.split) for entry in entries], np.int16)
        digest = hashlib.sha256(json.dumps([descriptor.digest, chosen]).encode()).hexdigest()
        return cls(
            folder=folder,
            descriptor=descriptor,
            splits=chosen,
            digest=digest,
            row_split=np.repeat(split_of_shard, [table.num_rows for table in tables]),
            **_flatten(folder, pa.concat_tables(tables)),
        )

    def __repr__(self) -> str:
        return (
            f"<ManifestIndex of {self.descriptor.dataset} {'+'.join(self.splits)}: {self.num_rows} refs, "
            f"{self.num_sentences} sentences, {self.num_images} images>"
        )

    @property
    def num_rows(self) -> int:
        """Refs."""
        return len(self.ref_id)

    @property
    def num_sentences(self) -> int:
        """Expressions over all refs."""
        return len(self.sent_id)

    @property
    def num_images(self) -> int:
        """Images; one with refs in several splits counts once for each."""
        return len(self.image_id)

    def size(self, row: int) -> tuple[int, int]:
        """Original `(height, width)` of a row's image and mask, in pixels."""
        image = self.row_image[row]
        return int(self.height[image]), int(self.width[image])

    def ids(self, row: int, sentence: int) -> SentenceIds:
        """Ids of a row's sentence; `sentence` counts from 0 within the row."""
        return SentenceIds(
            split=self.splits[self.row_split[row]],
            ref_id=int(self.ref_id[row]),
            image_id=int(self.image_id[self.row_image[row]]),
            sent_id=int(self.sent_id[self.sentence_start[row] + sentence]),
        )

    def text(self, row: int, sentence: int) -> str:
        """The cleaned text of a row's sentence: what its token ids stand for."""
        return str(self.sent[int(self.sentence_start[row] + sentence)])

    def token_ids(self, row: int, sentence: int) -> NDArray[np.uint16]:
        """CLIP BPE ids of a row's sentence with SOS and EOS, neither cut nor padded."""
        position = self.sentence_start[row] + sentence
        return self.tokens[self.token_start[position] : self.token_start[position + 1]]

    def counts(self, row: int) -> NDArray[np.uint32]:
        """Run lengths of a row's mask: column-major, zeros first; their sum is height × width."""
        return self.mask_counts[self.mask_start[row] : self.mask_start[row + 1]]

    def target_mask(self, row: int) -> UInt8[np.ndarray, "h w"]:
        """A row's mask at the image's original size: 1 is object. The memory is column-major."""
        height, width = self.size(row)
        counts = self.counts(row)
        return np.repeat((np.arange(len(counts)) & 1).astype(np.uint8), counts).reshape(width, height).T

    def read_image_bytes(self, image: int) -> bytes:
        """The JPEG of an image, exactly as the source had it.

        Raises:
            DatasetError: If the tar is missing or cut short, or the bytes are not those that were built.
        """
        return self._read(image).tobytes()

    def decode_image(self, image: int) -> UInt8[Tensor, "3 h w"]:
        """An image as RGB, 0 to 255 (see `decode.decode_rgb`).

        Raises:
            DatasetError: If it cannot be read (see `read_image_bytes`) or is no JPEG.
        """
        try:
            return decode_rgb(self._read(image))
        except ImageError as error:
            raise DatasetError(f"{self._where(image)}: {error}; `refseg verify` the dataset") from error

    def _read(self, image: int) -> NDArray[np.uint8]:
        shard = int(self.image_shard[image])
        data = np.empty(int(self.image_bytes[image]), np.uint8)
        num_read = os.preadv(self._descriptor_of(shard), [data.data], int(self.image_offset[image]))
        if num_read != len(data):
            raise DatasetError(
                f"{self._where(image)}: found {num_read} bytes at offset {self.image_offset[image]}, expected "
                f"{len(data)}: the shard is cut short; copy it again from its source or build the dataset again"
            )
        found = xxhash.xxh3_64_intdigest(data.data)
        if found != self.image_xxh3[image]:
            raise DatasetError(
                f"{self._where(image)}: found bytes with XXH3 {found:016x}, expected "
                f"{int(self.image_xxh3[image]):016x}: the shard is damaged; copy it again from its source or build "
                "the dataset again"
            )
        return data

    def _where(self, image: int) -> str:
        name = self.shards[self.image_shard[image]]
        return f"{self.folder / name}: image {self.image_id[image]} ({self.file_name[image]})"

    def _descriptor_of(self, shard: int) -> int:
        """File descriptor of a tar, opened on first use in each process; `pread` needs no lock on it."""
        opened = self._open_shards.get(shard)
        if opened is None:
            while len(self._open_shards) >= _MAX_OPEN_SHARDS:
                self._open_shards.pop(next(iter(self._open_shards)))
            opened = self._open_shards[shard] = _OpenShard(self.folder / self.shards[shard])
        return opened.descriptor

    def __getstate__(self) -> dict[str, Any]:
        """Without the open files, which mean nothing in another process."""
        return {**self.__dict__, "_open_shards": {}}


class _OpenShard:
    """A tar open for reading; closed when nothing refers to it."""

    def __init__(self, path: Path) -> None:
        try:
            self.descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise DatasetError(f"{path}: cannot be opened ({error.strerror}); copy or build the shard again") from error
        weakref.finalize(self, os.close, self.descriptor)


def _read_manifest(folder: Path, entry: ShardEntry) -> pa.Table:
    """Read one manifest, after checking that it and its tar are the descriptor's.

    The tar is checked by size only: hashing it would read the whole dataset, and each image is checked when read.
    """
    remedy = "the dataset was changed after it was built; `refseg verify` it, then copy or build it again"
    for suffix, expected in (("tar", entry.tar_bytes), ("parquet", entry.parquet_bytes)):
        path = folder / f"{entry.name}.{suffix}"
        try:
            found = path.stat().st_size
        except OSError as error:
            raise DatasetError(
                f"{path}: cannot be read ({error.strerror}), expected {expected} bytes; {remedy}"
            ) from error
        if found != expected:
            raise DatasetError(f"{path}: found {found} bytes, expected {expected}; {remedy}")
    data = (folder / f"{entry.name}.parquet").read_bytes()
    if (sha256 := hashlib.sha256(data).hexdigest()) != entry.parquet_sha256:
        raise DatasetError(
            f"{folder / entry.name}.parquet: found sha256 {sha256}, expected {entry.parquet_sha256}; {remedy}"
        )
    return pq.read_table(pa.BufferReader(data), columns=_COLUMNS)


def _flatten(folder: Path, table: pa.Table) -> dict[str, Any]:
    """Turn the rows of all manifests into the flat arrays of `ManifestIndex`."""
    columns = {name: table.column(name).combine_chunks() for name in table.column_names}
    sentences = columns["sentences"].flatten()
    token_lists = sentences.field("token_ids")
    count_lists = columns["mask"].field("counts")
    shards = columns["shard"].dictionary_encode()
    row_shard = _numbers(shards.indices)

    # Rows of one image are adjacent: a new image starts where the place in the tars changes.
    offset = _numbers(columns["image_offset"])
    is_first = np.ones(table.num_rows, np.bool_)
    is_first[1:] = (offset[1:] != offset[:-1]) | (row_shard[1:] != row_shard[:-1])
    first_row = np.flatnonzero(is_first)

    def of_image(name: str) -> NDArray[Any]:
        return _numbers(columns[name])[first_row]

    hashes = columns["image_xxh3"].take(pa.array(first_row))
    try:
        image_xxh3 = np.frombuffer(bytes.fromhex("".join(hashes.to_pylist())), ">u8").astype(np.uint64)
    except ValueError as error:
        raise DatasetError(f"{folder}: column image_xxh3 holds no hash ({error}); build the dataset again") from error
    return {
        "ref_id": _numbers(columns["ref_id"]),
        "row_image": np.cumsum(is_first) - 1,
        "no_target": _numbers(columns["no_target"]),
        "category": columns["category"],
        "mask_start": _starts(count_lists),
        "mask_counts": _numbers(count_lists.flatten()),
        "sentence_start": _starts(columns["sentences"]),
        "sent_id": _numbers(sentences.field("sent_id")),
        "raw": sentences.field("raw"),
        "sent": sentences.field("sent"),
        "token_start": _starts(token_lists),
        "tokens": _numbers(token_lists.flatten()),
        "image_id": of_image("image_id"),
        "file_name": columns["file_name"].take(pa.array(first_row)),
        "height": of_image("height"),
        "width": of_image("width"),
        "row_start": np.append(first_row, table.num_rows),
        "shards": tuple(shards.dictionary.to_pylist()),
        "image_shard": row_shard[first_row],
        "image_offset": offset[first_row],
        "image_bytes": of_image("image_bytes"),
        "image_xxh3": image_xxh3,
    }


def _numbers(array: pa.Array) -> NDArray[Any]:
    return array.to_numpy(zero_copy_only=False)


def _starts(lists: pa.ListArray) -> NDArray[np.int64]:
    """Where each list starts in the flattened values; one more: where the last ends."""
    offsets = _numbers(lists.offsets).astype(np.int64)
    return offsets - offsets[0]
