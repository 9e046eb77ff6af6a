"""`BuiltDataset`: every reader opens datasets, compares their files with the descriptor and reads rows through it."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import pyarrow as pa

from refseg import tokenizer
from refseg.dataset.descriptor import (
    DESCRIPTOR_NAME,
    Descriptor,
    ImagePool,
    PoolTar,
    ShardEntry,
    load_descriptor,
    unknown_split,
)
from refseg.dataset.faults import CHANGED, Fault
from refseg.dataset.file_checks import find_file_faults, find_pool_faults, tar_name
from refseg.dataset.image_pools import open_pool
from refseg.dataset.manifest_reader import dataset_ids, read_checked, row_rules
from refseg.dataset.rejects import read_rejects
from refseg.dataset.row_checks import RowRules
from refseg.dataset.shard_cache import Tar
from refseg.errors import DatasetError, UsageError
from refseg.storage import Folder, open_folder


@dataclass(frozen=True, eq=False, kw_only=True)
class BuiltDataset:
    """A finished dataset, or some of its splits.

    `open` compares the names and sizes of the files with the descriptor. Content is compared when it is read:
    manifests by their hash and row by row, the tars of image pools by their size when rows first refer to them, and
    samples by their hash (`ShardFiles`). So every reader refuses a damaged dataset, with the same message for the same
    damage. A `BuiltDataset` constructed from a descriptor without `open` skips only the first comparison.

    Attributes:
        place: The dataset's folder.
        descriptor: Content of `refseg.json`.
        splits: The requested splits, in the dataset's order.
        with_tars: If False, only rows are read, and the tars of the dataset and of its image pools may be missing.
    """

    place: Folder
    descriptor: Descriptor
    splits: tuple[str, ...]
    with_tars: bool = True
    _tars: dict[str, Tar] = field(default_factory=dict, init=False, repr=False)
    """Tars that exist with the expected size, by the `shard` of rows."""
    _pool_sizes: dict[str, dict[str, int]] = field(default_factory=dict, init=False, repr=False)
    """For each pool: sizes of the files in its folder, by name."""

    @classmethod
    def open(
        cls,
        folder: Path | str,
        splits: Sequence[str] | None = None,
        *,
        with_tars: bool = True,
        with_tokenizer: bool = False,
    ) -> "BuiltDataset":
        """Open a dataset and compare its files with its descriptor.

        Args:
            folder: Folder of a finished dataset: a path or a URL.
            splits: Names of the splits whose files must exist, in any order. None: all splits.
            with_tars: If False, tars may be missing, because only rows will be read.
            with_tokenizer: Refuse a dataset whose token ids come from another tokenizer than the models'.

        Raises:
            DatasetError: If the dataset is unfinished, of another format version or made with another tokenizer.
            DamageError: If a file is missing, has another size, or does not belong to the dataset.
            MissingDatasetError: If the folder does not exist.
            UsageError: If the dataset has no such split, or `splits` is empty.
            StorageError: If remote storage refuses or fails.
        """
        descriptor = load_descriptor(folder)
        if with_tokenizer:
            refuse_other_tokenizer(folder, descriptor)
        chosen = _choose_splits(folder, descriptor, splits)
        dataset = cls(place=open_folder(folder), descriptor=descriptor, splits=chosen, with_tars=with_tars)
        sizes = dataset.place.list(descriptor.file_names)
        for fault in find_file_faults(sizes, descriptor, dataset.entries, with_tars=with_tars):
            raise fault.error(dataset.place)
        return dataset

    @property
    def entries(self) -> tuple[ShardEntry, ...]:
        """The shards of the requested splits, in order."""
        return tuple(entry for entry in self.descriptor.shards if entry.split in self.splits)

    def entries_of(self, split: str) -> tuple[ShardEntry, ...]:
        """Return the shards of one of the requested splits, in order."""
        return tuple(entry for entry in self.entries if entry.split == split)

    @property
    def dataset_ids(self) -> tuple[str, ...]:
        """Dataset ids that may occur in rows. They are the members of a mix, or the dataset itself."""
        return dataset_ids(self.descriptor)

    @property
    def own_tars(self) -> tuple[PoolTar, ...]:
        """The tars in the dataset's own folder."""
        return tuple(
            PoolTar(name=tar_name(entry), num_bytes=entry.tar_bytes, sha256=entry.tar_sha256)
            for entry in self.descriptor.shards
            if entry.num_samples
        )

    def read(self, columns: Sequence[str], entries: Iterable[ShardEntry] | None = None) -> pa.Table:
        """Read columns of manifests, check all their rows, and return the rows as one table.

        Args:
            columns: Names of columns. A part of a nested column is named by its path: `sentences.list.element.sent`.
            entries: Shards of the dataset, at least one. None means the shards of all requested splits.

        Returns:
            The rows with the named columns. A nested column holds the named parts; annotations always hold all parts.

        Raises:
            DamageError: If a manifest differs from the one that was built or has rows that the format forbids, or if a
                tar of an image pool that the rows refer to is missing or differs.
            DatasetError: If an image pool is on a host that is not allowed.
            StorageError: If storage refuses or fails.
        """
        names = list(dict.fromkeys(name.partition(".")[0] for name in columns))
        chosen = self.entries if entries is None else entries
        return pa.concat_tables([self._read(columns, entry).select(names) for entry in chosen])

    def refuse_smaller_images(self) -> None:
        """Refuse a dataset with reduced pictures, for readers that show pictures together with polygons and boxes.

        Raises:
            UsageError: If the dataset, or an image pool of it, was built with `--store`.
        """
        if (stored := self.descriptor.smaller_images) is not None:
            raise UsageError(
                f"{self.place}: its pictures were reduced to fit {stored.height} x {stored.width} pixels, expected the "
                "original pictures, to which masks and boxes refer; build the dataset without --store"
            )

    def rejects(self) -> pa.Table:
        """Read the rejected refs of all splits, with the columns of `rejects.REJECTS_SCHEMA`.

        Raises:
            DamageError: If the file is missing or differs from the one that was built.
            StorageError: If storage refuses or fails.
        """
        return read_rejects(self.place, self.descriptor)

    def tars(self, names: Sequence[str]) -> tuple[Tar, ...]:
        """Return the tars with these names, in the dataset's folder or in an image pool.

        Args:
            names: Values of the column `shard`.

        Raises:
            DamageError: If a tar does not exist, or differs from the one that this dataset was built with.
            DatasetError: If an image pool is on a host that is not allowed.
            StorageError: If storage refuses or fails.
        """
        for name in names:
            if name not in self._tars:
                self._tars[name] = self._find_tar(name, names)
        return tuple(self._tars[name] for name in names)

    def _read(self, columns: Sequence[str], entry: ShardEntry) -> pa.Table:
        table = read_checked(self.place, entry, self._row_rules(entry), columns)
        if self.with_tars:
            self.tars(table.column("shard").unique().to_pylist())
        return table

    @cached_property
    def _row_rules(self) -> Callable[[ShardEntry], RowRules]:
        return row_rules(self.descriptor)

    @cached_property
    def _tar_facts(self) -> Mapping[str, tuple[ImagePool | None, PoolTar]]:
        """The pool (None: the dataset itself) and the expected size and hash of each tar, by the `shard` of rows."""
        own = {tar.name: (None, tar) for tar in self.own_tars}
        pools = {f"{pool.name}/{tar.name}": (pool, tar) for pool in self.descriptor.image_pools for tar in pool.tars}
        return {**own, **pools}

    def _find_tar(self, name: str, names: Sequence[str]) -> Tar:
        """Return a tar after comparing its size, if it belongs to a pool.

        The sizes of all `names` of the same pool are requested at once, because they are likely to be needed next.
        """
        if name not in self._tar_facts:
            found, expected = f"rows with images in {name}", f"tars and image pools that {DESCRIPTOR_NAME} names"
            raise Fault(file=DESCRIPTOR_NAME, found=found, expected=expected, remedy=CHANGED).error(self.place)
        pool, tar = self._tar_facts[name]
        folder, stored_images = self.place, self.descriptor.stored_images
        if pool is not None:
            folder, stored_images = open_pool(self.place, pool), pool.stored_images
            sizes = self._pool_sizes.setdefault(pool.name, {})
            if tar.name not in sizes:
                known = [other.partition("/")[2] for other in names if other.startswith(f"{pool.name}/")]
                sizes.update(folder.list(known))
            for fault in find_pool_faults(sizes, pool, [tar]):
                raise fault.error(folder)
        return Tar(
            address=folder.join(tar.name), num_bytes=tar.num_bytes, sha256=tar.sha256, stored_images=stored_images
        )


def _choose_splits(folder: Path | str, descriptor: Descriptor, splits: Sequence[str] | None) -> tuple[str, ...]:
    """Return the requested splits in the dataset's order.

    Raises:
        UsageError: If the dataset has no such split, or `splits` is empty.
    """
    if splits is None:
        return descriptor.splits
    if unknown := [split for split in splits if split not in descriptor.splits]:
        raise UsageError(unknown_split(folder, descriptor, unknown[0]))
    if not splits:
        raise UsageError(f"{folder}: no split was given; expected some of {', '.join(descriptor.splits)}")
    return tuple(split for split in descriptor.splits if split in splits)


def refuse_other_tokenizer(folder: Path | str, descriptor: Descriptor) -> None:
    """Refuse a dataset whose token ids come from another tokenizer than the models'.

    Raises:
        DatasetError: If the tokenizers differ.
    """
    if descriptor.tokenizer != tokenizer.IDENTITY:
        raise DatasetError(
            f"{folder}: its token ids were made by tokenizer {descriptor.tokenizer}, expected "
            f"{tokenizer.IDENTITY}; build the dataset again with this release"
        )
