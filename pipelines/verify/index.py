"""Compares the index of a split with the recorded hash and with the manifests from which it was made."""

import numpy as np

from refseg.dataset.descriptor import DESCRIPTOR_NAME, Descriptor, IndexEntry, load_descriptor
from refseg.dataset.faults import DamageError, Fault
from refseg.dataset.file_checks import read_whole
from refseg.dataset.index_checks import find_index_faults
from refseg.dataset.index_file import MASKS, split_tars
from refseg.dataset.index_rows import Arrays, FlatRows, continued, read_flat
from refseg.dataset.packed_runs import unpack_ends
from refseg.dataset.split_index import SplitIndex
from refseg.storage import Folder, open_folder

_COMPRESSED = ("mask_start", MASKS, "mask_xxh3")
"""Arrays whose bytes depend on the version of the compression. The unpacked content is compared instead."""


def check_index(task: tuple[str, str]) -> list[Fault]:
    """Check the index of a split. The split's manifests must have no faults.

    Args:
        task: Address of the dataset's folder, and name of the split.

    Returns:
        At most one fault. A missing file is not reported, because another check reports it.

    Raises:
        StorageError: If remote storage fails.
    """
    place, split = open_folder(task[0]), task[1]
    descriptor = load_descriptor(task[0])
    entry = next((index for index in descriptor.indexes if index.split == split), None)
    if entry is None:
        return [Fault(file=DESCRIPTOR_NAME, found=f"no index of split {split}", expected="an index of each split")]
    try:
        data, faults = read_whole(place, entry.name, entry.sha256)
    except FileNotFoundError:
        return []
    if data is None or faults:
        return faults
    fault = _compare(place, descriptor, entry, data)
    return [] if fault is None else [fault]


def _compare(place: Folder, descriptor: Descriptor, entry: IndexEntry, data: bytes) -> Fault | None:
    """Compare the index's arrays with the arrays from each manifest, and return the first difference."""
    entries = tuple(shard for shard in descriptor.shards if shard.split == entry.split)
    try:
        index = SplitIndex(place, entry, data)
    except DamageError as error:
        return error.fault
    for found, expected in find_index_faults(index.arrays, descriptor, entries):
        return Fault(file=entry.name, found=found, expected=expected)
    lengths: dict[str, int] = {}
    tars = split_tars(index.arrays)
    try:
        for shard, rows in zip(entries, read_flat(place, descriptor, entries), strict=True):
            name = _find_difference(index, rows, lengths, tars)
            if name is not None:
                expected = f"that of the rows of {shard.name}.parquet"
                return Fault(file=entry.name, found=f"another {name}", expected=expected)
    except DamageError:  # a manifest is missing, which the check of the files reports
        pass
    return None


def _find_difference(index: SplitIndex, rows: FlatRows, lengths: dict[str, int], tars: list[str]) -> str | None:
    """Return the name of the first array whose next part differs from a manifest.

    The manifest's lengths are added to `lengths`.
    """
    numbers = np.array([tars.index(tar) if tar in tars else -1 for tar in rows.tars], np.int32)
    expected = {**rows.arrays, "image_shard": numbers[rows.arrays["image_shard"]]}
    first_row = lengths.get("ref_id", 0)
    for name, values in continued(expected, dict(lengths)):
        start = lengths.get(name, 0)
        lengths[name] = start + len(values)
        if name not in _COMPRESSED and not np.array_equal(index.arrays[name][start : lengths[name]], values):
            return name
    return _find_other_mask(index, rows.arrays, first_row)


def _find_other_mask(index: SplitIndex, expected: Arrays, first_row: int) -> str | None:
    for row, num_runs in enumerate(expected["num_runs"].tolist()):
        packed = expected[MASKS][slice(*expected["mask_start"][row : row + 2])].tobytes()
        try:
            found = index.run_ends(first_row + row)
        except DamageError:
            return f"mask of ref {expected['ref_id'][row]}"
        if not np.array_equal(found, unpack_ends(packed, num_runs)):
            return f"mask of ref {expected['ref_id'][row]}"
    return None
