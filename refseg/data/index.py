"""The index of a dataset: some of its splits as flat arrays, and where each image lies.

Nothing here is per-object Python: a dataset of millions of images is a few dozen arrays, which are mapped from the
files that belong to the dataset (`refseg.dataset.split_index`). Those of several splits are joined in memory.
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
"""Arrays of an index file that `SplitIndex` alone reads."""


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
        source_rank: `(rows,)` int64, position of each ref in its source.
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
    """The files of the splits, whose masks are read one at a time."""
    _files: ShardFiles = field(init=False)

    def __post_init__(self) -> None:
        # The dataclass is frozen because the index is a value; this is part of its construction.
        object.__setattr__(self, "_files", ShardFiles(self.shards))

    @classmethod
    def open(cls, folder: Path | str, splits: Sequence[str]) -> "ManifestIndex":
        """Map the index of some splits.

        On the first opening of a dataset on a machine, its hashes are compared (see `open_split_index`).

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
        """Without what the receiving process can map."""
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
        image = self.row_image.item(row)
        return self.height.item(image), self.width.item(image)

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

    def run_ends(self, row: int, sentence: int | None = None) -> NDArray[np.int64]:
        """Where each run of a mask ends: column-major, zeros first; the last is height × width.

        Args:
            row: Row of the ref.
            sentence: The target of this sentence, which is empty if the sentence names nothing; None: of the ref.

        Raises:
            DamageError: If the mask is not the one that was built.
        """
        if sentence is not None and not self.sentence_exists[self.sentence_start.item(row) + sentence]:
            height, width = self.size(row)
            return np.array([height * width])
        split = self.row_split.item(row)
        return self._parts[split].run_ends(row - sum(len(part.arrays["ref_id"]) for part in self._parts[:split]))

    def counts(self, row: int, sentence: int | None = None) -> NDArray[np.uint32]:
        """Run lengths of a mask: column-major, zeros first; their sum is height × width.

        Arguments and errors are those of `run_ends`, which is faster.
        """
        return np.diff(self.run_ends(row, sentence), prepend=0).astype(np.uint32)

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

    def _where(self, image: int) -> str:
        return f"{self.shards[self.image_shard[image]]}: image {self.image_id[image]} ({self.file_name[image]})"


def _tars(parts: Sequence[SplitIndex]) -> list[str]:
    """What rows of any of the splits call their tars, each once."""
    return list(dict.fromkeys(tar for part in parts for tar in split_tars(part.arrays)))


def _join(parts: Sequence[SplitIndex]) -> dict[str, Any]:
    """The arrays of several splits one after the other, as `ManifestIndex` has them."""
    of_parts = [{name: values for name, values in part.arrays.items() if name not in _OF_FILES} for part in parts]
    sizes = [len(arrays["ref_id"]) for arrays in of_parts]
    if len(parts) == 1:
        joined = of_parts[0]
        row_split = np.broadcast_to(np.int16(0), sizes[0])  # which takes no memory
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
