"""The files behind an index: manifests and tars as the descriptor names them, here and in pools."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from refseg.data.cache import Tar
from refseg.descriptor import DESCRIPTOR_NAME, REJECTS_NAME, Descriptor, ImagePool, PoolTar, ShardEntry
from refseg.errors import DatasetError
from refseg.image_pools import pool_address
from refseg.storage import Folder, is_remote, open_folder

_MASKS = "mask.counts"
_FEW = ["dataset", "split_by", "shard", "category"]  # values that repeat, read as dictionaries
_COLUMNS = [
    "dataset", "split_by", "ref_id", "image_id", "file_name", "height", "width", "category", "no_target",
    *(f"sentences.list.element.{name}" for name in ("sent_id", "sent", "token_ids", "exists")),
    "shard", "image_offset", "image_bytes", "sample_bytes", "sample_xxh3",
]  # fmt: skip
REMEDY = "the dataset was changed after it was built; `refseg verify` it, then copy or build it again"


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
    known = {REJECTS_NAME, *(f"{entry.name}.{kind}" for entry in descriptor.shards for kind in ("tar", "parquet"))}
    for name in sorted(sizes):
        if name.endswith((".tar", ".parquet")) and name not in known:
            raise DatasetError(
                f"{place.join(name)}: found a file that {DESCRIPTOR_NAME} does not name, expected only the dataset's "
                "own shards; remove it"
            )


def check_files(place: Folder, sizes: dict[str, int], entry: ShardEntry) -> None:
    """Check that a shard's manifest and tar are there and have the descriptor's sizes.

    Args:
        place: The dataset's folder.
        sizes: What is in it: names and bytes.
        entry: The shard.

    Raises:
        DatasetError: If one of the two is missing or of another size.
    """
    if entry.num_samples:
        _check_size(place, sizes, f"{entry.name}.tar", entry.tar_bytes)
    _check_size(place, sizes, manifest_name(entry), entry.parquet_bytes)


def manifest_name(entry: ShardEntry) -> str:
    """File name of a shard's manifest."""
    return f"{entry.name}.parquet"


def read_bytes(place: Folder, entry: ShardEntry) -> bytes:
    """Read a manifest's file and check its hash.

    Hashing tars too would read the whole dataset: each sample is checked when read.

    Raises:
        DatasetError: If it is another than was built.
        StorageError: If storage refuses or fails.
    """
    data = place.read(manifest_name(entry))
    if (sha256 := hashlib.sha256(data).hexdigest()) != entry.parquet_sha256:
        raise DatasetError(
            f"{place.join(manifest_name(entry))}: found sha256 {sha256}, expected {entry.parquet_sha256}; {REMEDY}"
        )
    return data


def manifest_facts(place: Folder, entries: Sequence[ShardEntry]) -> list[list[object]]:
    """What changes when a manifest is written again: name and size, and on this machine time and inode.

    Raises:
        OSError: If one cannot be read.
    """
    if is_remote(place.address):
        return [[entry.name, entry.parquet_bytes] for entry in entries]
    found = ((entry, Path(place.join(manifest_name(entry))).stat()) for entry in entries)
    return [[entry.name, facts.st_size, facts.st_mtime_ns, facts.st_ino] for entry, facts in found]


def read_manifest(place: Folder, entry: ShardEntry, *, with_masks: bool) -> tuple[pa.Table, int]:
    """Read the columns of a manifest that an index needs; errors as of `read_bytes`.

    Args:
        place: The dataset's folder.
        entry: The shard.
        with_masks: Also their run lengths, which take three quarters of the time.

    Returns:
        The rows, and how many run lengths their masks have.
    """
    file = _open_manifest(place, entry)
    columns = [*_COLUMNS, _MASKS] if with_masks else _COLUMNS
    return file.read(columns=columns, use_threads=False), _num_run_lengths(file.metadata)


def read_masks(place: Folder, entry: ShardEntry) -> pa.ChunkedArray:
    """Read the masks of a manifest's rows; errors as of `read_bytes`."""
    return _open_manifest(place, entry).read(columns=[_MASKS], use_threads=False).column("mask")


def read_columns(place: Folder, entry: ShardEntry, columns: Sequence[str]) -> pa.Table:
    """Read some columns of a manifest's rows; errors as of `read_bytes`."""
    return _open_manifest(place, entry).read(columns=list(columns), use_threads=False)


def _open_manifest(place: Folder, entry: ShardEntry) -> pq.ParquetFile:
    # Read without threads of its own: manifests are read several at a time.
    return pq.ParquetFile(pa.BufferReader(read_bytes(place, entry)), read_dictionary=_FEW)


def _num_run_lengths(metadata: pq.FileMetaData) -> int:
    """Run lengths of all masks, which the file's footer says; no list of them is empty, or it would count too."""
    columns = range(metadata.num_columns)
    position = next(i for i in columns if metadata.schema.column(i).path.startswith(f"{_MASKS}."))
    return sum(metadata.row_group(i).column(position).num_values for i in range(metadata.num_row_groups))


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
            raise DatasetError(f"{place}: rows lie in {name}, of no tar or pool in {DESCRIPTOR_NAME}; {REMEDY}")
    return tuple(tars[name] for name in names)


def _find_in_pool(place: Folder, pool: ImagePool, used: Sequence[PoolTar]) -> dict[str, Tar]:
    folder = open_folder(pool_address(pool, place.address))
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


def _check_size(place: Folder, sizes: dict[str, int], name: str, expected: int, *, remedy: str = REMEDY) -> None:
    found = sizes.get(name)
    if found is None:
        raise DatasetError(f"{place.join(name)}: there is no such file, expected {expected} bytes; {remedy}")
    if found != expected:
        raise DatasetError(f"{place.join(name)}: found {found} bytes, expected {expected}; {remedy}")
