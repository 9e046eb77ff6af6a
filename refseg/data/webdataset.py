"""Streams tars with the `webdataset` library, for storage without range requests or tars without manifests.

Each expression of the shards still occurs exactly once per epoch over all ranks and workers. Otherwise streaming is
less exact than `loader.RefLoader`:

- Order: shards are shuffled, but images are shuffled only within a buffer. The sentences of an image are adjacent.
- Division: ranks and workers take whole shards, so they get unequal numbers of samples. Some get none if there are
  fewer shards than ranks × workers. An epoch ends on each rank when its shards end, so DDP training needs `join`.
- Counting: there is no length and no cursor. A resumed run starts the epoch again. Hashes are not checked, but
  truncated tars are detected.
- Mixes: weights have no effect, and `expressions_per_image` is not available.

A tar holds only the refs of the dataset that wrote it. Therefore `tar_urls` and `stream` refuse a dataset whose images
are in the tars of another dataset (image pool, mix).
"""

import io
import random
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import webdataset as wds
from jaxtyping import Bool, Int64, UInt8
from torch import Tensor
from webdataset.tariterators import group_by_keys, tar_file_expander

from refseg import tokenizer
from refseg.data.decode import decode_rgb
from refseg.data.transforms import Geometry
from refseg.dataset.built import BuiltDataset, refuse_other_tokenizer
from refseg.dataset.descriptor import DESCRIPTOR_NAME, Descriptor, load_descriptor
from refseg.dataset.file_checks import tar_name
from refseg.dataset.schema import MAX_PIXELS, MAX_SIDE
from refseg.errors import DatasetError, ImageError, StorageError, UsageError
from refseg.jpeg_header import jpeg_size
from refseg.json_text import parse_json
from refseg.storage import is_remote, open_folder

_TAR_END_BYTES = 1024
_REMEDY = "copy the shard again from its source or build the dataset again"
_BLOCK_BYTES = 8 << 20  # size of one request for a remote tar


class StreamSample(NamedTuple):
    """One expression with its image and target. torch's default collation stacks them into batches."""

    image: UInt8[Tensor, "3 H W"]
    """RGB, 0 to 255, resized by the geometry; expressions of one image share the memory."""
    mask: UInt8[Tensor, "H W"]
    """Target at the network's size: 1 is object, 0 is not; empty if the sentence names nothing."""
    token_ids: Int64[Tensor, "L"]
    """CLIP BPE ids: SOS, words, EOS (kept when truncated), then zeros."""
    token_mask: Bool[Tensor, "L"]
    """True from SOS to EOS."""
    image_id: int
    ref_id: int
    sent_id: int


def tar_urls(folder: Path | str, splits: Sequence[str]) -> list[str]:
    """Return the paths or URLs of a dataset's tars, for `stream`.

    Args:
        folder: Folder of a finished dataset, as a path or URL.
        splits: Names of splits.

    Raises:
        DatasetError: If the dataset is unfinished, damaged, or made with another tokenizer.
        UsageError: If the dataset does not have a split, or `splits` is empty. If images are in another dataset's tars.
        StorageError: If storage refuses or fails.
    """
    dataset = BuiltDataset.open(folder, splits, with_tokenizer=True)
    _refuse_pools(folder, dataset.descriptor)
    return [dataset.place.join(tar_name(entry)) for entry in dataset.entries]


