"""Surveys a source, checks all records and counts before any image is read, and makes the plan of a build."""

import logging
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import __version__ as pillow

from pipelines.build_folder import PLAN_NAME, publish_bytes, scratch_folder
from pipelines.build_plan import BuildPlan, PlannedShard, plan_keys
from pipelines.check import CheckedShard, CheckTask, check_records
from pipelines.engines import run_local
from pipelines.images import ImageFinder, SourceImage, describe_alike
from pipelines.options import BuildOptions, apply_policy
from pipelines.pools import ImagePools
from pipelines.published import find_differences
from pipelines.records import make_records
from pipelines.rejects import LEFT_OUT
from pipelines.sources.raw import RawShard, RawSource
from pipelines.spill import Spill, spill_path
from pipelines.survey import Survey, spill_refs, survey_refs
from pipelines.survey_tables import FindImage, Tables, survey_tables
from refseg.dataset.descriptor import SplitCounts
from refseg.dataset.schema import CUSTOM
from refseg.errors import BuildError, ImageError, UsageError
from refseg.storage import Folder, archive_as_folder, open_folder, whole_address

logger = logging.getLogger(__name__)

_REFS_PER_WORKER = 5000
"""Number of refs that are checked in the time that a process needs to start."""


def source_keys(source: RawSource, options: BuildOptions) -> dict[str, str]:
    """Return the plan's keys for these inputs (`BuildPlan.keys`), without checking records."""
    return _survey(source, options, None).keys


OPTIONAL_KEYS = ("mask_png", "store", "reader", "as_split", "ignored_regions", "convert_images")
"""Keys that `option_keys` contains only if the option is given."""


def option_keys(options: BuildOptions) -> dict[str, str]:
    """Return the keys of a plan that depend only on options."""
    keys: dict[str, object] = {
        "images_per_shard": options.images_per_shard,
        "seed": options.seed,
        "mask_rule": options.mask_rule,
        "check_images": options.check_images,
    }
    if str(options.png_rule):
        keys["mask_png"] = str(options.png_rule)
    if options.reader is not None:
        keys["reader"] = options.reader
    if options.ignored_regions != "refuse":
        keys["ignored_regions"] = options.ignored_regions
    if options.as_split is not None:
        keys["as_split"] = options.as_split
    if options.conversion is not None:
        keys["convert_images"] = f"{options.conversion} pillow {pillow}"
    if options.store is not None:
        keys["store"] = f"{options.store} quality {options.store_quality} pillow {pillow}"
    return {name: str(value) for name, value in keys.items()}


