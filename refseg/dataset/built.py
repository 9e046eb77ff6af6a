"""A built dataset that is open: the one place where its files are found, compared and read."""

from collections.abc import Iterable, Mapping, Sequence
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
from refseg.dataset.manifest_reader import dataset_ids, read_checked
from refseg.dataset.rejects import read_rejects
from refseg.dataset.shard_cache import Tar
from refseg.errors import DatasetError, UsageError
from refseg.storage import Folder, open_folder


@dataclass(frozen=True, eq=False, kw_only=True)
class BuiltDataset:
    """A finished dataset, or some of its splits.

    `open` compares the names and sizes of the files with the descriptor. Whatever is read later is compared when it is
    read: manifests by their hash and row by row, the tars of image pools by their sizes as soon as rows name them, and
    samples by their hash (`ShardFiles`). So every reader refuses a damaged dataset, with one wording per damage. A
    `BuiltDataset` that is made from a descriptor at hand lacks the first comparison alone.

    Attributes:
        place: Its folder.
        descriptor: What `refseg.json` says.
        splits: The splits asked for, in the dataset's order.
        with_tars: False: rows alone are read, and neither the dataset's tars nor those of image pools need be there.
    """

    place: Folder
    descriptor: Descriptor
    splits: tuple[str, ...]
    with_tars: bool = True
    _tars: dict[str, Tar] = field(default_factory=dict, init=False, repr=False)
    """By what rows call them: tars that were found where they should be."""
    _pool_sizes: dict[str, dict[str, int]] = field(default_factory=dict, init=False, repr=False)
    """By pool: names and bytes of the files in its folder."""

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
            splits: Names of splits, whose files must be there; their order does not matter. None: all.
            with_tars: See the class.
            with_tokenizer: Refuse token ids that another tokenizer made than the one the models read.

        Raises:
            DatasetError: If the dataset is unfinished, of another format version or made with another tokenizer.
            DamageError: If a file is missing, has another size, or is not the dataset's.
            MissingDatasetError: If there is no such folder.
            UsageError: If the dataset has no such split, or none is asked for.
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
        """The shards of the splits asked for, in order."""
        return tuple(entry for entry in self.descriptor.shards if entry.split in self.splits)

    def entries_of(self, split: str) -> tuple[ShardEntry, ...]:
        """The shards of one of the splits."""
        return tuple(entry for entry in self.entries if entry.split == split)

    @property
    def dataset_ids(self) -> tuple[str, ...]:
        """Ids that rows may have: the members of a mix, or the dataset itself."""
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
        """Read columns of the rows of some manifests, one after the other; all rows are checked.

        Args:
            columns: Names, of nested ones with their path: `sentences.list.element.sent`.
            entries: Shards of the dataset, at least one; None: those of all splits asked for.

        Returns:
            The rows, with the columns named; of a nested one with the parts named (annotations are always whole).

        Raises:
            DamageError: If a manifest is another than was built or has rows that the format forbids, or a tar of an
                image pool that the rows name is missing or another.
            DatasetError: If an image pool is on a host that is not allowed.
            StorageError: If storage refuses or fails.
        """
        names = list(dict.fromkeys(name.partition(".")[0] for name in columns))
        chosen = self.entries if entries is None else entries
        return pa.concat_tables([self._read(columns, entry).select(names) for entry in chosen])

    def refuse_smaller_images(self) -> None:
        """Refuse pictures that were made smaller, for a reader that shows them beside polygons and boxes.

        Raises:
            UsageError: If the dataset, or an image pool of it, was built with `--store`.
        """
        if (stored := self.descriptor.smaller_images) is not None:
            raise UsageError(
                f"{self.place}: its pictures were made to fit {stored.height} x {stored.width} pixels, expected those "
                "that masks and boxes were drawn on; build the dataset without --store"
            )

    def rejects(self) -> pa.Table:
        """The refs of the source that became no row (`rejects.REJECTS_SCHEMA`), whatever splits were asked for.

        Raises:
            DamageError: If their file is missing or another than was built.
            StorageError: If storage refuses or fails.
        """
        return read_rejects(self.place, self.descriptor)

    def tars(self, names: Sequence[str]) -> tuple[Tar, ...]:
        """The tars that rows call `names`, in the dataset's folder or in an image pool.

        Raises:
            DamageError: If there is no such tar, or it is another than when this dataset was built.
            DatasetError: If it lies on a host that is not allowed.
            StorageError: If storage refuses or fails.
        """
        for name in names:
            if name not in self._tars:
                self._tars[name] = self._find_tar(name, names)
        return tuple(self._tars[name] for name in names)

    def _read(self, columns: Sequence[str], entry: ShardEntry) -> pa.Table:
        table = read_checked(self.place, entry, self.descriptor, columns)
        if self.with_tars:
            self.tars(table.column("shard").unique().to_pylist())
        return table

    @cached_property
    def _tar_facts(self) -> Mapping[str, tuple[ImagePool | None, PoolTar]]:
        """By what rows call it, what the descriptor says of each tar, and its pool."""
        own = {tar.name: (None, tar) for tar in self.own_tars}
        pools = {f"{pool.name}/{tar.name}": (pool, tar) for pool in self.descriptor.image_pools for tar in pool.tars}
        return {**own, **pools}

    def _find_tar(self, name: str, names: Sequence[str]) -> Tar:
        """A tar, and of a pool's its size compared; `names` may be asked for next, and are listed with it."""
        if name not in self._tar_facts:
            found, expected = f"rows that lie in {name}", f"tars and image pools that {DESCRIPTOR_NAME} names"
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
    """The splits asked for, in the dataset's order; errors as of `BuiltDataset.open`."""
    if splits is None:
        return descriptor.splits
    if unknown := [split for split in splits if split not in descriptor.splits]:
        raise UsageError(unknown_split(folder, descriptor, unknown[0]))
    if not splits:
        raise UsageError(f"{folder}: no split was asked for; expected some of {', '.join(descriptor.splits)}")
    return tuple(split for split in descriptor.splits if split in splits)


def refuse_other_tokenizer(folder: Path | str, descriptor: Descriptor) -> None:
    """Refuse a dataset whose token ids mean other words than the models read.

    Raises:
        DatasetError: If another tokenizer made them.
    """
    if descriptor.tokenizer != tokenizer.IDENTITY:
        raise DatasetError(
            f"{folder}: its token ids were made by tokenizer {descriptor.tokenizer}, expected "
            f"{tokenizer.IDENTITY}; build the dataset again with this release"
        )
