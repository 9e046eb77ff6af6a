"""Checks the descriptor, the files, each shard and pool, and all shards together."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipelines.engines import run_local, usable_cores
from pipelines.verify.descriptor import check_counts, check_descriptor
from pipelines.verify.index import check_index
from pipelines.verify.pools import PoolTask, check_pool_tar
from pipelines.verify.shards import SAMPLE_LOCATION, ShardFindings, VerifyTask, verify_shard
from refseg.dataset.descriptor import DESCRIPTOR_NAME, REJECTS_NAME, Descriptor, load_descriptor
from refseg.dataset.faults import Fault, shorten
from refseg.dataset.file_checks import find_file_faults, find_pool_faults, unknown_file
from refseg.dataset.image_pools import open_pool, pool_remedy
from refseg.dataset.manifest_reader import dataset_ids, row_rules
from refseg.dataset.rejects import check_rejects
from refseg.errors import DatasetError, MissingDatasetError, UsageError
from refseg.storage import Folder, open_folder
from refseg.wording import counted

_BYTES_PER_WORKER = 64 * 2**20
"""Number of bytes that a process checks in one second, the time that another process needs to start."""


def verify_dataset(folder: Path | str, *, fast: bool = False, workers: int | None = None) -> list[Fault]:
    """Check a dataset.

    Args:
        folder: Path or URL of the dataset's folder.
        fast: Check only the descriptor, the names and sizes of files, and the rejects.
        workers: Number of processes, each with one shard in memory. The default depends on the number of cores and the
            dataset's size.

    Returns:
        The faults that were found. For each file, at most `MOST_FAULTS` faults are listed, with the total number.

    Raises:
        UsageError: If `workers` is below 1.
        MissingDatasetError: If the folder does not exist.
        StorageError: If remote storage fails.
        WorkerError: If a worker died.
    """
    if workers is not None and workers < 1:
        raise UsageError(f"--workers {workers}: expected 1 or more")
    place = open_folder(folder)
    try:
        descriptor = load_descriptor(folder)
    except MissingDatasetError:
        raise
    except DatasetError as error:
        # A message of refseg is "<where>: found <found>, expected <expected>; <remedy>".
        found, _, remedy = str(error).removeprefix(f"{place}: ").rpartition("; ")
        found = found.removeprefix(f"{place.join(DESCRIPTOR_NAME)}: ").removeprefix("found ")
        found, _, expected = found.partition(", expected ")
        expected = expected or "the descriptor of a finished dataset"
        return [Fault(file=DESCRIPTOR_NAME, found=found, expected=expected, remedy=remedy)]
    rejects, reject_faults = check_rejects(place, descriptor)
    faults = [
        *check_descriptor(descriptor),
        *check_counts(descriptor, rejects),
        *_check_files(place, descriptor),
        *reject_faults,
    ]
    return faults if fast else faults + _check_contents(place, descriptor, workers)


def _check_files(folder: Folder, descriptor: Descriptor) -> Iterator[Fault]:
    """Check names and sizes of all files except the rejects, and report other tar or Parquet files."""
    sizes = folder.list(descriptor.file_names)
    yield from find_file_faults(sizes, descriptor, descriptor.shards)
    if REJECTS_NAME in sizes and not descriptor.num_rejects:  # readers ignore this file
        yield unknown_file(REJECTS_NAME)
    for pool in descriptor.image_pools:
        try:
            sizes = open_pool(folder, pool).list([tar.name for tar in pool.tars])
        except DatasetError as error:
            wrong, _, remedy = str(error).removeprefix(f"{folder}: ").rpartition("; ")
            own_host = "image pools on the dataset's own host"
            yield Fault(file=DESCRIPTOR_NAME, found=wrong, expected=own_host, remedy=remedy)
            continue
        yield from find_pool_faults(sizes, pool, pool.tars)


def _check_contents(folder: Folder, descriptor: Descriptor, workers: int | None) -> list[Fault]:
    datasets, rules_of = dataset_ids(descriptor), row_rules(descriptor)
    tasks = [
        VerifyTask(
            folder=folder.address,
            entry=entry,
            rules=rules_of(entry),
            mask_rule=descriptor.mask_rule,
            stored_images=descriptor.stored_images,
        )
        for entry in descriptor.shards
    ]
    sizes = [entry.tar_bytes + entry.parquet_bytes for entry in descriptor.shards]
    order = {entry.name: position for position, entry in enumerate(descriptor.shards)}
    findings = list(run_local(verify_shard, tasks, _choose_workers(workers, sizes)))
    findings.sort(key=lambda found: order[found.name])
    faults = [fault for found in findings for fault in found.faults]
    faults += _check_swapped(descriptor, findings)
    faults += _check_unique(findings, datasets)
    for split in descriptor.splits:
        names = {entry.name for entry in descriptor.shards if entry.split == split}
        faults += _check_sentences([found for found in findings if found.name in names], datasets, split)
    faults += _check_members(descriptor, findings)

    if not faults:  # comparing indexes with damaged manifests would give no further information
        splits = [(folder.address, split) for split in descriptor.splits]
        sizes = [index.num_bytes for index in descriptor.indexes]
        faults += [
            fault for found in run_local(check_index, splits, _choose_workers(workers, sizes)) for fault in found
        ]

    pool_tasks = list(_pool_tasks(folder, descriptor, findings))
    sizes = [task.tar.num_bytes for task in pool_tasks]
    found_in_pools = dict(run_local(check_pool_tar, pool_tasks, _choose_workers(workers, sizes)))
    return faults + [fault for task in pool_tasks for fault in found_in_pools[task.file]]


def _choose_workers(workers: int | None, sizes: Sequence[int]) -> int:
    if workers is None:
        workers = min(usable_cores(), 1 + sum(sizes) // _BYTES_PER_WORKER)
    return workers


def _check_swapped(descriptor: Descriptor, findings: Sequence[ShardFindings]) -> Iterator[Fault]:
    """Find tars that were exchanged. They must only be renamed, not built again."""
    owners = {entry.tar_sha256: entry.name for entry in descriptor.shards if entry.num_samples}
    for found in findings:
        owner = owners.get(found.tar_sha256, found.name)
        if owner != found.name:
            yield Fault(
                file=f"{found.name}.tar",
                found=f"the bytes of {owner}.tar",
                expected="its own bytes",
                remedy="rename the files, or copy the shard again from an undamaged copy",
            )


def _check_unique(findings: Sequence[ShardFindings], datasets: Sequence[str]) -> Iterator[Fault]:
    """Check that sample keys are unique in the dataset's tars, and ref ids in each dataset."""
    yield from shorten(
        [
            Fault(
                file=f"{again}.tar",
                sample=f"{image_id:012d}" + (f"_{number}" if number else ""),
                found=f"the same key as in {first}",
                expected="each key once",
            )
            for (image_id, number), first, again in _find_repeats(findings, lambda found: found.keys)
        ]
    )
    yield from shorten(
        [
            Fault(
                file=f"{again}.parquet",
                sample=f"ref {ref_id}",
                found=f"the same ref_id as in {first}",
                expected=f"each ref of {datasets[position]} once",
            )
            for (position, ref_id), first, again in _find_repeats(findings, lambda found: found.refs)
            if position >= 0
        ]
    )