def stream(
    urls: Sequence[str],
    *,
    geometry: Geometry,
    num_tokens: int,
    shuffle_images: int = 0,
    seed: int = 0,
    epoch: int = 0,
) -> Iterable[StreamSample]:
    """Stream one epoch of expressions, with the shards divided among ranks and workers.

    The result is meant for a torch `DataLoader`.

    Args:
        urls: Tars, given as paths or URLs. fsspec URLs such as `s3://bucket/train-00000.tar` are read in blocks, and
            failed requests are repeated. `http:`, `https:` and `pipe:` are opened by the library and read in one
            request.
        geometry: Geometry from the original picture to the network's input.
        num_tokens: Number of tokens L of a sentence. Longer sentences are truncated but keep EOS.
        shuffle_images: Number of images in the shuffle buffer. 0 keeps the order of shards and images.
        seed: Seed of the shuffling.
        epoch: Number of the epoch. It changes the shuffling. Create a new stream for each epoch.

    Raises:
        UsageError: If `urls` is empty. If a local tar belongs to a dataset with images in another dataset's tars.
        DatasetError: If a local tar belongs to a dataset that another tokenizer made.
    """
    if not urls:
        raise UsageError("found no tar to stream; expected at least one URL")
    for folder in sorted({Path(url).parent for url in urls if ":" not in url}):
        if (folder / DESCRIPTOR_NAME).is_file():
            descriptor = load_descriptor(folder)
            refuse_other_tokenizer(folder, descriptor)
            _refuse_pools(folder, descriptor)
    urls = list(urls)
    rng = random.Random(f"{seed} {epoch}")
    if shuffle_images:
        rng.shuffle(urls)  # before the division and with the same seed on all ranks; otherwise ranks would overlap

    return wds.DataPipeline(
        wds.SimpleShardList(urls),
        wds.split_by_node,
        wds.split_by_worker,
        _members,
        group_by_keys,
        *([wds.shuffle(shuffle_images, initial=shuffle_images, rng=rng)] if shuffle_images else []),
        partial(_expressions, geometry=geometry, num_tokens=num_tokens),
    )


def _refuse_pools(folder: Path | str, descriptor: Descriptor) -> None:
    """Refuse a dataset with images in another dataset's tars.

    The JSON in those tars does not contain the refs of this dataset.
    """
    if descriptor.image_pools:
        others = ", ".join(f"{pool.dataset} ({pool.path})" for pool in descriptor.image_pools)
        raise UsageError(
            f"{folder}: {descriptor.dataset} has images in the tars of {others}, whose JSON does not contain its refs, "
            "so it cannot be streamed; read it with ManifestIndex and RefLoader, or build it without --images-from"
        )


