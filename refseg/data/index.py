"""The index of a dataset: its manifests as flat arrays, and where each image lies.

Nothing here is per-object Python: a dataset of millions of images is a few dozen arrays. Those of a large dataset are
files of this machine, written when it is first opened, that all processes map; those of a small one are in memory.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from jaxtyping import UInt8
from numpy.typing import NDArray
from torch import Tensor

from refseg.data.decode import decode_rgb
from refseg.data.flat_arrays import (
    STRINGS,
    Arrays,
    FlatManifest,
    flatten,
    flatten_masks,
    join_in_memory,
    read_all,
    refuse_repeats,
    strings_of,
)
from refseg.data.index_cache import MASK_CHECK, StoredIndex, open_stored
from refseg.dataset.built import BuiltDataset
from refseg.dataset.descriptor import Descriptor, ShardEntry
from refseg.dataset.index_rows import read_manifest, read_masks
from refseg.dataset.shard_cache import Tar
from refseg.dataset.shard_files import HEADER_BYTES, ShardFiles
from refseg.errors import DatasetError, ImageError
from refseg.storage import is_remote, open_folder
from refseg.wording import counted

_STORED_FROM_BYTES = 8_000_000  # of Parquet, read in half a second; half of RefCOCO
_MASKS_LATER_FROM_BYTES = 100_000_000  # read in more than a second; 80,000 images


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

    The run lengths of a large dataset's masks are most of it; those of a manifest are brought into these arrays when
    one of them is asked for by `counts`.

    Attributes:
        folder: Of the dataset: its path or URL.
        descriptor: What `refseg.json` says.
        splits: In the dataset's order.
        datasets: Dataset ids the rows may be of: the members of a mix, or the dataset alone.
        digest: SHA-256 of the descriptor's digest and the splits: the same samples in the same order.
        order_key: The same of the descriptor's `order_key`; the order of an epoch is keyed by it.

        ref_id: `(rows,)` int64.
        row_split: `(rows,)` int16, position in `splits`.
        row_dataset: `(rows,)` int16, position in `datasets`.
        row_image: `(rows,)` int64, position of the ref's image.
        no_target: `(rows,)` bool.
        category: `(rows,)` strings.
        mask_span: `(2 * rows,)` int64, where each row's run lengths start and end in `mask_counts`, in turn; 0 until
            they are there.
        mask_counts: uint32 run lengths, column-major, zeros first.
        manifest_start: `(manifests + 1,)` int64, where each manifest's rows start.
        manifest_counts_start: `(manifests + 1,)` int64, where each manifest's run lengths start in `mask_counts`.
        sentence_start: `(rows + 1,)` int64, where each row's sentences start.

        sent_id: `(sentences,)` int64.
        sent: `(sentences,)` strings as cleaned by the dataset's authors.
        sentence_exists: `(sentences,)` bool, False: it names nothing in the image, and its target is empty.
        token_start: `(sentences + 1,)` int64, where each sentence's ids start in `tokens`.
        tokens: uint16 ids with SOS and EOS.

        image_id: `(images,)` int64; an image that has refs in several splits is there once for each.
        file_name: `(images,)` strings.
        height: `(images,)` int32, pixels.
        width: `(images,)` int32, pixels.
        row_start: `(images + 1,)` int64, where each image's rows start.
        shards: The tars, those of image pools among them.
        image_shard: `(images,)` int32, position in `shards`.
        image_offset: `(images,)` int64, of the JPEG in the tar.
        image_bytes: `(images,)` int64, length of the JPEG.
        sample_bytes: `(images,)` int64, length of the whole sample (headers, JPEG, JSON, padding).
        sample_xxh3: `(images,)` uint64, XXH3-64 of the whole sample.
    """

    folder: str
    descriptor: Descriptor
    splits: tuple[str, ...]
    datasets: tuple[str, ...]
    digest: str
    order_key: str

    ref_id: NDArray[np.int64]
    row_split: NDArray[np.int16]
    row_dataset: NDArray[np.int16]
    row_image: NDArray[np.int64]
    no_target: NDArray[np.bool_]
    category: pa.LargeStringArray
    mask_span: NDArray[np.int64]
    mask_counts: NDArray[np.uint32]
    manifest_start: NDArray[np.int64]
    manifest_counts_start: NDArray[np.int64]
    sentence_start: NDArray[np.int64]

    sent_id: NDArray[np.int64]
    sent: pa.LargeStringArray
    sentence_exists: NDArray[np.bool_]
    token_start: NDArray[np.int64]
    tokens: NDArray[np.uint16]

    image_id: NDArray[np.int64]
    file_name: pa.LargeStringArray
    height: NDArray[np.int32]
    width: NDArray[np.int32]
    row_start: NDArray[np.int64]
    shards: tuple[Tar, ...]
    image_shard: NDArray[np.int32]
    image_offset: NDArray[np.int64]
    image_bytes: NDArray[np.int64]
    sample_bytes: NDArray[np.int64]
    sample_xxh3: NDArray[np.uint64]

    _files: ShardFiles = field(init=False)
    _manifests: tuple[ShardEntry, ...] = field(init=False)
    _stored: StoredIndex | None = field(init=False, default=None)
    """The files behind the arrays; None: they are in memory."""

    def __post_init__(self) -> None:
        # The dataclass is frozen because the index is a value; this is part of its construction.
        object.__setattr__(self, "_files", ShardFiles(self.shards))
        object.__setattr__(self, "_manifests", _manifests_of(self.descriptor, self.splits))

    @classmethod
    def open(cls, folder: Path | str, splits: Sequence[str]) -> "ManifestIndex":
        """Read the manifests of some splits, or map what an earlier opening of a large dataset made of them.

        Args:
            folder: Of a finished dataset: a path or a URL.
            splits: Names of splits; their order does not matter.

        Raises:
            DatasetError: If the dataset is unfinished, made with another tokenizer, or its files, or those of its
                image pools, are not those the descriptor names.
            UsageError: If the dataset has no such split, or none is asked for.
            StorageError: If remote storage refuses or fails.
        """
        dataset = BuiltDataset.open(folder, splits, with_tokenizer=True)
        place, descriptor, chosen, entries = dataset.place, dataset.descriptor, dataset.splits, dataset.entries
        datasets = dataset.dataset_ids
        digest, order_key = (
            hashlib.sha256(json.dumps([of_dataset, chosen]).encode()).hexdigest()
            for of_dataset in (descriptor.digest, descriptor.order_key)
        )

        def read(*, with_masks: bool) -> Iterator[FlatManifest]:
            def read_one(entry: ShardEntry) -> FlatManifest:
                table, num_run_lengths = read_manifest(place, entry, descriptor, with_masks=with_masks)
                return flatten(table, num_run_lengths, split=chosen.index(entry.split), datasets=datasets)

            return refuse_repeats(place.address, read_all(read_one, entries))

        stored = None
        parquet_bytes = sum(entry.parquet_bytes for entry in entries)
        if parquet_bytes >= _STORED_FROM_BYTES:
            # What came over a network would have to come again.
            with_masks = parquet_bytes < _MASKS_LATER_FROM_BYTES or is_remote(place.address)
            stored = open_stored(place, entries, digest, lambda: read(with_masks=with_masks))
        arrays, names = (stored.arrays(), stored.tars) if stored else join_in_memory(read(with_masks=True))
        index = cls(
            folder=place.address,
            descriptor=descriptor,
            splits=chosen,
            datasets=datasets,
            digest=digest,
            order_key=order_key,
            shards=dataset.tars(names),
            **_fields(arrays),
        )
        object.__setattr__(index, "_stored", stored)
        return index

    def __getstate__(self) -> dict[str, Any]:
        """Without what the receiving process can map."""
        state = dict(self.__dict__)
        for name in _fields(self._stored.arrays()) if self._stored else ():
            del state[name]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if self._stored:
            self.__dict__.update(_fields(self._stored.arrays()))

    def __repr__(self) -> str:
        return (
            f"<ManifestIndex of {self.descriptor.dataset} {'+'.join(self.splits)}: {counted(self.num_rows, 'ref')}, "
            f"{counted(self.num_sentences, 'sentence')}, {counted(self.num_images, 'image')}>"
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

    def counts(self, row: int, sentence: int | None = None) -> NDArray[np.uint32]:
        """Run lengths of a mask: column-major, zeros first; their sum is height × width.

        Args:
            row: Of the ref.
            sentence: The target of this sentence, which is empty if the sentence names nothing; None: of the ref.

        Raises:
            DatasetError: If they have to be read and the manifest is another than was built.
        """
        height, width = self.size(row)
        if sentence is not None and not self.sentence_exists[self.sentence_start[row] + sentence]:
            return np.array([height * width], np.uint32)
        start, end = self.mask_span[2 * row : 2 * row + 2].tolist()
        counts = self.mask_counts[start:end]
        if self._stored is not None and self._stored.has_holes:
            manifest = int(np.searchsorted(self.manifest_start, row, side="right")) - 1
            # Not there yet; or another process is writing them just now; or damaged.
            if not self._stored.has_masks(manifest) or counts.sum() != height * width:
                return self._read_counts(manifest, row)
        return counts

    def target_mask(self, row: int, sentence: int | None = None) -> UInt8[np.ndarray, "h w"]:
        """A mask at the image's original size: 1 is object. The memory is column-major. Arguments as of `counts`."""
        height, width = self.size(row)
        counts = self.counts(row, sentence)
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

    @property
    def is_remote(self) -> bool:
        """True if some shards lie at URLs."""
        return any(tar.is_remote for tar in self.shards)

    def fetch_ahead(self, images: NDArray[np.int64]) -> None:
        """Begin to bring remote shards to this machine, as many as its cache has room for.

        Args:
            images: The first that will be read, in order; the shards of all others follow theirs.
        """
        shards, first = np.unique(self.image_shard[images], return_index=True)
        self._files.fetch_ahead(dict.fromkeys([*shards[np.argsort(first)].tolist(), *range(len(self.shards))]))

    def check_ahead(self, *, wait: bool = False) -> None:
        """Raise what `fetch_ahead` met in the background.

        Args:
            wait: Until all its shards are here.

        Raises:
            DatasetError: If an object is missing, or twice another than was built.
            StorageError: If storage refuses or fails.
        """
        self._files.check_ahead(wait=wait)

    def _read(self, image: int) -> NDArray[np.uint8]:
        """The JPEG of an image, out of its whole sample: a sample whose JSON or headers changed is another's.

        Its header says the size that its rows do.
        """
        shard = int(self.image_shard[image])
        sample = self._files.read_sample(
            shard,
            start=int(self.image_offset[image]) - HEADER_BYTES,
            num_bytes=int(self.sample_bytes[image]),
            xxh3=int(self.sample_xxh3[image]),
            where=self._where(image),
        )
        jpeg = sample[HEADER_BYTES : HEADER_BYTES + int(self.image_bytes[image])]
        try:
            # Checked before decoding: a small file may claim a size that takes gigabytes.
            self.shards[shard].check_picture(jpeg.data, (int(self.height[image]), int(self.width[image])))
        except ImageError as error:
            raise DatasetError(f"{self._where(image)}: {error}; `refseg verify` the dataset") from error
        return jpeg

    def _read_counts(self, manifest: int, row: int) -> NDArray[np.uint32]:
        """The run lengths of a row out of its manifest, all of which are brought into the index."""
        assert self._stored is not None, "in memory all are there"
        spans, counts = flatten_masks(read_masks(open_folder(self.folder), self._manifests[manifest]))
        self._stored.fill_masks(manifest, spans, counts)
        start, end = spans[2 * (row - int(self.manifest_start[manifest])) :][:2].tolist()
        return counts[start:end].copy()  # not the whole manifest's

    def _where(self, image: int) -> str:
        return f"{self.shards[self.image_shard[image]]}: image {self.image_id[image]} ({self.file_name[image]})"


def _manifests_of(descriptor: Descriptor, splits: Sequence[str]) -> tuple[ShardEntry, ...]:
    return tuple(entry for entry in descriptor.shards if entry.split in splits)


def _fields(arrays: Arrays) -> dict[str, Any]:
    """Arrays as `ManifestIndex` has them: strings put together."""
    of_strings = {f"{name}_{part}" for name in STRINGS for part in ("start", "bytes")} | {MASK_CHECK}
    numbers = {name: array for name, array in arrays.items() if name not in of_strings}
    return {**numbers, **{name: strings_of(arrays, name) for name in STRINGS}}
