"""Runs the stages of a build (plan, shards, finalize) and resumes an interrupted build."""

import errno
import logging
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from pipelines.build_folder import BUILD_FOLDER, lock_folder, own_folder, remove_leftovers
from pipelines.build_plan import TOOL_KEYS, BuildPlan, differing_keys, load_plan
from pipelines.build_shard import BuildTask, Receipt, build_shard, find_receipt
from pipelines.engines import check_engine, run_tasks, usable_cores
from pipelines.finalize import finalize, report_shared_images
from pipelines.options import BuildOptions, apply_policy
from pipelines.planning import OPTIONAL_KEYS, make_plan, option_keys, source_keys
from pipelines.rejects import Reject
from pipelines.sources import ReadOptions, read_source
from pipelines.sources.raw import RawSource
from pipelines.sources.source_file import local_annotations
from pipelines.verify import verify_dataset
from refseg.dataset.descriptor import DESCRIPTOR_NAME, Descriptor, load_descriptor
from refseg.dataset.schema import CUSTOM, find_dataset
from refseg.errors import BuildError, StorageError, UsageError
from refseg.storage import Folder, LocalFolder, is_remote, open_folder

logger = logging.getLogger(__name__)

_OF_WRITING = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
_NAMED = 5
"""Largest number of missing shards that a message names."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildResult:
    """The state of a build after a stage.

    Attributes:
        descriptor: Descriptor of the finished dataset; None after the stages `plan` and `shards`.
        was_complete: True if an earlier run had finished the dataset and nothing was changed.
        num_shards: Number of shards in the plan.
        num_built: Number of finished shards among the shards that this call handled.
    """

    descriptor: Descriptor | None
    was_complete: bool
    num_shards: int
    num_built: int


def build_dataset(options: BuildOptions, *, progress: Callable[[int, int], None] | None = None) -> BuildResult:
    """Build a dataset, resume an interrupted build, or check a finished dataset.

    If the data has a fault, the build ends, and the files of a build that this call started are removed. After any
    other failure, such as a kill, a full disk or a storage error, the same call resumes the build. No reader accepts
    the folder of an unfinished build as a dataset.

    Args:
        options: Options of the build.
        progress: Called after each shard with (images done, total images). If None, finished shards are logged.

    Raises:
        UsageError: If a path or option is wrong, or the folder holds files of another kind.
        AnnotationError, ImageError: With `on_bad_sample` `fail`, if annotations or a picture have faults.
        BuildError: If there are too many faults, the folder holds a build of other inputs, or it cannot be written.
        WorkerError: If a worker died.
        StorageError: If remote storage fails even after retries.
    """
    folder = open_folder(options.out)
    check_engine(options.engine)
    try:
        if options.stage in ("all", "plan"):
            spec = find_dataset(options.dataset)
            said = ReadOptions(
                png_rule=options.png_rule, as_split=options.as_split or "", ignored_regions=options.ignored_regions
            )
            with local_annotations(options.annotations, "" if spec.dataset == CUSTOM else spec.folder) as annotations:
                source = read_source(spec, annotations, said, reader=options.reader or "")
                return _build_from_source(folder, source, options, progress)
        return _build_from_plan(folder, options, progress)
    except StorageError:
        raise
    except (KeyboardInterrupt, SystemExit):
        logger.warning("%s: interrupted; run the same command again to resume", folder)
        raise
    except OSError as error:
        raise BuildError(_describe(error, options)) from error


def _describe(error: OSError, options: BuildOptions) -> str:
    """Return the message for an error. Paths outside the dataset's folder are only read; all others are written."""
    path = str(error.filename or options.out)
    is_in_folder = not is_remote(options.out) and Path(path).absolute().is_relative_to(Path(options.out).absolute())
    if is_in_folder or error.errno in _OF_WRITING:
        return (
            f"{path}: cannot be written ({error.strerror or error}); check permissions and free disk space, then run "
            "the same command to resume"
        )
    return f"{path}: cannot be read ({error.strerror or error}); check its permissions, then run the same command again"


