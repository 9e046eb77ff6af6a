"""Finds pictures with equal bytes in several splits or under several image ids.

A picture has two ids if its path is spelt in two ways, if it is linked or copied, or if one file has two records. If
one id is in `train` and the other in `val`, scores are not for unseen pictures. A picture that was saved again has
different bytes and is not found.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from refseg.dataset.descriptor import ShardEntry, load_descriptor
from refseg.dataset.manifest_reader import read_unchecked
from refseg.dataset.schema import CUSTOM
from refseg.errors import DatasetError
from refseg.storage import Folder, open_folder

_NAMED = 5
_IMAGE = np.dtype([("hash", ">u8"), ("image_id", np.int64), ("shard", np.int32)])


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedImage:
    """A picture with all splits, ids and file names in which it occurs.

    Attributes:
        splits: Splits that contain the picture, in the dataset's order.
        image_ids: Image ids of the picture, ascending.
        file_names: File names of the picture, sorted.
    """

    splits: tuple[str, ...]
    image_ids: tuple[int, ...]
    file_names: tuple[str, ...]

    def __str__(self) -> str:
        ids = f"image {self.image_ids[0]}" if len(self.image_ids) == 1 else f"images {_join(self.image_ids)}"
        return f"{_join(self.file_names)} ({ids}) in {_join(self.splits)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedImages:
    """The pictures that occur in several splits or under several ids.

    Attributes:
        num_between_splits: Number of pictures in more than one split. For a published dataset, only pictures with
            several image ids are counted, because the partition may use an image in several splits (refcocog/google).
        num_within_split: Number of pictures with several image ids in one split.
        first: Some of these pictures. Pictures in several splits come first.
    """

    num_between_splits: int = 0
    num_within_split: int = 0
    first: tuple[SharedImage, ...] = ()

    def describe(self) -> str:
        """Return a message with what was found and what to do; empty if there are no shared pictures."""
        counts = (
            (self.num_between_splits, "in several splits"),
            (self.num_within_split, "under several image ids of one split"),
        )
        found = " and ".join(f"{number:,} {where}" for number, where in counts if number)
        if not found:
            return ""
        more = ", ..." if self.num_between_splits + self.num_within_split > len(self.first) else ""
        return (
            f"the same picture (equal bytes) occurs more than once: {found}: {', '.join(map(str, self.first))}{more}"
            "; give each picture one name and keep all its refs in one split"
        )


def describe_shared_images(folder: Path | str) -> str:
    """Return the message of `SharedImages.describe` for a built dataset.

    Args:
        folder: The dataset's folder, or its URL.

    Raises:
        DatasetError: If the dataset is unfinished or damaged.
        StorageError: If remote storage fails.
    """
    descriptor = load_descriptor(folder)
    return find_shared_images(open_folder(folder), descriptor.dataset, descriptor.shards).describe()


def find_shared_images(folder: Folder, dataset_id: str, shards: Sequence[ShardEntry]) -> SharedImages:
    """Compare the hashes of all pictures of a built dataset.

    Pictures are sorted by hash, so that equal pictures are adjacent. Example: for the hashes [a, b, b] and the ids [1,
    2, 3], the two pictures with hash b have different ids, so b is shared.

    Args:
        folder: The dataset's folder.
        dataset_id: Id of the dataset. It shows if the dataset is a user's own or a mix. Pictures of a mix are not
            compared, because each member may have its own id for an image.
        shards: The shards that have manifests.

    Raises:
        DatasetError: If a manifest cannot be read.
        StorageError: If remote storage fails.
    """
    kind = dataset_id.partition("/")[0]
    if kind == "mix":
        return SharedImages()
    images = np.concatenate([np.empty(0, _IMAGE), *(_read_images(folder, shards, n) for n in range(len(shards)))])
    images.sort(order=["hash", "image_id", "shard"])
    splits = {split: number for number, split in enumerate(dict.fromkeys(shard.split for shard in shards))}
    split = np.array([splits[shard.split] for shard in shards], np.int32)[images["shard"]]
    is_other = images["image_id"][1:] != images["image_id"][:-1]
    if kind == CUSTOM:
        is_other |= split[1:] != split[:-1]
    is_shared = np.isin(images["hash"], images["hash"][1:][is_other & (images["hash"][1:] == images["hash"][:-1])])
    between: list[NDArray[np.void]] = []
    within: list[NDArray[np.void]] = []
    for group in _groups(images[is_shared]):
        is_between = len({shards[image["shard"]].split for image in group}) > 1
        (between if is_between else within).append(group)
    return SharedImages(
        num_between_splits=len(between),
        num_within_split=len(within),
        first=tuple(_name(folder, shards, group, list(splits)) for group in (between + within)[:_NAMED]),
    )


def _groups(images: NDArray[np.void]) -> Iterator[NDArray[np.void]]:
    """Yield the images of each hash. `images` must be sorted by hash."""
    for _, positions in groupby(range(len(images)), key=lambda position: images["hash"][position]):
        yield images[list(positions)]


def _read_images(folder: Folder, shards: Sequence[ShardEntry], number: int) -> NDArray[np.void]:
    table = read_unchecked(folder, shards[number], ["image_id", "image_xxh3"])
    images = np.empty(table.num_rows, _IMAGE)
    try:
        images["hash"] = np.frombuffer(bytes.fromhex("".join(table["image_xxh3"].to_pylist())), ">u8")
    except (ValueError, TypeError) as error:
        name = folder.join(f"{shards[number].name}.parquet")
        raise DatasetError(
            f"{name}: found values of image_xxh3 that are not hashes; check the dataset with `refseg verify`"
        ) from error
    images["image_id"] = table["image_id"].to_numpy()
    images["shard"] = number
    return np.unique(images)


def _name(folder: Folder, shards: Sequence[ShardEntry], group: NDArray[np.void], splits: Sequence[str]) -> SharedImage:
    names: set[str] = set()
    for image in group:
        table = read_unchecked(folder, shards[image["shard"]], ["image_id", "file_name"])
        names.update(table.filter(pc.equal(table["image_id"], int(image["image_id"])))["file_name"].to_pylist())
    found = {shards[image["shard"]].split for image in group}
    return SharedImage(
        splits=tuple(split for split in splits if split in found),
        image_ids=tuple(sorted({int(image["image_id"]) for image in group})),
        file_names=tuple(sorted(names)),
    )


def _join(parts: Sequence[object]) -> str:
    words = list(map(str, parts))
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
