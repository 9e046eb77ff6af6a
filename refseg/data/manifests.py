"""The files behind an index: manifests and tars as the descriptor names them, here and in pools, and as flat arrays."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from refseg.data.cache import Tar
from refseg.descriptor import DESCRIPTOR_NAME, REJECTS_NAME, Descriptor, ImagePool, PoolTar, ShardEntry
from refseg.errors import DatasetError
from refseg.storage import Folder, is_remote, open_folder

_COLUMNS = [
    "dataset", "split_by", "ref_id", "image_id", "file_name", "height", "width", "category", "no_target", "mask",
    "sentences", "shard", "image_offset", "image_bytes", "sample_bytes", "sample_xxh3",
]  # fmt: skip
_REMEDY = "the dataset was changed after it was built; `refseg verify` it, then copy or build it again"


def dataset_ids(descriptor: Descriptor) -> tuple[str, ...]:
    """Ids that rows may have: the members of a mix, or the dataset itself."""
    return tuple(member.dataset for member in descriptor.mix) or (descriptor.dataset,)


def refuse_unknown_files(place: Folder, sizes: dict[str, int], descriptor: Descriptor) -> None:
    """Look for a shard that is there twice, say: whoever takes all tars would see its samples twice.

    Args:
        place: The dataset's folder.
        sizes: What is in it: names and bytes.
        descriptor: Of the dataset.

    Raises:
        DatasetError: If the folder holds a tar or Parquet file that is not the dataset's.
    """
    known = {f"{entry.name}.{kind}" for entry in descriptor.shards for kind in ("tar", "parquet")}
    for name in sorted(sizes):
        if name.endswith((".tar", ".parquet")) and name not in known | {REJECTS_NAME}:
            raise DatasetError(
                f"{place.join(name)}: found a file that {DESCRIPTOR_NAME} does not name, expected only the dataset's "
                "own shards; remove it"
            )


def read_manifest(place: Folder, sizes: dict[str, int], entry: ShardEntry) -> pa.Table:
    """Read one manifest, after checking that it and its tar are the descriptor's.

    The tar is checked by size only: hashing it would read the whole dataset, and each sample is checked when read.

    Args:
        place: The dataset's folder.
        sizes: What is in it: names and bytes.
        entry: The shard.

    Raises:
        DatasetError: If one of the two is missing or another than was built.
        StorageError: If storage refuses or fails.
    """
    if entry.num_samples:
        _check_size(place, sizes, f"{entry.name}.tar", entry.tar_bytes)
    name = f"{entry.name}.parquet"
    _check_size(place, sizes, name, entry.parquet_bytes)
    data = place.read(name)
    if (sha256 := hashlib.sha256(data).hexdigest()) != entry.parquet_sha256:
        raise DatasetError(f"{place.join(name)}: found sha256 {sha256}, expected {entry.parquet_sha256}; {_REMEDY}")
    return pq.read_table(pa.BufferReader(data), columns=_COLUMNS)


def find_tars(place: Folder, names: Sequence[str], descriptor: Descriptor) -> tuple[Tar, ...]:
    """The tars that rows call `names`, here or in an image pool; a pool's are checked as our own were.

    Raises:
        DatasetError: If there is no such tar or pool, or one is another than when this dataset was built.
        StorageError: If storage refuses or fails.
    """
    wanted = set(names)
    tars = {
        f"{entry.name}.tar": Tar(
            address=place.join(f"{entry.name}.tar"), num_bytes=entry.tar_bytes, sha256=entry.tar_sha256
        )
        for entry in descriptor.shards
        if entry.num_samples
    }
    for pool in descriptor.image_pools:
        used = [tar for tar in pool.tars if f"{pool.name}/{tar.name}" in wanted]
        if used:
            tars |= _find_in_pool(place, pool, used)
    for name in names:
        if name not in tars:
            raise DatasetError(f"{place}: rows lie in {name}, of no tar or pool in {DESCRIPTOR_NAME}; {_REMEDY}")
    return tuple(tars[name] for name in names)


def _find_in_pool(place: Folder, pool: ImagePool, used: Sequence[PoolTar]) -> dict[str, Tar]:
    if is_remote(pool.path):
        folder = open_folder(pool.path)
    else:
        # The way begins where the folder is, not at a link to it.
        start = place if is_remote(place.address) else open_folder(Path(place.address).resolve())
        folder = open_folder(start.join(pool.path))
    remedy = (
        f"{place} shows images of {pool.dataset} built with digest {pool.digest:.12}: put that build back, "
        "or build this dataset again"
    )
    sizes = folder.list()
    found = {}
    for tar in used:
        _check_size(folder, sizes, tar.name, tar.num_bytes, remedy=remedy)
        found[f"{pool.name}/{tar.name}"] = Tar(
            address=folder.join(tar.name), num_bytes=tar.num_bytes, sha256=tar.sha256
        )
    return found


def _check_size(place: Folder, sizes: dict[str, int], name: str, expected: int, *, remedy: str = _REMEDY) -> None:
    found = sizes.get(name)
    if found is None:
        raise DatasetError(f"{place.join(name)}: there is no such file, expected {expected} bytes; {remedy}")
    if found != expected:
        raise DatasetError(f"{place.join(name)}: found {found} bytes, expected {expected}; {remedy}")


def flatten(folder: Folder, table: pa.Table, descriptor: Descriptor) -> tuple[dict[str, Any], list[str]]:
    """Make of all manifests' rows the flat arrays of `ManifestIndex`, and list what the rows call their tars.

    Raises:
        DatasetError: If rows are of another dataset, or a hash is none.
    """
    columns = {name: table.column(name).combine_chunks() for name in table.column_names}
    sentences = columns["sentences"].flatten()
    token_lists = sentences.field("token_ids")
    count_lists = columns["mask"].field("counts")
    shards = columns["shard"].dictionary_encode()
    row_shard = _numbers(shards.indices)

    # Rows of one image are adjacent: a new image starts where the place in the tars changes, or the member of a mix.
    row_dataset = _row_datasets(folder, columns["dataset"], columns["split_by"], dataset_ids(descriptor))
    offset = _numbers(columns["image_offset"])
    is_first = np.ones(table.num_rows, np.bool_)
    is_first[1:] = (
        (offset[1:] != offset[:-1]) | (row_shard[1:] != row_shard[:-1]) | (row_dataset[1:] != row_dataset[:-1])
    )
    first_row = np.flatnonzero(is_first)

    def of_image(name: str) -> NDArray[Any]:
        return _numbers(columns[name])[first_row]

    hashes = columns["sample_xxh3"].take(pa.array(first_row))
    try:
        sample_xxh3 = np.frombuffer(bytes.fromhex("".join(hashes.to_pylist())), ">u8").astype(np.uint64)
    except ValueError as error:
        raise DatasetError(f"{folder}: column sample_xxh3 holds no hash ({error}); build the dataset again") from error
    arrays = {
        "ref_id": _numbers(columns["ref_id"]),
        "row_dataset": row_dataset,
        "row_image": np.cumsum(is_first) - 1,
        "no_target": _numbers(columns["no_target"]),
        "category": columns["category"],
        "mask_start": _starts(count_lists),
        "mask_counts": _numbers(count_lists.flatten()),
        "sentence_start": _starts(columns["sentences"]),
        "sent_id": _numbers(sentences.field("sent_id")),
        "raw": sentences.field("raw"),
        "sent": sentences.field("sent"),
        "sentence_exists": _numbers(sentences.field("exists")),
        "token_start": _starts(token_lists),
        "tokens": _numbers(token_lists.flatten()),
        "image_id": of_image("image_id"),
        "file_name": columns["file_name"].take(pa.array(first_row)),
        "height": of_image("height"),
        "width": of_image("width"),
        "row_start": np.append(first_row, table.num_rows),
        "image_shard": row_shard[first_row],
        "image_offset": offset[first_row],
        "image_bytes": of_image("image_bytes"),
        "sample_bytes": of_image("sample_bytes"),
        "sample_xxh3": sample_xxh3,
    }
    return arrays, shards.dictionary.to_pylist()


def _row_datasets(
    folder: Folder, names: pa.StringArray, partitions: pa.StringArray, known: tuple[str, ...]
) -> NDArray[np.int16]:
    """Position of each row's dataset in `known`."""
    found = pc.binary_join_element_wise(names, partitions, "/").dictionary_encode()
    ids = found.dictionary.to_pylist()
    if unknown := [dataset_id for dataset_id in ids if dataset_id not in known]:
        raise DatasetError(f"{folder}: found rows of {unknown[0]}, expected {', '.join(known)}; {_REMEDY}")
    return np.array([known.index(dataset_id) for dataset_id in ids], np.int16)[_numbers(found.indices)]


def _numbers(array: pa.Array) -> NDArray[Any]:
    return array.to_numpy(zero_copy_only=False)


def _starts(lists: pa.ListArray) -> NDArray[np.int64]:
    """Where each list starts in the flattened values; one more: where the last ends."""
    offsets = _numbers(lists.offsets).astype(np.int64)
    return offsets - offsets[0]
