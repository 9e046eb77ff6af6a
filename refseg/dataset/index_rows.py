"""What an index is made of: the columns of a manifest that it holds, and the masks of one that are read later."""

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from refseg.dataset.arrow_arrays import numbers, one_array
from refseg.dataset.descriptor import Descriptor, ShardEntry
from refseg.dataset.faults import Fault
from refseg.dataset.file_checks import manifest_name
from refseg.dataset.manifest_reader import open_manifest, read_checked, read_unchecked
from refseg.dataset.shape_checks import find_mask_faults
from refseg.storage import Folder, is_remote

_MASKS = "mask"
_FEW = ("dataset", "split_by", "split", "shard", "category")  # values that repeat, read as dictionaries


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
        DamageError: If the manifest is missing, another than was built, or has rows that the format forbids.
        StorageError: If storage refuses or fails.
    """
    file = open_manifest(place, entry, dictionaries=_FEW)
    table = read_checked(place, entry, descriptor, ["category", *([_MASKS] if with_masks else [])], file=file)
    num_run_lengths = _num_run_lengths(file.metadata)
    pixels = int((table.column("height").to_numpy().astype("int64") * table.column("width").to_numpy()).sum())
    if not table.num_rows <= num_run_lengths <= pixels + table.num_rows:  # every run but the first has a pixel
        found, expected = f"{num_run_lengths} run lengths", f"those of {pixels} pixels of masks"
        raise Fault(file=manifest_name(entry), found=found, expected=expected).error(place)
    return table, num_run_lengths


def read_masks(place: Folder, entry: ShardEntry) -> pa.StructArray:
    """Read the masks of a manifest whose other columns were checked before; errors as of `read_manifest`."""
    file = manifest_name(entry)
    table = read_unchecked(place, entry, ["ref_id", "height", "width", "no_target", _MASKS])
    masks = one_array(table.column(_MASKS))
    lists = masks.field("counts")
    if masks.null_count or lists.null_count or lists.flatten().null_count:
        raise Fault(file=file, found="masks without values", expected="one in every row").error(place)
    no_target, *sides = (numbers(one_array(table.column(name))) for name in ("no_target", "height", "width"))
    for is_wrong, found, expected in find_mask_faults(masks, no_target, (sides[0], sides[1])):
        if is_wrong.any():
            row = int(is_wrong.argmax())
            ref = f"ref {table.column('ref_id')[row].as_py()}"
            raise Fault(file=file, sample=ref, found=found(row), expected=expected).error(place)
    return masks


def _num_run_lengths(metadata: pq.FileMetaData) -> int:
    """Run lengths of all masks, which the file's footer says; no list of them is empty, or it would count too."""
    columns = range(metadata.num_columns)
    position = next(i for i in columns if metadata.schema.column(i).path.startswith(f"{_MASKS}.counts."))
    return sum(metadata.row_group(i).column(position).num_values for i in range(metadata.num_row_groups))
