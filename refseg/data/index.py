"""The index of a dataset. It stores some splits as flat arrays, with the tar and offset of each image.

No Python object exists per row or image. A dataset of millions of images is a few dozen arrays, which are mapped from
the dataset's index files (`refseg.dataset.split_index`). The arrays of several splits are joined in memory.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from jaxtyping import UInt8
from numpy.typing import NDArray
from torch import Tensor

from refseg.data.decode import decode_rgb
from refseg.dataset.built import BuiltDataset
from refseg.dataset.descriptor import Descriptor
from refseg.dataset.index_checks import strings_of
from refseg.dataset.index_file import ARRAYS, MASKS, split_tars
from refseg.dataset.index_rows import STRINGS, Arrays, continued
from refseg.dataset.shard_cache import Tar
from refseg.dataset.shard_files import HEADER_BYTES, ShardFiles
from refseg.dataset.split_index import SplitIndex, open_split_index
from refseg.errors import DatasetError, ImageError
from refseg.wording import counted

_OF_FILES = (
    "num_runs", "mask_start", MASKS, "mask_xxh3", "manifest_start", "manifest_xxh3", "tar_start", "tar_bytes",
)  # fmt: skip
"""Arrays of an index file that only `SplitIndex` reads."""


class SentenceIds(NamedTuple):
    """The ids that identify one expression outside this index.

    Attributes:
        split: Split to which the ref of the expression belongs.
        ref_id: Id of the ref in the source.
        image_id: COCO image id.
        sent_id: Id of the sentence in the source.
    """

    split: str
    ref_id: int
    image_id: int
    sent_id: int


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class ManifestIndex:
    """Some splits of one dataset, as flat arrays over rows (refs), sentences, and images.

    Rows are in the order of the manifests, and sentences are in the order of their rows. The rows of one image are
    adjacent. A "position" counts from 0 within this index. An "id" comes from the source.

    Attributes:
        folder: Path or URL of the dataset's folder.
        descriptor: Content of `refseg.json`.
        splits: Names of the splits, in the dataset's order.
        datasets: Dataset ids that rows may have. They are the members of a mix, or the dataset itself.
        digest: SHA-256 of the descriptor's digest and the splits. Equal digests mean the same samples in the same
            order.
        order_key: SHA-256 of the descriptor's `order_key` and the splits. It is the key for the order of an epoch.

        ref_id: `(rows,)` int64.
        row_split: `(rows,)` int16, position in `splits`.
        row_dataset: `(rows,)` int16, position in `datasets`.
        row_image: `(rows,)` int64, position of the ref's image.
        no_target: `(rows,)` bool.
        category: `(rows,)` strings.
        source_rank: `(rows,)` int64, position of each ref in its source.
        sentence_start: `(rows + 1,)` int64, position of each row's first sentence. The last entry is the number of
            sentences.

        sent_id: `(sentences,)` int64.
        sent: `(sentences,)` strings as cleaned by the dataset's authors.
        sentence_exists: `(sentences,)` bool. False if the sentence names nothing in the image, so that its target is
            empty.
        token_start: `(sentences + 1,)` int64, position in `tokens` of each sentence's first id.
        tokens: uint16 ids of all sentences, with SOS and EOS.

        image_id: `(images,)` int64. An image that has refs in several splits appears once for each split.
        file_name: `(images,)` strings.
        height: `(images,)` int32, pixels.
        width: `(images,)` int32, pixels.
        row_start: `(images + 1,)` int64, position of each image's first row.
        shards: The tars, including those of image pools.
        image_shard: `(images,)` int32, position in `shards`.
        image_offset: `(images,)` int64, offset of the JPEG in the tar, in bytes.
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
    source_rank: NDArray[np.int64]
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

    _parts: tuple[SplitIndex, ...]
    """The open index files of the splits, from which masks are read one at a time."""
    _files: ShardFiles = field(init=False)

    def __post_init__(self) -> None:
        # The dataclass is frozen because the index is a value; this assignment is part of its construction.
        object.__setattr__(self, "_files", ShardFiles(self.shards))

    @classmethod
    def open(cls, folder: Path | str, splits: Sequence[str]) -> "ManifestIndex":
        """Map the index of some splits.

        When a machine opens a dataset for the first time, its hashes are compared (see `open_split_index`).

        Args:
            folder: Path or URL of a finished dataset.
            splits: Names of splits. The order does not matter.

        Raises:
            DatasetError: If the dataset is unfinished or was built with another tokenizer. If a file of the dataset or
                of an image pool is not the one that the descriptor names.
            UsageError: If `splits` is empty or the dataset does not have one of them.
            StorageError: If remote storage refuses access or fails.
        """
        dataset = BuiltDataset.open(folder, splits, with_tokenizer=True)
        parts = tuple(open_split_index(dataset, split) for split in dataset.splits)
        digest, order_key = (
            hashlib.sha256(json.dumps([of_dataset, dataset.splits]).encode()).hexdigest()
            for of_dataset in (dataset.descriptor.digest, dataset.descriptor.order_key)
        )
        return cls(
            folder=dataset.place.address,
            descriptor=dataset.descriptor,
            splits=dataset.splits,
            datasets=dataset.dataset_ids,
            digest=digest,
            order_key=order_key,
            shards=dataset.tars(_tars(parts)),
            _parts=parts,
            **_join(parts),
        )

    def __getstate__(self) -> dict[str, Any]:
        """Return the state without the arrays. The receiving process maps the arrays from the index files."""
        return {name: value for name, value in self.__dict__.items() if name not in _joined_names()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.__dict__.update(_join(self._parts))

    def __repr__(self) -> str:
        return (
            f"<ManifestIndex of {self.descriptor.dataset} {'+'.join(self.splits)}: {counted(self.num_rows, 'ref')}, "
            f"{counted(self.num_sentences, 'sentence')}, {counted(self.num_images, 'image')}>"
        )

    @property
    def num_rows(self) -> int:
        """Number of refs."""
        return len(self.ref_id)

    @property
    def num_sentences(self) -> int:
        """Number of expressions over all refs."""
        return len(self.sent_id)

    @property
    def num_images(self) -> int:
        """Number of images. An image with refs in several splits counts once for each split."""
        return len(self.image_id)

    def size(self, row: int) -> tuple[int, int]:
        """Original `(height, width)` of a row's image and mask, in pixels."""
        image = self.row_image.item(row)
        return self.height.item(image), self.width.item(image)

    def ids(self, row: int, sentence: int) -> SentenceIds:
        """Ids of a row's sentence. `sentence` counts from 0 within the row."""
        return SentenceIds(
            split=self.splits[self.row_split[row]],
            ref_id=int(self.ref_id[row]),
            image_id=int(self.image_id[self.row_image[row]]),
            sent_id=int(self.sent_id[self.sentence_start[row] + sentence]),
        )

    def text(self, row: int, sentence: int) -> str:
        """The cleaned text of a row's sentence, from which its token ids were made."""
        return str(self.sent[int(self.sentence_start[row] + sentence)])

    def token_ids(self, row: int, sentence: int) -> NDArray[np.uint16]:
        """CLIP BPE ids of a row's sentence with SOS and EOS, neither truncated nor padded."""
        position = self.sentence_start[row] + sentence
        return self.tokens[self.token_start[position] : self.token_start[position + 1]]

    def run_ends(self, row: int, sentence: int | None = None) -> NDArray[np.int64]:
        """The end of each run of a mask, which is the running sum of the run lengths.

        Runs are in column-major order, and the first run consists of zeros. For example, a 2 × 2 mask whose second
        column is object has the run lengths 2, 2 and the ends 2, 4.

        Args:
            row: Row of the ref.
            sentence: Position of the sentence within the row. The target of this sentence is returned. It is an empty
                mask if the sentence names nothing in the image. If None, the ref's mask is returned.

        Returns:
            `(runs,)` pixel positions. The last one is height × width.

        Raises:
            DamageError: If the mask is not the one that was built.
        """
        if sentence is not None and not self.sentence_exists[self.sentence_start.item(row) + sentence]:
            height, width = self.size(row)
            return np.array([height * width])
        split = self.row_split.item(row)
        return self._parts[split].run_ends(row - sum(len(part.arrays["ref_id"]) for part in self._parts[:split]))

    def counts(self, row: int, sentence: int | None = None) -> NDArray[np.uint32]:
        """Run lengths of a mask in column-major order. The first run is zeros, and the sum is height × width.

        The arguments and errors are the same as for `run_ends`, which is faster.
        """
        return np.diff(self.run_ends(row, sentence), prepend=0).astype(np.uint32)

    def target_mask(self, row: int, sentence: int | None = None) -> UInt8[np.ndarray, "h w"]:
        """A mask at the image's original size, in which 1 is object. The memory order is column-major.

        The arguments and errors are the same as for `run_ends`.
        """
        height, width = self.size(row)
        counts = self.counts(row, sentence)
        return np.repeat((np.arange(len(counts)) & 1).astype(np.uint8), counts).reshape(width, height).T

    def read_image_bytes(self, image: int) -> bytes:
        """The bytes of an image's JPEG, unchanged from the source.

        Raises:
            DatasetError: If the tar is missing or truncated. If the bytes differ from those that were built.
        """
        return self._read(image).tobytes()

    def decode_image(self, image: int) -> UInt8[Tensor, "3 h w"]:
        """An image as RGB, 0 to 255 (see `decode.decode_rgb`).

        Raises:
            DatasetError: If the image cannot be read (see `read_image_bytes`) or is not a JPEG.
        """
        try:
            return decode_rgb(self._read(image))
        except ImageError as error:
            raise DatasetError(f"{self._where(image)}: {error}; `refseg verify` the dataset") from error

    @property
    def is_remote(self) -> bool:
        """True if at least one tar is at a URL."""
        return any(tar.is_remote for tar in self.shards)

    def fetch_ahead(self, images: NDArray[np.int64]) -> None:
        """Start to download remote tars in the background, as many as fit into this machine's cache.

        Args:
            images: Positions of the images that will be read first, in order. The tars of these images are downloaded
                first.
        """
        shards, first = np.unique(self.image_shard[images], return_index=True)
        self._files.fetch_ahead(dict.fromkeys([*shards[np.argsort(first)].tolist(), *range(len(self.shards))]))

    def check_ahead(self, *, wait: bool = False) -> None:
        """Raise an error that occurred in the background after `fetch_ahead`.

        Args:
            wait: True to wait until all tars are downloaded.

        Raises:
            DatasetError: If an object is missing. If two downloads of an object both differ from the tar that was
                built.
            StorageError: If the storage refuses access or fails.
        """
        self._files.check_ahead(wait=wait)

    def _read(self, image: int) -> NDArray[np.uint8]:
        """Read an image's JPEG.

        The whole sample is read, because the recorded hash also covers the tar headers and the JSON. The size in the
        JPEG's header is compared with the size in the index.
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
            # The size is checked before decoding: a small file may declare a size that takes gigabytes.
            self.shards[shard].check_picture(jpeg.data, (int(self.height[image]), int(self.width[image])))
        except ImageError as error:
            raise DatasetError(f"{self._where(image)}: {error}; `refseg verify` the dataset") from error
        return jpeg

    def _where(self, image: int) -> str:
        return f"{self.shards[self.image_shard[image]]}: image {self.image_id[image]} ({self.file_name[image]})"


def _tars(parts: Sequence[SplitIndex]) -> list[str]:
    """Return the names of the tars in several indexes, without duplicates."""
    return list(dict.fromkeys(tar for part in parts for tar in split_tars(part.arrays)))


def _join(parts: Sequence[SplitIndex]) -> dict[str, Any]:
    """Join the arrays of several splits in order. The result has the fields of `ManifestIndex`."""
    of_parts = [{name: values for name, values in part.arrays.items() if name not in _OF_FILES} for part in parts]
    sizes = [len(arrays["ref_id"]) for arrays in of_parts]
    if len(parts) == 1:
        joined = of_parts[0]
        row_split = np.broadcast_to(np.int16(0), sizes[0])  # a broadcast scalar takes no memory per row
    else:
        joined = _concatenate(of_parts, _tars(parts), [split_tars(part.arrays) for part in parts])
        row_split = np.repeat(np.arange(len(parts), dtype=np.int16), sizes)
    strings = {name: strings_of(joined, name) for name in STRINGS}
    of_strings = {f"{name}_{part}" for name in STRINGS for part in ("start", "bytes")}
    numbers = {name: values for name, values in joined.items() if name not in of_strings}
    return {**numbers, **strings, "row_split": row_split}


def _concatenate(of_parts: Sequence[Arrays], tars: Sequence[str], tars_of_parts: Sequence[Sequence[str]]) -> Arrays:
    pieces: dict[str, list[NDArray[Any]]] = {}
    lengths: dict[str, int] = {}
    for arrays, names in zip(of_parts, tars_of_parts, strict=True):
        numbers = np.array([tars.index(name) for name in names], np.int32)
        for name, values in continued({**arrays, "image_shard": numbers[arrays["image_shard"]]}, dict(lengths)):
            pieces.setdefault(name, []).append(values)
            lengths[name] = lengths.get(name, 0) + len(values)
    return {name: np.concatenate(found) for name, found in pieces.items()}


def _joined_names() -> frozenset[str]:
    return frozenset([*ARRAYS, *STRINGS, "row_split"])
