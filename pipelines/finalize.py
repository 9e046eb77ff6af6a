"""Finishes a build by writing rejects, indexes and the descriptor from the receipts of all shards."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace

from pipelines.build_folder import BUILD_FOLDER, hash_file, publish_bytes, scratch_files, scratch_folder
from pipelines.build_plan import BuildPlan
from pipelines.build_shard import Receipt
from pipelines.options import BuildOptions, apply_policy
from pipelines.rejects import write_rejects
from pipelines.shared_images import find_shared_images
from refseg import __version__, tokenizer
from refseg.dataset.descriptor import DESCRIPTOR_NAME, REJECTS_NAME, Descriptor, ShardEntry
from refseg.dataset.index_file import write_indexes
from refseg.dataset.schema import find_dataset
from refseg.errors import BuildError
from refseg.storage import Folder

logger = logging.getLogger(__name__)


def finalize(folder: Folder, plan: BuildPlan, receipts: Mapping[str, Receipt], options: BuildOptions) -> Descriptor:
    """Write the rejects, the indexes and, last, the descriptor, which makes the folder a finished dataset.

    Args:
        folder: The dataset's folder.
        plan: The build's plan.
        receipts: Receipts of all shards of the plan, by shard name.
        options: The build's options.

    Raises:
        AnnotationError, ImageError: With `on_bad_sample` `fail`, if there are faults.
        BuildError: If there are too many faults, all refs have faults, or shared images are refused.
        OSError: If the folder cannot be written.
    """
    entries = [receipts[shard.name].entry for shard in plan.shards]
    rejects = [*plan.rejects, *(reject for shard in plan.shards for reject in receipts[shard.name].rejects)]
    apply_policy(rejects, options)
    if not any(entry.num_refs for entry in entries):
        raise BuildError(f"{plan.dataset}: all {len(rejects):,} refs have faults; the first: {rejects[0].message}")
    shards = tuple(entry for entry in entries if entry.num_images)
    report_shared_images(folder, plan.dataset, shards, options)
    rejects_sha256 = ""
    if rejects:
        with scratch_files(folder, REJECTS_NAME) as (path,):
            write_rejects(path, rejects, find_dataset(plan.dataset))
            rejects_sha256 = hash_file(path)
            folder.publish(path, REJECTS_NAME)
    descriptor = Descriptor(
        dataset=plan.dataset,
        refseg_version=__version__,
        plan_fingerprint=plan.fingerprint,
        mask_rule=plan.mask_rule,
        tokenizer=dict(tokenizer.IDENTITY),
        num_rejects=len(rejects),
        rejects_sha256=rejects_sha256,
        shards=shards,
        sources=plan.sources,
        licences=plan.licences,
        plan_keys=plan.keys,
        source_counts=plan.source_counts,
        counts_accepted=plan.counts_accepted,
        stored_images=plan.stored_images,
        image_pools=plan.image_pools,
    )
    with scratch_folder(folder) as stage:
        descriptor = replace(descriptor, indexes=write_indexes(folder, descriptor, stage))
    publish_bytes(folder, descriptor.to_json().encode(), DESCRIPTOR_NAME)
    folder.remove(BUILD_FOLDER)
    return descriptor


def report_shared_images(folder: Folder, dataset_id: str, shards: Sequence[ShardEntry], options: BuildOptions) -> None:
    """Log a warning about pictures in several splits or under several ids.

    Raises:
        BuildError: If such pictures exist and `on_shared_images` is `refuse`.
    """
    found = find_shared_images(folder, dataset_id, shards)
    if not found.describe():
        return
    if options.on_shared_images == "refuse":
        raise BuildError(f"{dataset_id}: {found.describe()}, or remove --on-shared-images refuse")
    logger.warning("%s: %s (--on-shared-images refuse makes this an error)", dataset_id, found.describe())
