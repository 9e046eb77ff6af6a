"""Other datasets' tars as pools of images: what is there already is pointed to, not written again."""

import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from pipelines.images import SourceImage
from refseg.dataset.built import BuiltDataset
from refseg.dataset.descriptor import ImagePool
from refseg.dataset.image_pools import pool_address, relative_address
from refseg.dataset.schema import CUSTOM, DatasetSpec, ImageLocation, find_dataset
from refseg.errors import DatasetError, UsageError
from refseg.storage import is_remote

_LOCATION = ("shard", "image_offset", "image_bytes", "image_xxh3", "sample_bytes", "sample_xxh3")
_COLUMNS = ["image_id", "height", "width", *_LOCATION]


class PoolTable:
    """The tars of some datasets under names of a new dataset's own, each folder once.

    Args:
        out: Path or URL of the new dataset's folder.
    """

    def __init__(self, out: str) -> None:
        self._out = out
        self._pools: dict[str, ImagePool] = {}  # by address

    @property
    def pools(self) -> tuple[ImagePool, ...]:
        """All of them, with all tars that rows may lie in."""
        return tuple(self._pools.values())

    def add(self, dataset: BuiltDataset) -> dict[str, str]:
        """Add a dataset's own tars and those of its pools.

        Returns:
            By what the dataset's rows call each pool (its own tars have no pool: an empty name), the name here.

        Raises:
            DatasetError: If another dataset needs another build of one of the folders.
        """
        descriptor = dataset.descriptor
        own = ImagePool(
            name="",
            path=".",
            dataset=descriptor.dataset,
            digest=descriptor.digest,
            tars=dataset.own_tars,
            stored_images=descriptor.stored_images,
        )
        return {pool.name: self._add(dataset, pool) for pool in (own, *descriptor.image_pools)}

    def used(self, tars: Collection[str]) -> tuple[ImagePool, ...]:
        """Pools with those of their tars that rows name (`<pool>/<tar>`), without pools that have none."""
        kept = (
            replace(pool, tars=tuple(tar for tar in pool.tars if f"{pool.name}/{tar.name}" in tars))
            for pool in self._pools.values()
        )
        return tuple(pool for pool in kept if pool.tars)

    def _add(self, dataset: BuiltDataset, pool: ImagePool) -> str:
        address = pool_address(pool, dataset.place.address)
        address = address if is_remote(address) else os.path.realpath(address)  # one folder, one pool
        known = self._pools.get(address)
        if known is None:
            stem = pool.dataset.replace("/", "-")
            taken = {other.name for other in self._pools.values()}
            name = next(name for name in (stem, *(f"{stem}-{n}" for n in range(2, 1000))) if name not in taken)
            known = replace(pool, name=name, path=relative_address(address, self._out), tars=())
        if known.digest != pool.digest:
            raise DatasetError(
                f"{dataset.place}: needs the images of {address} as built with digest {pool.digest:.12}, another "
                f"dataset as with {known.digest:.12}; build {dataset.descriptor.dataset} again over what is there now"
            )
        tars = {tar.name: tar for tar in (*known.tars, *pool.tars)}
        self._pools[address] = replace(known, tars=tuple(tars.values()))
        return known.name


class ImagePools:
    """The images of some finished datasets, by image id; of an image in several the first is taken.

    Args:
        folders: The datasets, paths or URLs. Pools of their own are followed.
        spec: The dataset that will point to them.
        out: Its folder.

    Raises:
        DatasetError: If one is unfinished, or its files are not those it names.
        UsageError: If image ids mean other pictures there than here.
    """

    def __init__(self, folders: Sequence[Path | str], spec: DatasetSpec, out: Path | str) -> None:
        self._table = PoolTable(str(out))
        tables = []
        for folder in folders:
            dataset = BuiltDataset.open(folder)
            dataset_id = dataset.descriptor.dataset
            other = find_dataset(dataset_id)
            if CUSTOM in (spec.dataset, other.dataset):
                raise UsageError(
                    f"--images-from {folder}: image ids of {CUSTOM} datasets hold for one table alone, so that "
                    f"{spec.dataset_id} and {dataset_id} cannot share images; leave the option out"
                )
            if not (spec.is_coco and other.is_coco) and spec.dataset != other.dataset:
                raise UsageError(
                    f"--images-from {folder}: image ids of {dataset_id} are not those of {spec.dataset_id}; "
                    "give a dataset of the same pictures"
                )
            tables.append(rename_shards(dataset.read(_COLUMNS), self._table.add(dataset)))
        table = pa.concat_tables(tables)
        ids = table.column("image_id").to_numpy()
        self._image_ids, first = np.unique(ids, return_index=True)
        self._rows = table.take(pa.array(first)).combine_chunks()

    @property
    def key(self) -> str:
        """What a plan's fingerprint says of the pools."""
        return " ".join(f"{pool.name}:{pool.digest}" for pool in self._table.pools)

    def find(self, image_id: int) -> SourceImage | None:
        """Where an image lies; None if no pool has it."""
        row = int(np.searchsorted(self._image_ids, image_id))
        if row == len(self._image_ids) or self._image_ids[row] != image_id:
            return None
        fields = self._rows.slice(row, 1).to_pylist()[0]
        return SourceImage(
            address="",
            num_bytes=fields["image_bytes"],
            location=ImageLocation(**{name: fields[name] for name in _LOCATION}),
            size=(fields["height"], fields["width"]),
        )

    def describe(self, used_tars: Iterable[str]) -> tuple[ImagePool, ...]:
        """The pools for a descriptor, with the tars that are in use (`<pool>/<tar>`)."""
        return self._table.used(set(used_tars))


def rename_shards(table: pa.Table, names: Mapping[str, str]) -> pa.Table:
    """Rows that name their tars as a new dataset does.

    Args:
        table: Rows of a dataset, with `shard`.
        names: From `PoolTable.add` of that dataset.
    """
    shards = table.column("shard").combine_chunks().dictionary_encode()
    renamed = []
    for shard in shards.dictionary.to_pylist():
        pool, _, tar = shard.rpartition("/")
        renamed.append(f"{names[pool]}/{tar}")
    column = pa.DictionaryArray.from_arrays(shards.indices, pa.array(renamed, pa.string())).cast(pa.string())
    return table.set_column(table.column_names.index("shard"), table.schema.field("shard"), column)