def make_plan(source: RawSource, options: BuildOptions, *, workers: int) -> BuildPlan:
    """Read and check all annotations and write the plan.

    Args:
        source: The annotations.
        options: Options of the build.
        workers: Number of local processes that check records.

    Raises:
        UsageError: If no image is found, or a split has no refs.
        AnnotationError, ImageError: With `on_bad_sample` `fail`, if the source has faults. For a user's own data the
            message lists up to ten missing images.
        BuildError: If there are too many faults, or the counts differ from the published ones and `accept_counts` is
            not set.
    """
    folder = open_folder(options.out)
    with scratch_folder(folder) as scratch:
        spill = Spill(scratch)
        surveyed = _survey(source, options, spill)
        survey, tables, finder = surveyed.survey, surveyed.tables, surveyed.finder
        alike = finder.find_alike(tuple(tables.missing.values())) if finder and tables.missing else {}
        if source.spec.dataset == CUSTOM and tables.num_missing and options.on_bad_sample == "fail":
            images = options.images or options.annotations
            fault = _describe_missing(source, tables, alike, images=images)
            raise ImageError(fault) if tables.num_found else UsageError(fault)
        if tables.num_missing and not tables.num_found:
            first = next(iter(alike or tables.missing.values()))
            raise UsageError(
                f"--images {options.images or options.annotations}: found none of the images ({first}, ...), neither "
                "in that folder nor in train2014/, images/train2014/, images/mscoco/images/train2014/ or similar ones"
                f"{describe_alike(first, alike.get(first))}"
            )
        _check_counts(source.spec.dataset_id, survey.counts, accept=options.accept_counts)
        spill_refs(source, survey, spill)
        faults = make_records(RawShard(spec=source.spec, refs=survey.unassigned), mask_rule=options.mask_rule)[1]
        tasks = _check_tasks(source, options, survey, tables, alike, scratch)
        found: dict[Path, CheckedShard] = {}
        num_refs = sum(counts.refs or 0 for counts in survey.counts.values())
        for checked in run_local(check_records, tasks, min(workers, 1 + num_refs // _REFS_PER_WORKER)):
            found[checked.out] = checked
            faults += checked.rejects
        rejects = [reject for _, reject in sorted(faults, key=lambda fault: fault[0])]
        logger.info("%s: read %d refs, %d rejected", source.spec.dataset_id, num_refs, len(rejects))
        for reason, described in LEFT_OUT.items():
            if number := sum(reject.reason == reason for reject in rejects):
                logger.warning(
                    "%s: left out %d %s; rejects.parquet names them", *(source.spec.dataset_id, number, described)
                )
        apply_policy(rejects, options)
        checks = [found[task.out] for task in tasks]
        if not any(checked.num_samples for checked in checks):
            raise BuildError(
                f"{options.dataset}: all {len(rejects):,} refs have faults; the first: {rejects[0].message}"
            )
        used_tars = (tar for checked in checks for tar in checked.pool_tars)
        plan = BuildPlan(
            dataset=source.spec.dataset_id,
            keys=surveyed.keys,
            mask_rule=options.mask_rule,
            shards=_publish_samples(folder, survey, checks),
            rejects=tuple(rejects),
            sources=source.sources,
            licences=tables.licences,
            source_counts=survey.counts,
            counts_accepted=bool(find_differences(source.spec.dataset_id, survey.counts)),
            stored_images=options.stored_images,
            image_pools=surveyed.pools.describe(used_tars) if surveyed.pools else (),
        )
    publish_bytes(folder, plan.to_json().encode(), PLAN_NAME)
    return plan


def _describe_missing(source: RawSource, tables: Tables, alike: Mapping[str, str], *, images: Path | str) -> str:
    """Return a message that lists missing pictures, each with the first row that names it and a similar file name.

    Args:
        source: A `custom` dataset.
        tables: Result of `survey_tables`, with missing pictures.
        alike: Result of `ImageFinder.find_alike`: names of similar files, by missing name.
        images: The folder that was searched, as the user gave it.
    """
    rows: dict[int, str] = {}
    for ref in source.refs:
        if ref["image_id"] in tables.missing:
            rows.setdefault(ref["image_id"], ref["where"])
    lines = [
        f"  {rows[image_id]}: found no file {name}{describe_alike(name, alike.get(name))}"
        for image_id, name in tables.missing.items()
    ]
    if tables.num_missing > len(lines):
        lines.append(f"  and {tables.num_missing - len(lines)} more")
    return (
        f"{source.spec.dataset_id}: {tables.num_missing} of {tables.num_found + tables.num_missing} pictures are not "
        f"below {images}; names must match exactly, with their folders; correct the table, or give --images"
        "\n" + "\n".join(lines)
    )


def _check_counts(dataset_id: str, counts: dict[str, SplitCounts], *, accept: bool) -> None:
    differences = "; ".join(map(str, find_differences(dataset_id, counts)))
    if not differences:
        return
    if not accept:
        raise BuildError(
            f"{dataset_id}: the counts differ from the published ones ({differences}); take the files from their "
            "release, or give --accept-counts to build with these counts, which is recorded in the descriptor"
        )
    logger.warning("%s: accepted counts that differ from the published ones (%s)", dataset_id, differences)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Surveyed:
    """The survey of a source, the results of its tables, and the plan's keys."""

    survey: Survey
    tables: Tables
    finder: ImageFinder | None
    pools: ImagePools | None
    keys: dict[str, str]


def _survey(source: RawSource, options: BuildOptions, spill: Spill | None) -> _Surveyed:
    pools = ImagePools(options.images_from, source.spec, options.out) if options.images_from else None
    survey = survey_refs(source, splits=options.splits, images_per_shard=options.images_per_shard, seed=options.seed)
    roots = _image_roots(options)
    keep_folders = source.spec.dataset == CUSTOM
    finder = ImageFinder(roots, is_coco=source.spec.is_coco, keep_folders=keep_folders) if roots else None
    tables = survey_tables(source, survey, _image_lookup(finder, pools), spill)
    keys = plan_keys(
        source,
        splits=survey.splits,
        images=tables.images_digest,
        options={**option_keys(options), **({"images_from": pools.key} if pools else {})},
    )
    return _Surveyed(survey=survey, tables=tables, finder=finder, pools=pools, keys=keys)


def _image_lookup(finder: ImageFinder | None, pools: ImagePools | None) -> FindImage:
    """Return a function that finds an image in the pools or, if it is not there, among the files."""

    def find(image_id: int, file_name: str) -> SourceImage | None:
        found = pools.find(image_id) if pools else None
        return finder.find(image_id, file_name) if found is None and finder is not None else found

    return find


def _image_roots(options: BuildOptions) -> list[str]:
    """Return the folders to search for images: the given folder or, without one, the folders beside the annotations."""
    if options.images is not None:
        return [whole_address(options.images)]
    address, annotations = archive_as_folder(options.annotations), open_folder(options.annotations)
    is_archive = address != whole_address(options.annotations)
    holds_instances = any(annotations.size(name) is not None for name in ("instances.json", "instances.json.gz"))
    if is_archive or not annotations.exists() or holds_instances:
        # `annotations` is a single file, or the dataset's own folder in REFER's layout; images may be one level above.
        return [root for root in (address, whole_address(annotations.join(".."))) if open_folder(root).exists()]
    return [address]


def _check_tasks(
    source: RawSource, options: BuildOptions, survey: Survey, tables: Tables, alike: dict[str, str], scratch: Path
) -> list[CheckTask]:
    later_splits: dict[str, dict[int, int]] = defaultdict(dict)
    for (split, image_id), number in survey.later_splits.items():
        later_splits[split][image_id] = number
    return [
        CheckTask(
            spill=spill_path(scratch, number),
            out=scratch / f"{number:07d}.jsonl",
            spec=source.spec,
            seed=options.seed,
            mask_rule=options.mask_rule,
            conversion=options.conversion,
            categories=tables.categories,
            box_targets=source.box_targets,
            repeated=survey.repeated,
            repeated_sentences=survey.repeated_sentences,
            later_splits=later_splits[split],
            alike=alike,
        )
        for number, split in enumerate(survey.shard_splits)
    ]


def _publish_samples(folder: Folder, survey: Survey, checks: Sequence[CheckedShard]) -> tuple[PlannedShard, ...]:
    """Publish the sample files in the dataset's folder, and number the shards that have samples without gaps."""
    shards: list[PlannedShard] = []
    numbers: Counter[str] = Counter()
    for split, checked in zip(survey.shard_splits, checks, strict=True):
        if checked.num_samples:
            number = numbers[split]
            numbers[split] += 1
            shard = PlannedShard(
                name=f"{split}-{number:05d}",
                split=split,
                num_samples=checked.num_samples,
                samples_sha256=checked.sha256,
            )
            folder.publish(checked.out, shard.samples_name)
            shards.append(shard)
    return tuple(shards)
