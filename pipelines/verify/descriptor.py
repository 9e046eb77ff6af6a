"""Checks the descriptor for contradictions, and compares the counts with the published counts."""

from collections import Counter
from collections.abc import Iterator

import pyarrow as pa

from pipelines.build_plan import fingerprint
from pipelines.published import COUNTED, find_differences
from refseg import tokenizer
from refseg.dataset.descriptor import DESCRIPTOR_NAME, Descriptor, ShardEntry, SplitCounts
from refseg.dataset.faults import Fault
from refseg.dataset.manifest_reader import dataset_ids
from refseg.dataset.schema import find_dataset
from refseg.errors import UsageError
from refseg.wording import counted

_MIX = "mix/"


def check_descriptor(descriptor: Descriptor) -> Iterator[Fault]:
    """Check every field that depends on another field or on this release."""
    known_splits: set[str] | None = set()
    for dataset_id in dataset_ids(descriptor):
        try:
            splits = find_dataset(dataset_id).splits
        except UsageError as error:
            yield _fault(f"dataset {dataset_id!r} ({error})", "a dataset of this release")
            return
        known_splits = known_splits | set(splits) if splits and known_splits is not None else None
    if bool(descriptor.mix) != descriptor.dataset.startswith(_MIX):
        yield _fault(
            f"{descriptor.dataset} with {counted(len(descriptor.mix), 'member')}",
            "members in a mix, and none in other datasets",
        )
    if descriptor.tokenizer != tokenizer.IDENTITY:
        yield _fault(f"tokenizer {descriptor.tokenizer}", f"{tokenizer.IDENTITY}")
    if descriptor.plan_fingerprint != fingerprint(descriptor.plan_keys):
        yield _fault(f"plan fingerprint {descriptor.plan_fingerprint:.12}", "the hash of its plan keys")
    for source in descriptor.sources:
        planned = descriptor.plan_keys.get(f"source {source.name}")
        if source.sha256 != planned:
            yield _fault(
                f"source {source.name} with sha256 {source.sha256!s:.12}", f"{planned!s:.12} as in its plan keys"
            )
    for member in descriptor.mix:
        if member.leaked_images and not descriptor.leaks_allowed:
            yield _fault(
                f"{member.leaked_images} leaked images of {member.dataset}", "none, because leaks were not allowed"
            )
    for entry in descriptor.shards:
        yield from _check_entry(entry, known_splits, has_pools=bool(descriptor.image_pools))


def _check_entry(entry: ShardEntry, known_splits: set[str] | None, *, has_pools: bool) -> Iterator[Fault]:
    if known_splits is not None and entry.split not in known_splits:
        yield _fault(f"shard {entry.name!r} of split {entry.split!r}", f"one of {', '.join(sorted(known_splits))}")
    if bool(entry.num_samples) != bool(entry.tar_bytes) or bool(entry.num_samples) != bool(entry.tar_sha256):
        yield _fault(
            f"shard {entry.name}: {counted(entry.num_samples, 'sample')} in {counted(entry.tar_bytes, 'byte')}",
            "either both or neither",
        )
    if entry.num_samples > entry.num_images or (entry.num_samples < entry.num_images and not has_pools):
        yield _fault(
            f"shard {entry.name}: {counted(entry.num_samples, 'sample')} for {counted(entry.num_images, 'image')}",
            "one for each image that is not in a pool",
        )


def check_counts(descriptor: Descriptor, rejects: pa.Table | None) -> Iterator[Fault]:
    """Check that the source's refs are rows plus rejects, and that the source has the published counts.

    Args:
        descriptor: Descriptor of the dataset.
        rejects: The rejected refs; None if they cannot be read.
    """
    rejected = None if rejects is None else Counter(rejects.column("split").to_pylist())
    if not descriptor.mix:
        for split in descriptor.splits:
            if split not in descriptor.source_counts:
                yield _fault(f"no source counts of split {split}", "counts of every split")
                continue
            for name in COUNTED:
                if getattr(descriptor.source_counts[split], name) is None:
                    yield _fault(f"no count of the {name} in split {split} of the source", "a number")
    for split, source in descriptor.source_counts.items():
        rows = split_counts(descriptor, split)
        if rejected is None:
            continue
        num_rejected = rejected[split]
        if source.refs is not None and source.refs != (rows.refs or 0) + num_rejected:
            yield _fault(
                f"{counted(rows.refs or 0, 'row')} and {counted(num_rejected, 'reject')} in split {split}",
                f"together the {source.refs} refs of the source",
            )
        for name in ("images", "sentences"):
            known, kept = getattr(source, name), getattr(rows, name)
            # Rejects do not record how many images and sentences they had, so with rejects only a surplus is a fault.
            if known is not None and (kept > known or (kept < known and not num_rejected)):
                yield _fault(f"{kept} {name} in split {split}", f"{known} as in the source")
    if not descriptor.counts_accepted:
        for difference in find_differences(descriptor.dataset, descriptor.source_counts):
            yield Fault(
                file=DESCRIPTOR_NAME,
                sample=f"split {difference.split}",
                found=f"{difference.found} {difference.what} in the source",
                expected=f"{difference.published} as published",
                remedy="build again from the complete, unchanged annotation files; if the other count is intended, "
                "build with --accept-counts, which is recorded in the descriptor",
            )


def split_counts(descriptor: Descriptor, split: str) -> SplitCounts:
    """Return the total counts of the shards of a split."""
    entries = [entry for entry in descriptor.shards if entry.split == split]
    return SplitCounts(
        images=sum(entry.num_images for entry in entries),
        refs=sum(entry.num_refs for entry in entries),
        sentences=sum(entry.num_sentences for entry in entries),
    )


def _fault(found: str, expected: str) -> Fault:
    return Fault(file=DESCRIPTOR_NAME, found=found, expected=expected)