def _members(sources: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Open each tar and yield its members.

    This replaces the library's opener, which has three faults. It does not support fsspec. It leaves a file descriptor
    open for each shard. It accepts a tar that is truncated between two members.

    Raises:
        DatasetError: If a tar is missing, truncated or damaged.
        StorageError: If storage refuses or fails.
    """
    for source in sources:
        url = source["url"]
        by_library = not is_remote(url) or url.partition(":")[0] in ("http", "https", "pipe")
        try:
            with wds.gopen(url) if by_library else io.BufferedReader(_RemoteFile(url), _BLOCK_BYTES) as opened:
                watched = _Watched(opened)
                yield from tar_file_expander([{**source, "stream": watched}])
                watched.check_end()
        except StorageError:
            raise
        except FileNotFoundError as error:
            raise DatasetError(f"{url}: found no such tar; copy the shard again or build the dataset again") from error
        except tarfile.ReadError as error:
            found = str(error.args[0]).partition(" @ ")[0]  # the library adds its stream's repr
            raise DatasetError(f"{url}: {found}: the tar is truncated or damaged; {_REMEDY}") from error


class _Watched:
    """A stream that remembers its last bytes. A complete tar ends with two blocks of zeros, but a sample never does."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._end = b""

    def read(self, size: int = -1) -> bytes:
        data: bytes = self._stream.read(size)
        self._end = (self._end + data[-_TAR_END_BYTES:])[-_TAR_END_BYTES:]
        return data

    def check_end(self) -> None:
        """Read the rest of the stream and check that it ends like a tar.

        Raises:
            ReadError: If the last bytes are not two blocks of zeros.
        """
        while self.read(1 << 16):
            pass
        if self._end != bytes(_TAR_END_BYTES):
            raise tarfile.ReadError("found no end-of-archive mark")


class _RemoteFile(io.RawIOBase):
    """A remote file that is read in order. Each read is one request. A failed request is repeated.

    The methods raise `FileNotFoundError` if the file is missing, and `StorageError` if storage refuses access or fails.
    """

    def __init__(self, url: str) -> None:
        folder, _, self._name = url.rpartition("/")
        self._folder = open_folder(folder)
        self._position = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        block = self._folder.read(self._name, self._position, len(buffer))
        buffer[: len(block)] = block
        self._position += len(block)
        return len(block)


def _expressions(samples: Iterable[dict[str, Any]], *, geometry: Geometry, num_tokens: int) -> Iterator[StreamSample]:
    """Yield all expressions of the tars' samples. Each picture is decoded once.

    Raises:
        DatasetError: If a sample lacks its JPEG or JSON. If the JSON does not follow the format. If the picture cannot
            be decoded.
    """
    for sample in samples:
        where = f"{sample['__url__']}: sample {sample['__key__']}"
        try:
            facts = parse_json(sample["json"])
            size = _read_size(facts)
            image = geometry.apply_image(_decode(sample["jpg"], size), size)
            yield from _expressions_of(facts, size, image, geometry=geometry, num_tokens=num_tokens)
        except KeyError as error:
            raise DatasetError(
                f"{where}: found no member {error}, expected jpg and json; stream refseg's shards"
            ) from error
        except ImageError as error:
            raise DatasetError(f"{where}: {error}; check the dataset with `refseg verify`") from error
        except (ValueError, TypeError, OverflowError) as error:
            raise DatasetError(
                f"{where}: found JSON that does not follow refseg's format ({error}); check the dataset with "
                "`refseg verify`"
            ) from error


def _expressions_of(
    facts: dict[str, Any],
    size: tuple[int, int],
    image: UInt8[Tensor, "3 H W"],
    *,
    geometry: Geometry,
    num_tokens: int,
) -> Iterator[StreamSample]:
    for ref in facts["refs"]:
        run_ends = np.cumsum(np.array(ref["mask"]["counts"], np.uint32), dtype=np.int64)
        if tuple(ref["mask"]["size"]) != size or not run_ends.size or run_ends[-1] != size[0] * size[1]:
            raise ValueError(f"the mask of ref {ref['ref_id']} does not have the image's size")
        mask = torch.from_numpy(geometry.apply_mask(run_ends, size))
        empty = torch.zeros_like(mask)
        for sentence in ref["sentences"]:
            cut = tokenizer.truncate(sentence["token_ids"], num_tokens)
            if not all(type(i) is int for i in (facts["image_id"], ref["ref_id"], sentence["sent_id"])):
                raise ValueError("the ids of an expression are not whole numbers")
            if type(sentence["exists"]) is not bool:
                raise ValueError(f"the field exists of sentence {sentence['sent_id']} is not a boolean")
            if len(cut) < 2 or not all(type(i) is int and 0 <= i < tokenizer.VOCAB_SIZE for i in cut):
                raise ValueError(f"the token_ids of sentence {sentence['sent_id']} are not the tokenizer's")
            token_ids = torch.zeros(num_tokens, dtype=torch.int64)
            token_ids[: len(cut)] = torch.tensor(cut)
            yield StreamSample(
                image=image,
                mask=mask if sentence["exists"] else empty,
                token_ids=token_ids,
                token_mask=torch.arange(num_tokens) < len(cut),
                image_id=facts["image_id"],
                ref_id=ref["ref_id"],
                sent_id=sentence["sent_id"],
            )


def _read_size(facts: Any) -> tuple[int, int]:
    """Return the `(height, width)` of a sample's picture. Raise ValueError if it exceeds the format's limits."""
    sides = facts["height"], facts["width"]
    if not all(type(side) is int and 0 < side <= MAX_SIDE for side in sides) or sides[0] * sides[1] > MAX_PIXELS:
        raise ValueError(f"its size is {sides[0]!r:.40} x {sides[1]!r:.40}")
    return sides


def _decode(jpeg: bytes, size: tuple[int, int]) -> UInt8[Tensor, "3 h w"]:
    """Decode a picture. It may be smaller than the sample's size, because a tar does not record reduced pictures.

    Raises:
        ImageError: If the picture is larger than the sample's size, or cannot be decoded.
    """
    found = jpeg_size(jpeg)
    if found[0] * found[1] > size[0] * size[1]:
        raise ImageError(
            f"its header says {found[0]} x {found[1]} pixels (height x width), expected {size[0]} x {size[1]} or less"
        )
    return decode_rgb(np.frombuffer(bytearray(jpeg), np.uint8))
