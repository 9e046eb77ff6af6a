"""Handles image pools, the tars of other datasets to which a new dataset refers instead of storing images again."""

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
from refseg.dataset.schema import ANY_REFER, CUSTOM, DatasetSpec, ImageLocation, find_dataset
from refseg.errors import DatasetError, UsageError
from refseg.storage import is_remote

_LOCATION = ("shard", "image_offset", "image_bytes", "image_xxh3", "sample_bytes", "sample_xxh3")
_COLUMNS = ["image_id", "height", "width", *_LOCATION]


class PoolTable:
    """The image pools of a new dataset. Each folder of tars is one pool, with a name that is unique in the dataset.

    Args:
        out: Path or URL of the new dataset's folder.
    """

    def __init__(self, out: str) -> None:
        self._out = out
        self._pools: dict[str, ImagePool] = {}  # by address

    @property
    def pools(self) -> tuple[ImagePool, ...]:
        """All pools, each with all tars."""
        return tuple(self._pools.values())

    def add(self, dataset: BuiltDataset) -> dict[str, str]:
        """Add a dataset's own tars and the tars of its pools.

        Returns:
            Name of each pool in the new dataset, by the name in the given dataset. The given dataset's own tars have
            the empty name.

        Raises:
            DatasetError: If two datasets need different builds of the same folder.
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
        """Return the pools with only the given tars (`<pool>/<tar>`). Pools without any of these tars are left out."""
        kept = (
            replace(pool, tars=tuple(tar for tar in pool.tars if f"{pool.name}/{tar.name}" in tars))
            for pool in self._pools.values()
        )
        return tuple(pool for pool in kept if pool.tars)

    def _add(self, dataset: BuiltDataset, pool: ImagePool) -> str:
        address = pool_address(pool, dataset.place.address)
        address = address if is_remote(address) else os.path.realpath(address)  # so that a folder becomes only one pool
        known = self._pools.get(address)
        if known is None:
            stem = pool.dataset.replace("/", "-")
            taken = {other.name for other in self._pools.values()}
            name = next(name for name in (stem, *(f"{stem}-{n}" for n in range(2, 1000))) if name not in taken)
            known = replace(pool, name=name, path=relative_address(address, self._out), tars=())
        if known.digest != pool.digest:
            raise DatasetError(
                f"{dataset.place}: needs the images of {address} with digest {pool.digest:.12}, but another dataset "
                f"needs digest {known.digest:.12}; build {dataset.descriptor.dataset} again over the present images"
            )
        tars = {tar.name: tar for tar in (*known.tars, *pool.tars)}
        self._pools[address] = replace(known, tars=tuple(tars.values()))
        return known.name


class ImagePools:
    """The images of some finished datasets, by image id. If several datasets contain an image, the first one is used.

    Args:
        folders: Paths or URLs of the datasets. Images in the pools of these datasets are found, too.
        spec: Specification of the new dataset, which will refer to the images.
        out: Folder of the new dataset.

    Raises:
        DatasetError: If a dataset is unfinished or damaged.
        UsageError: If equal image ids mean different pictures in a dataset and in the new one.
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
                    f"--images-from {folder}: image ids of {CUSTOM} datasets are valid for one table only, so that "
                    f"{spec.dataset_id} and {dataset_id} cannot share images; remove the option"
                )
            same = spec.dataset_id == other.dataset_id if spec.dataset == ANY_REFER else spec.dataset == other.dataset
            if not (spec.is_coco and other.is_coco) and not same:
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
        """The value that identifies the pools in a plan's keys."""
        return " ".join(f"{pool.name}:{pool.digest}" for pool in self._table.pools)

    def find(self, image_id: int) -> SourceImage | None:
        """Return the image with an id; None if no pool contains it."""
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
        """Return the descriptor's entries for the pools, with only the tars in use (`<pool>/<tar>`)."""
        return self._table.used(set(used_tars))


def rename_shards(table: pa.Table, names: Mapping[str, str]) -> pa.Table:
    """Replace the names of tars in the rows of a dataset with the names in a new dataset.

    Args:
        table: Rows with the column `shard`.
        names: Result of `PoolTable.add` for the rows' dataset.
    """
    shards = table.column("shard").combine_chunks().dictionary_encode()
    renamed = []
    for shard in shards.dictionary.to_pylist():
        pool, _, tar = shard.rpartition("/")
        renamed.append(f"{names[pool]}/{tar}")
    column = pa.DictionaryArray.from_arrays(shards.indices, pa.array(renamed, pa.string())).cast(pa.string())
    return table.set_column(table.column_names.index("shard"), table.schema.field("shard"), column)
