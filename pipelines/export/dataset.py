"""A finished dataset as exporters read it: rows shard by shard, JPEGs checked by their hash."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import xxhash

from refseg.compat.file_names import path_inside
from refseg.compat.refer_records import ReferTables, learn_names, refer_categories
from refseg.dataset.descriptor import Descriptor, ShardEntry, load_descriptor, unknown_split
from refseg.dataset.image_pools import pool_address
from refseg.dataset.manifest_reader import read_columns
from refseg.dataset.schema import find_dataset
from refseg.errors import DatasetError, UsageError
from refseg.storage import Folder, open_folder

LOCATION = ("shard", "image_offset", "image_bytes", "image_xxh3")
"""Columns that `BuiltDataset.image` needs."""


class BuiltDataset:
    """One finished dataset, or some of its splits.

    Attributes:
        place: Its folder.
        descriptor: What `refseg.json` says.
        spec: Which dataset.
        entries: The shards of the splits asked for.

    Args:
        folder: Path or URL.
        splits: Which splits; None: all.

    Raises:
        UsageError: If it is a mix, holds pictures made smaller, or has no such split.
        DatasetError: If it is unfinished.
    """

    def __init__(self, folder: Path | str, splits: Sequence[str] | None = None) -> None:
        self.place: Folder = open_folder(folder)
        self.descriptor: Descriptor = load_descriptor(folder)
        if self.descriptor.mix:
            members = ", ".join(member.dataset for member in self.descriptor.mix)
            raise UsageError(
                f"{folder}: is a mix, and ids of different datasets collide in other projects' files; "
                f"export its members ({members})"
            )
        if (stored := self.descriptor.smaller_images) is not None:
            raise UsageError(
                f"{folder}: its pictures were made to fit {stored.height} x {stored.width} pixels, expected those that "
                "masks and boxes were drawn on; build the dataset without --store"
            )
        if unknown := sorted(set(splits or ()) - set(self.descriptor.splits)):
            raise UsageError(f"--splits: {unknown_split(folder, self.descriptor, unknown[0])}")
        self.spec = find_dataset(self.descriptor.dataset)
        self.entries: tuple[ShardEntry, ...] = tuple(
            entry for entry in self.descriptor.shards if splits is None or entry.split in splits
        )
        self._pools: dict[str, Folder] = {"": self.place}

    @property
    def splits(self) -> tuple[str, ...]:
        """Splits asked for, in the dataset's order."""
        return tuple(dict.fromkeys(entry.split for entry in self.entries))

    def rows(self, entry: ShardEntry, columns: Sequence[str]) -> list[dict[str, Any]]:
        """Rows of one shard, as plain values.

        Args:
            entry: The shard.
            columns: Names, of nested ones with their path.

        Raises:
            DatasetError: If the manifest is missing or another than was built.
        """
        rows: list[dict[str, Any]] = read_columns(self.place, entry, self.descriptor, columns).to_pylist()
        return rows

    def categories(self, tables: ReferTables) -> list[dict[str, Any]]:
        """Category records of the whole dataset, whatever splits were asked for, so that files of all splits agree.

        Args:
            tables: Of some rows; COCO's own categories are all in them already.
        """
        return tables.categories if self.spec.is_coco else self._all_categories

    @cached_property
    def _all_categories(self) -> list[dict[str, Any]]:
        names: dict[int, str] = {}
        for entry in self.descriptor.shards:
            for row in self.rows(entry, ("category", "annotations.list.element.category_id")):
                learn_names(names, row)
        return refer_categories(names, self.spec)

    def image(self, row: Mapping[str, Any]) -> bytes:
        """The JPEG of a row.

        Raises:
            DatasetError: If its tar is missing, or it is not the JPEG that was built.
            StorageError: If storage refuses or fails.
        """
        pool, _, tar = row["shard"].rpartition("/")
        folder = self._pool(pool)
        where = f"{folder.join(tar)}: image {row['image_id']}"
        try:
            data = folder.read(tar, row["image_offset"], row["image_bytes"])
        except FileNotFoundError as error:
            raise DatasetError(f"{where}: found no such tar; copy or build the dataset again") from error
        if xxhash.xxh3_64_hexdigest(data) != row["image_xxh3"]:
            raise DatasetError(f"{where}: is not the image that was built; see `refseg verify`, then build again")
        return data

    def _pool(self, name: str) -> Folder:
        if name not in self._pools:
            pool = next((pool for pool in self.descriptor.image_pools if pool.name == name), None)
            if pool is None:
                raise DatasetError(f"{self.place}: rows lie in pool {name!r}, of which refseg.json does not know")
            self._pools[name] = open_folder(pool_address(pool, self.place.address))
        return self._pools[name]


class ImageWriter:
    """Writes images as files, each once.

    Args:
        dataset: Where they come from.
        folder: Where they go.
    """

    def __init__(self, dataset: BuiltDataset, folder: Path) -> None:
        self._dataset = dataset
        self._folder = folder
        self._written: dict[str, int] = {}

    def write(self, row: Mapping[str, Any]) -> None:
        """Write the image of a row under its own name.

        Raises:
            DatasetError: If its name leads out of the folder, or is another image's, too.
        """
        file_name, image_id = row["file_name"], row["image_id"]
        known = self._written.setdefault(file_name, image_id)
        path = path_inside(self._folder, file_name)
        if known != image_id:
            raise DatasetError(
                f"{self._dataset.place}: images {known} and {image_id} have one file name, {file_name!r}; "
                "expected a name for each; build the dataset from files with names of their own"
            )
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(self._dataset.image(row))