def _check_sentences(findings: Sequence[ShardFindings], datasets: Sequence[str], split: str) -> Iterator[Fault]:
    """Check that each `sent_id` is unique in a split of each dataset, because predictions are matched by `sent_id`."""
    yield from shorten(
        [
            Fault(
                file=f"{again}.parquet",
                sample=f"sentence {sent_id}",
                found=f"the same sent_id as another sentence in {first}",
                expected=f"each sent_id of {datasets[position]} once in split {split}",
            )
            for (position, sent_id), first, again in _find_repeats(findings, lambda found: found.sentences)
            if position >= 0
        ]
    )


def _find_repeats(
    findings: Sequence[ShardFindings], pairs_of: Callable[[ShardFindings], NDArray[np.int64]]
) -> Iterator[tuple[tuple[int, int], str, str]]:
    """Find pairs that occur more than once.

    Args:
        findings: Results of the shards.
        pairs_of: Function that returns the pairs of a shard, `(n, 2)`.

    Yields:
        The pair, the name of the first shard that contains it, and the name of the shard that repeats it.
    """
    pairs = [pairs_of(found) for found in findings]
    values = np.concatenate([np.empty((0, 2), np.int64), *pairs])
    of_shard = np.repeat(np.arange(len(pairs)), [len(of_one) for of_one in pairs])
    order = np.lexsort((of_shard, values[:, 1], values[:, 0]))
    same = np.flatnonzero((values[order[1:]] == values[order[:-1]]).all(axis=1))
    for position in same.tolist():
        first, again = order[position], order[position + 1]
        pair = int(values[first, 0]), int(values[first, 1])
        yield pair, findings[of_shard[first]].name, findings[of_shard[again]].name


def _check_members(descriptor: Descriptor, findings: Sequence[ShardFindings]) -> Iterator[Fault]:
    """Compare the number of rows of each member of a mix with the descriptor."""
    rows = np.concatenate([np.empty(0, np.int64), *(found.refs[:, 0] for found in findings)])
    for position, member in enumerate(descriptor.mix):
        num_refs = int(np.count_nonzero(rows == position))
        if num_refs != member.num_refs:
            yield Fault(
                file=DESCRIPTOR_NAME,
                found=f"{counted(num_refs, 'row')} of {member.dataset}",
                expected=f"{member.num_refs}",
            )


def _pool_tasks(folder: Folder, descriptor: Descriptor, findings: Sequence[ShardFindings]) -> Iterator[PoolTask]:
    locations: dict[str, list[NDArray[np.void]]] = defaultdict(list)
    for found in findings:
        for file, of_file in found.locations.items():
            locations[file].append(of_file)
    for pool in descriptor.image_pools:
        try:
            address = open_pool(folder, pool).address
        except DatasetError:
            continue  # the pool is on a host that is not allowed, which `_check_files` reports
        for tar in pool.tars:
            file = f"{pool.name}/{tar.name}"
            yield PoolTask(
                folder=address,
                tar=tar,
                file=file,
                locations=np.unique(np.concatenate([np.empty(0, SAMPLE_LOCATION), *locations[file]])),
                remedy=pool_remedy(pool),
                stored_images=pool.stored_images,
            )
