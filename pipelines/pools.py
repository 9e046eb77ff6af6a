"""Other datasets' tars as a pool of images: what is there already is pointed to, not written again."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from refseg.dataset.built import BuiltDataset
from refseg.dataset.descriptor import Descriptor, ImagePool, PoolTar, load_descriptor
from refseg.dataset.image_pools import pool_address, relative_address
from refseg.dataset.schema import CUSTOM, DatasetSpec, find_dataset
from refseg.errors import UsageError

_LOCATION = ("shard", "image_offset", "image_bytes", "image_xxh3", "sample_bytes", "sample_xxh3")
_COLUMNS = ["image_id", "height", "width", *_LOCATION]


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
        self._out = str(out)
        self._pools: dict[str, tuple[str, Descriptor]] = {}  # by name: the folder that holds the tars
        tables = []
        for folder in folders:
            built = BuiltDataset.open(folder)
            descriptor = built.descriptor
            other = find_dataset(descriptor.dataset)
            if CUSTOM in (spec.dataset, other.dataset):
                raise UsageError(
                    f"--images-from {folder}: image ids of {CUSTOM} datasets hold for one table alone, so that "
                    f"{spec.dataset_id} and {descriptor.dataset} cannot share images; leave the option out"
                )
            if not (spec.is_coco and other.is_coco) and spec.dataset != other.dataset:
                raise UsageError(
                    f"--images-from {folder}: image ids of {descriptor.dataset} are not those of {spec.dataset_id}; "
                    "give a dataset of the same pictures"
                )
            tables.append(_rename_shards(built.read(_COLUMNS), self._names(str(folder), descriptor)))
        table = pa.concat_tables(tables)
        ids = table.column("image_id").to_numpy()
        self._image_ids, first = np.unique(ids, return_index=True)
        self._rows = table.take(pa.array(first)).combine_chunks()

    @property
    def key(self) -> str:
        """What a plan's fingerprint says of the pools."""
        return " ".join(f"{name}:{descriptor.digest}" for name, (_, descriptor) in self._pools.items())

    def find(self, image_id: int) -> dict[str, Any] | None:
        """An image's place as plain values (`location, size, name, num_bytes`), None if no pool has it."""
        row = int(np.searchsorted(self._image_ids, image_id))
        if row == len(self._image_ids) or self._image_ids[row] != image_id:
            return None
        fields = self._rows.slice(row, 1).to_pylist()[0]
        location = {name: fields[name] for name in _LOCATION}
        return {
            "address": "",
            "location": location,
            "size": [fields["height"], fields["width"]],
            "name": location["image_xxh3"],
            "num_bytes": location["image_bytes"],
        }

    def describe(self, used_tars: Iterable[str]) -> tuple[ImagePool, ...]:
        """The pools for a descriptor, with the tars that are in use (`<pool>/<tar>`)."""
        used = set(used_tars)
        pools = []
        for name, (folder, descriptor) in self._pools.items():
            tars = tuple(
                PoolTar(name=f"{entry.name}.tar", num_bytes=entry.tar_bytes, sha256=entry.tar_sha256)
                for entry in descriptor.shards
                if f"{name}/{entry.name}.tar" in used
            )
            if tars:
                path = relative_address(folder, self._out)
                pools.append(
                    ImagePool(
                        name=name,
                        path=path,
                        dataset=descriptor.dataset,
                        digest=descriptor.digest,
                        tars=tars,
                        stored_images=descriptor.stored_images,
                    )
                )
        return tuple(pools)

    def _names(self, folder: str, descriptor: Descriptor) -> dict[str, str]:
        """What rows of a dataset call its own tars (empty) and its pools, and the names those have here."""
        names = {"": self._name(folder, descriptor)}
        for pool in descriptor.image_pools:
            address = pool_address(pool, folder)
            names[pool.name] = self._name(address, load_descriptor(address))
        return names

    def _name(self, folder: str, descriptor: Descriptor) -> str:
        stem = name = descriptor.dataset.replace("/", "-")
        number = 1
        while name in self._pools and self._pools[name][1].digest != descriptor.digest:
            number += 1
            name = f"{stem}-{number}"
        self._pools.setdefault(name, (folder, descriptor))
        return name


def _rename_shards(table: pa.Table, names: dict[str, str]) -> pa.Table:
    shards = table.column("shard").combine_chunks().dictionary_encode()
    renamed = []
    for shard in shards.dictionary.to_pylist():
        pool, _, tar = shard.rpartition("/")
        renamed.append(f"{names[pool]}/{tar}")
    column = pa.DictionaryArray.from_arrays(shards.indices, pa.array(renamed)).cast(pa.string())
    return table.set_column(table.column_names.index("shard"), "shard", column)
