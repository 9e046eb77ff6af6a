"""Finds one picture under several identities: equal bytes in several splits, or under several image ids.

Two spellings of a path, a link, a copy, or two records of one file give a picture two ids. With one of them in `train`
and one in `val`, a score is not of unseen pictures. Pictures that were saved again have other bytes and are not found.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from refseg.dataset.descriptor import ShardEntry
from refseg.dataset.manifest_reader import read_unchecked
from refseg.dataset.schema import CUSTOM
from refseg.errors import DatasetError
from refseg.storage import Folder

_NAMED = 5
_IMAGE = np.dtype([("hash", ">u8"), ("image_id", np.int64), ("shard", np.int32)])


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedImage:
    """One picture and where it is.

    Attributes:
        splits: Those that hold it, in the dataset's order.
        image_ids: Those it has, ascending.
        file_names: Those it has, sorted.
    """

    splits: tuple[str, ...]
    image_ids: tuple[int, ...]
    file_names: tuple[str, ...]

    def __str__(self) -> str:
        ids = f"image {self.image_ids[0]}" if len(self.image_ids) == 1 else f"images {_join(self.image_ids)}"
        return f"{_join(self.file_names)} ({ids}) in {_join(self.splits)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedImages:
    """Pictures with several identities.

    Attributes:
        num_between_splits: Those in more than one split; of a published dataset only under several image ids, for a
            partition may put one image into several splits (refcocog/google).
        num_within_split: Those under several image ids within one split.
        first: Some of them, those in several splits first.
    """

    num_between_splits: int = 0
    num_within_split: int = 0
    first: tuple[SharedImage, ...] = ()

    def describe(self) -> str:
        """What was found and what to do; empty if nothing was."""
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
            "; name each picture in one way and keep all its refs in one split"
        )


def find_shared_images(folder: Folder, dataset_id: str, shards: Sequence[ShardEntry]) -> SharedImages:
    """Compare the hashes of all pictures of a built dataset.

    Args:
        folder: The dataset's.
        dataset_id: Whether it is a user's own; the images of a mix have one id in each of its datasets and are not
            compared.
        shards: Those that have manifests.

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
    """Images of one hash after the other; they are sorted by it."""
    for _, places in groupby(range(len(images)), key=lambda place: images["hash"][place]):
        yield images[list(places)]


def _read_images(folder: Folder, shards: Sequence[ShardEntry], number: int) -> NDArray[np.void]:
    table = read_unchecked(folder, shards[number], ["image_id", "image_xxh3"])
    images = np.empty(table.num_rows, _IMAGE)
    try:
        images["hash"] = np.frombuffer(bytes.fromhex("".join(table["image_xxh3"].to_pylist())), ">u8")
    except (ValueError, TypeError) as error:
        name = folder.join(f"{shards[number].name}.parquet")
        raise DatasetError(f"{name}: found image_xxh3 that are not hashes; see `refseg verify`") from error
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