def _build_from_source(
    folder: Folder, source: RawSource, options: BuildOptions, progress: Callable[[int, int], None] | None
) -> BuildResult:
    """Run the stages `plan` and `all`."""
    if folder.size(DESCRIPTOR_NAME) is not None:
        descriptor = _check_finished(folder, source_keys(source, options), options)
        num_shards = len(descriptor.shards)
        return BuildResult(descriptor=descriptor, was_complete=True, num_shards=num_shards, num_built=num_shards)
    begun = load_plan(folder)
    if begun is not None:
        _refuse_other_inputs(folder, begun.keys, source_keys(source, options))
    else:
        _refuse_foreign(folder)
    with own_folder(folder, is_new=begun is None):
        workers = options.workers or usable_cores()
        plan = begun or make_plan(source, options, workers=workers)
        if options.stage == "plan":
            return BuildResult(descriptor=None, was_complete=False, num_shards=len(plan.shards), num_built=0)
        tasks = _tasks(folder, plan, options)
        receipts = _build_shards(plan, tasks, options, progress)
        descriptor = finalize(folder, plan, receipts, options)
    num_shards = len(plan.shards)
    return BuildResult(descriptor=descriptor, was_complete=False, num_shards=num_shards, num_built=num_shards)


def _build_from_plan(folder: Folder, options: BuildOptions, progress: Callable[[int, int], None] | None) -> BuildResult:
    """Run the stages `shards` and `finalize`, which read only the plan and not the sources."""
    if folder.size(DESCRIPTOR_NAME) is not None:
        descriptor = load_descriptor(options.out)
        _refuse_other_dataset(folder, descriptor.dataset, options)
        _refuse_other_options(folder, descriptor.plan_keys, options)
        if options.stage == "finalize":
            remove_leftovers(folder)
        num_shards = len(descriptor.shards)
        return BuildResult(descriptor=descriptor, was_complete=True, num_shards=num_shards, num_built=num_shards)
    plan = load_plan(folder)
    if plan is None:
        raise BuildError(f"{folder}: found no plan; run the same command with --stage plan first")
    _refuse_other_dataset(folder, plan.dataset, options)
    _refuse_other_options(folder, plan.keys, options)
    tasks = _tasks(folder, plan, options)
    if options.stage == "shards":
        with lock_folder(folder, shared=True):
            receipts = _build_shards(plan, tasks[options.task_index :: options.task_count], options, progress)
        return BuildResult(descriptor=None, was_complete=False, num_shards=len(plan.shards), num_built=len(receipts))
    receipts = {task.shard.name: receipt for task in tasks if (receipt := find_receipt(task)) is not None}
    missing = [task.shard.name for task in tasks if task.shard.name not in receipts]
    if missing:
        named = ", ".join(missing[:_NAMED]) + (", ..." if len(missing) > _NAMED else "")
        raise BuildError(
            f"{folder}: {len(missing)} of {len(tasks)} shards are not built ({named}); "
            "run their tasks again with --stage shards, then --stage finalize"
        )
    with own_folder(folder, is_new=False):
        descriptor = finalize(folder, plan, receipts, options)
    num_shards = len(plan.shards)
    return BuildResult(descriptor=descriptor, was_complete=False, num_shards=num_shards, num_built=num_shards)


def _tasks(folder: Folder, plan: BuildPlan, options: BuildOptions) -> list[BuildTask]:
    return [
        BuildTask(
            folder=str(folder.path.absolute()) if isinstance(folder, LocalFolder) else folder.address,
            shard=shard,
            fingerprint=plan.fingerprint,
            tools=plan.tools,
            skip_bad=options.on_bad_sample == "skip",
            decode=options.check_images == "decode",
            stored_images=plan.stored_images,
            conversion=options.conversion,
        )
        for shard in plan.shards
    ]


