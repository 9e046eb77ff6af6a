"""What an index is made of: columns of manifests, and the tars behind them, here and in pools."""

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from refseg import tokenizer
from refseg.dataset.arrow_arrays import numbers, one_array
from refseg.dataset.descriptor import DESCRIPTOR_NAME, Descriptor, ImagePool, PoolTar, ShardEntry
from refseg.dataset.image_pools import pool_address
from refseg.dataset.manifest_reader import (
    REMEDY,
    check_size,
    manifest_name,
    open_manifest,
    read_checked,
    read_rows,
    row_error,
)
from refseg.dataset.row_checks import RowFault
from refseg.dataset.shape_checks import find_mask_faults
from refseg.dataset.shard_cache import Tar
from refseg.errors import DatasetError
from refseg.storage import Folder, is_remote, open_folder

_MASKS = "mask"
_FEW = ("dataset", "split_by", "split", "shard", "category")  # values that repeat, read as dictionaries


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


def manifest_facts(place: Folder, entries: Sequence[ShardEntry]) -> list[list[object]]:
    """What changes when a manifest is written again: name and size, and on this machine time and inode.

    Raises:
        OSError: If one cannot be read.
    """
    if is_remote(place.address):
        return [[entry.name, entry.parquet_bytes] for entry in entries]
    found = ((entry, Path(place.join(manifest_name(entry))).stat()) for entry in entries)
    return [[entry.name, facts.st_size, facts.st_mtime_ns, facts.st_ino] for entry, facts in found]


def read_manifest(
    place: Folder, entry: ShardEntry, descriptor: Descriptor, *, with_masks: bool
) -> tuple[pa.Table, int]:
    """Read the columns of a manifest that an index needs, all rows checked.

    Args:
        place: The dataset's folder.
        entry: The shard.
        descriptor: Descriptor of the dataset.
        with_masks: Also their run lengths, which take three quarters of the time; else they are checked when read.

    Returns:
        The rows, and how many run lengths their masks have.

    Raises:
        DatasetError: If the manifest is missing, another than was built, or has rows that the format forbids.
        StorageError: If storage refuses or fails.
    """
    file = open_manifest(place, entry, dictionaries=_FEW)
    path = place.join(manifest_name(entry))
    table = read_checked(path, file, entry, descriptor, ["category", *([_MASKS] if with_masks else [])])
    num_run_lengths = _num_run_lengths(file.metadata)
    pixels = int((table.column("height").to_numpy().astype("int64") * table.column("width").to_numpy()).sum())
    if not table.num_rows <= num_run_lengths <= pixels + table.num_rows:  # every run but the first has a pixel
        raise DatasetError(f"{path}: found {num_run_lengths} run lengths for {pixels} pixels of masks; {REMEDY}")
    return table, num_run_lengths


def read_masks(place: Folder, entry: ShardEntry) -> pa.StructArray:
    """Read the masks of a manifest whose other columns were checked before; errors as of `read_manifest`."""
    path = place.join(manifest_name(entry))
    table = read_rows(path, open_manifest(place, entry), ["ref_id", "height", "width", "no_target", _MASKS])
    masks = one_array(table.column(_MASKS))
    lists = masks.field("counts")
    if masks.null_count or lists.null_count or lists.flatten().null_count:
        raise DatasetError(f"{path}: found masks without values, expected one in every row; {REMEDY}")
    no_target, *sides = (numbers(one_array(table.column(name))) for name in ("no_target", "height", "width"))
    for is_wrong, found, expected in find_mask_faults(masks, no_target, (sides[0], sides[1])):
        if is_wrong.any():
            row = int(is_wrong.argmax())
            raise row_error(path, table, RowFault(row, found(row), expected))
    return masks


def _num_run_lengths(metadata: pq.FileMetaData) -> int:
    """Run lengths of all masks, which the file's footer says; no list of them is empty, or it would count too."""
    columns = range(metadata.num_columns)
    position = next(i for i in columns if metadata.schema.column(i).path.startswith(f"{_MASKS}.counts."))
    return sum(metadata.row_group(i).column(position).num_values for i in range(metadata.num_row_groups))


def find_tars(place: Folder, names: Sequence[str], descriptor: Descriptor) -> tuple[Tar, ...]:
    """The tars that rows call `names`, here or in an image pool; a pool's are checked as our own were.

    Raises:
        DatasetError: If there is no such tar or pool, one is another than when this dataset was built, or it lies on
            a host that is not allowed.
        StorageError: If storage refuses or fails.
    """
    wanted = set(names)
    tars = {
        f"{entry.name}.tar": Tar(
            address=place.join(f"{entry.name}.tar"),
            num_bytes=entry.tar_bytes,
            sha256=entry.tar_sha256,
            stored_images=descriptor.stored_images,
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
    sizes = folder.list([tar.name for tar in used])
    found = {}
    for tar in used:
        check_size(folder, sizes, tar.name, tar.num_bytes, remedy=remedy)
        found[f"{pool.name}/{tar.name}"] = Tar(
            address=folder.join(tar.name),
            num_bytes=tar.num_bytes,
            sha256=tar.sha256,
            stored_images=pool.stored_images,
        )
    return found