def _check_finished(folder: Folder, keys: dict[str, str], options: BuildOptions) -> Descriptor:
    """Compare a finished dataset with the options, check the files, and remove temporary files of a killed process."""
    descriptor = load_descriptor(folder.address)
    _refuse_other_inputs(folder, descriptor.plan_keys, keys, but=TOOL_KEYS)
    faults = verify_dataset(folder.address, fast=True)
    if faults:
        raise BuildError(f"{folder}: the finished dataset is damaged: {faults[0]}")
    if options.on_shared_images == "refuse":
        report_shared_images(folder, descriptor.dataset, descriptor.shards, options)
    remove_leftovers(folder)
    return descriptor


def _refuse_foreign(folder: Folder) -> None:
    """Refuse a folder with files but without a plan.

    A `.build` folder alone is accepted, because a kill can leave it.
    """
    if isinstance(folder, LocalFolder):
        if folder.path.exists() and not folder.path.is_dir():
            raise UsageError(f"--out {folder}: is a file, expected a folder to build in")
        held = sorted(path.name for path in folder.path.glob("*")) if folder.path.exists() else []
    else:
        held = sorted(folder.list())
    foreign = [name for name in held if name != BUILD_FOLDER]
    if foreign:
        raise UsageError(f"--out {folder}: found {foreign[0]} and no unfinished build; expected a new or empty folder")


def _refuse_other_dataset(folder: Folder, dataset_id: str, options: BuildOptions) -> None:
    if dataset_id != find_dataset(options.dataset).dataset_id:
        raise UsageError(f"{folder}: found {dataset_id}, expected {options.dataset}; give another --out")


def _refuse_other_options(folder: Folder, keys: dict[str, str], options: BuildOptions) -> None:
    """Refuse options that differ from the plan's. Sources are not compared, because they are not read again."""
    now = option_keys(options)
    if options.splits is not None:
        asked = set(options.splits)
        now["splits"] = " ".join(
            [split for split in keys["splits"].split() if split in asked] + sorted(asked - set(keys["splits"].split()))
        )
    before = {name: value for name, value in keys.items() if name in {**now, **dict.fromkeys(OPTIONAL_KEYS)}}
    _refuse_other_inputs(folder, before, now)


def _refuse_other_inputs(
    folder: Folder, before: dict[str, str], now: dict[str, str], *, but: Sequence[str] = ()
) -> None:
    differing = differing_keys(before, now, but=but)
    if differing:
        raise BuildError(
            f"{folder}: was built or started with other inputs ({'; '.join(differing)}); "
            "give the same inputs or another --out, or delete the folder"
        )


def _build_shards(
    plan: BuildPlan,
    tasks: Sequence[BuildTask],
    options: BuildOptions,
    progress: Callable[[int, int], None] | None,
) -> dict[str, Receipt]:
    """Build the shards that have no receipt, and return the receipts of all tasks by shard name."""
    receipts = {task.shard.name: receipt for task in tasks if (receipt := find_receipt(task)) is not None}
    rejects: list[Reject] = [*plan.rejects, *(reject for receipt in receipts.values() for reject in receipt.rejects)]
    apply_policy(rejects, options)
    if receipts:
        logger.info("%s: %d of %d shards were built before", options.out, len(receipts), len(tasks))
    num_samples = {task.shard.name: task.shard.num_samples for task in tasks}
    left = [task for task in tasks if task.shard.name not in receipts]
    results = run_tasks(options.engine, build_shard, left, options.workers, name=lambda task: task.shard.name)
    with closing(results):  # ends all workers after a fault, so that their files can be removed
        for receipt in results:
            entry = receipt.entry
            receipts[entry.name] = receipt
            rejects += receipt.rejects
            apply_policy(rejects, options)
            if progress is not None:
                progress(sum(num_samples[name] for name in receipts), sum(num_samples.values()))
            else:
                logger.info(
                    "%s: %d images, %d refs, %.1f MB (%d of %d shards)",
                    entry.name,
                    entry.num_images,
                    entry.num_refs,
                    (entry.tar_bytes + entry.parquet_bytes) / 1e6,
                    len(receipts),
                    len(tasks),
                )
    return receipts
