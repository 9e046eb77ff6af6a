"""Strings the stages together: read, check, plan, build shards, finalize; and goes on where a killed build stopped."""

import fcntl
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import BrokenExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from pipelines.engines import run_local
from pipelines.images import ImageFile, ImageIndex
from pipelines.plan import TOOL_KEYS, Plan, differing_keys, make_plan, plan_keys
from pipelines.publish import publish, publish_bytes
from pipelines.records import find_split, make_records
from pipelines.rejects import REJECTS_NAME, Reject, write_rejects
from pipelines.shards import BUILD_FOLDER, RECEIPTS_FOLDER, Receipt, find_receipt, reject_image
from pipelines.sources.raw import RawDataset
from pipelines.sources.refer import find_refer_folder, read_refer
from pipelines.verify import verify_dataset
from refseg import __version__, tokenizer
from refseg.descriptor import DESCRIPTOR_NAME, Descriptor, load_descriptor
from refseg.errors import AnnotationError, BuildError, RefsegError, UsageError
from refseg.schema import MASK_RULES, RefRecord, find_dataset

logger = logging.getLogger(__name__)

ON_BAD_SAMPLE = ("fail", "skip")
_PLAN_NAME = "plan.json"
_LOCK_NAME = "lock"


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildOptions:
    """What to build, from what, where and how.

    Attributes:
        dataset: Dataset id with its partition, for example `refcoco/unc`.
        annotations: Folder that holds the annotation files in REFER's layout.
        out: The dataset's own folder; made if it is not there.
        images: Folder of the images; None: beside the annotations.
        splits: Which splits; None: all that have refs.
        workers: Processes; None: one per core, at most one per shard.
        images_per_shard: At most so many images in a tar.
        seed: Of the order of images.
        mask_rule: `union` or `legacy`.
        on_bad_sample: `fail`: the first fault ends the build. `skip`: faulty refs go to `rejects.parquet`.
        max_bad: With `skip`: more rejects than this end the build; None: no limit.

    Raises:
        UsageError: If a value is not one of those allowed.
    """

    dataset: str
    annotations: Path
    out: Path
    images: Path | None = None
    splits: tuple[str, ...] | None = None
    workers: int | None = None
    images_per_shard: int = 512
    seed: int = 0
    mask_rule: str = "union"
    on_bad_sample: str = "fail"
    max_bad: int | None = None

    def __post_init__(self) -> None:
        for name, value, allowed in (
            ("--mask-rule", self.mask_rule, MASK_RULES),
            ("--on-bad-sample", self.on_bad_sample, ON_BAD_SAMPLE),
        ):
            if value not in allowed:
                raise UsageError(f"{name} {value}: expected {' or '.join(allowed)}")
        for name, number, least in (
            ("--workers", self.workers, 1),
            ("--images-per-shard", self.images_per_shard, 1),
            ("--max-bad", self.max_bad, 0),
        ):
            if number is not None and number < least:
                raise UsageError(f"{name} {number}: expected {least} or more")
        if self.max_bad is not None and self.on_bad_sample != "skip":
            raise UsageError("--max-bad needs --on-bad-sample skip: without it the first fault ends the build")


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildResult:
    """What there is now.

    Attributes:
        descriptor: Of the finished dataset.
        was_complete: True if an earlier run had finished it and nothing was changed.
    """

    descriptor: Descriptor
    was_complete: bool


def build_dataset(options: BuildOptions, *, progress: Callable[[int, int], None] | None = None) -> BuildResult:
    """Build a dataset, go on with an interrupted build, or check a finished one.

    A fault of the data ends a build that this call began and removes what it wrote. A kill, an interrupt or a full
    disk leave a state in which the same call goes on; no reader takes it for a dataset.

    Args:
        options: See there.
        progress: Called with (images done, images in all) after each shard; without it, shards are logged.

    Raises:
        UsageError: If a path or option is wrong, or the folder holds something else.
        AnnotationError, ImageError: The first fault of the data, with `on_bad_sample` `fail`.
        BuildError: If there are too many faults, the folder was begun with other inputs, or cannot be written.
    """
    spec = find_dataset(options.dataset)
    raw = read_refer(spec, options.annotations)
    splits = _choose_splits(raw, options.splits)
    files = _find_images(raw, splits, _image_roots(raw, options))
    keys = plan_keys(
        raw,
        files,
        splits=splits,
        images_per_shard=options.images_per_shard,
        seed=options.seed,
        mask_rule=options.mask_rule,
    )
    if _is_finished(options.out):
        return BuildResult(descriptor=_check_finished(options.out, keys), was_complete=True)
    _check_unfinished(options.out, keys)

    records, rejects = make_records(raw, splits=splits, mask_rule=options.mask_rule)
    logger.info("%s: read %d refs, %d rejected", spec.dataset_id, len(records) + len(rejects), len(rejects))
    missing = [record for record in records if files[record.image_id] is None]
    rejects += [
        reject
        for record in missing
        for reject in reject_image(
            [record], "missing_image", f"found no file {record.file_name}, also under COCO's names; give --images"
        )
    ]
    _apply_policy(rejects, options)
    found = {image_id: file for image_id, file in files.items() if file is not None}
    plan = make_plan(
        spec,
        [record for record in records if record.image_id in found],
        found,
        keys=keys,
        folder=options.out,
        images_per_shard=options.images_per_shard,
        seed=options.seed,
        skip_bad=options.on_bad_sample == "skip",
    )
    try:
        with _own_folder(options.out, plan):
            receipts = _build_shards(plan, rejects, options, progress)
            descriptor = _finalize(plan, raw, receipts, rejects, options)
    except OSError as error:
        raise BuildError(
            f"{error.filename or options.out}: cannot be written ({error.strerror or error}); "
            "see to space and rights, then run the same command to go on"
        ) from error
    except BrokenExecutor as error:
        raise BuildError(
            f"{options.out}: a worker process died (killed, or out of memory?); "
            "run the same command to go on, with fewer --workers if memory is short"
        ) from error
    return BuildResult(descriptor=descriptor, was_complete=False)


def _choose_splits(raw: RawDataset, wanted: Sequence[str] | None) -> tuple[str, ...]:
    """Splits to build, in canonical order."""
    named = {find_split(ref) for ref in raw.refs}
    found = [split for split in raw.spec.splits if split in named]
    if wanted is None:
        if not found:
            raise AnnotationError(
                f"{raw.sources[0].name}: found no ref of a split of {raw.spec.dataset_id}, "
                f"expected {', '.join(raw.spec.splits)}; is it the file of another partition?"
            )
        return tuple(found)
    for split in wanted:
        if split not in found:
            raise UsageError(f"--splits {split}: {raw.sources[0].name} has no such refs, expected {', '.join(found)}")
    return tuple(split for split in found if split in wanted)


def _image_roots(raw: RawDataset, options: BuildOptions) -> list[Path]:
    if options.images is not None:
        return [options.images]
    if find_refer_folder(raw.spec, options.annotations) == options.annotations:
        return [options.annotations, options.annotations.parent]  # the dataset's own folder was given
    return [options.annotations]


def _find_images(raw: RawDataset, splits: Sequence[str], roots: Sequence[Path]) -> dict[int, ImageFile | None]:
    """The file of every image that refs of the splits speak of, as far as `instances.json` has the image."""
    index = ImageIndex(roots)
    files: dict[int, ImageFile | None] = {}
    for ref in raw.refs:
        if find_split(ref) in splits:
            image_id = ref.get("image_id")
            if type(image_id) is int and image_id in raw.images and image_id not in files:
                files[image_id] = index.find(image_id, str(raw.images[image_id].get("file_name")))
    if files and not any(files.values()):
        raise UsageError(
            f"--images {roots[0]}: found none of {len(files)} images ({raw.images[min(files)].get('file_name')}, ...), "
            "there or in train2014/, images/train2014/, images/mscoco/images/train2014/ and the like"
        )
    return files


def _apply_policy(rejects: Sequence[Reject], options: BuildOptions) -> None:
    """End the build if the policy says so."""
    if not rejects:
        return
    if options.on_bad_sample == "fail":
        others = f" ({len(rejects)} refs have faults)" if len(rejects) > 1 else ""
        error = rejects[0].to_error()
        raise type(error)(f"{error}{others}")
    if options.max_bad is not None and len(rejects) > options.max_bad:
        raise BuildError(
            f"{options.dataset}: {len(rejects)} refs have faults, more than --max-bad {options.max_bad}; "
            f"the first: {rejects[0].message}"
        )


def _is_finished(out: Path) -> bool:
    return (out / DESCRIPTOR_NAME).exists()


def _check_finished(out: Path, keys: dict[str, str]) -> Descriptor:
    """Compare a finished dataset with what was asked for; remove what a kill after the commit left behind."""
    descriptor = load_descriptor(out)
    _refuse_other_inputs(out, descriptor.plan_keys, keys, but=TOOL_KEYS)
    faults = verify_dataset(out, fast=True)
    if faults:
        raise BuildError(f"{out}: was finished and is damaged: {faults[0]}")
    if (out / BUILD_FOLDER).exists():
        shutil.rmtree(out / BUILD_FOLDER)
    return descriptor


def _check_unfinished(out: Path, keys: dict[str, str]) -> None:
    """Refuse a folder that is not ours or was begun with other inputs."""
    if not out.exists():
        return
    if not out.is_dir():
        raise UsageError(f"--out {out}: is a file, expected a folder to build in")
    try:
        plan = json.loads((out / BUILD_FOLDER / _PLAN_NAME).read_text(encoding="utf-8"))
        begun_with = plan["keys"] if plan["format"] == "refseg-plan" else None
    except (OSError, ValueError, KeyError, TypeError):
        begun_with = None
    if begun_with is not None:
        _refuse_other_inputs(out, begun_with, keys)
        return
    # Killed before the plan was written: the folder holds nothing but traces of that.
    traces = [*out.glob("*"), *out.glob(f"{BUILD_FOLDER}/*"), *out.glob(f"{BUILD_FOLDER}/{RECEIPTS_FOLDER}/*")]
    ours = (BUILD_FOLDER, RECEIPTS_FOLDER, _LOCK_NAME)
    foreign = [path for path in traces if path.name not in ours and not _is_temporary(path)]
    if foreign:
        raise UsageError(
            f"--out {out}: holds {foreign[0].name} and no build of ours; expected a new or empty folder for the dataset"
        )


def _refuse_other_inputs(out: Path, before: dict[str, str], now: dict[str, str], *, but: Sequence[str] = ()) -> None:
    differing = differing_keys(before, now, but=but)
    if differing:
        raise BuildError(
            f"{out}: was built or begun from other inputs ({'; '.join(differing)}); "
            "give the same inputs, another --out, or delete the folder"
        )


@contextmanager
def _own_folder(out: Path, plan: Plan) -> Iterator[None]:
    """Hold the folder for one build: lock, sweep, write the plan; after a fault of the data, undo a new build."""
    missing = [folder for folder in (out, *out.parents) if not folder.exists()]
    build_folder = out / BUILD_FOLDER
    is_new = not (build_folder / _PLAN_NAME).exists()
    (build_folder / RECEIPTS_FOLDER).mkdir(parents=True, exist_ok=True)
    with (build_folder / _LOCK_NAME).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BuildError(f"{out}: another build is at work here; wait for it, or give another --out") from error
        for path in filter(_is_temporary, build_folder.iterdir()):
            path.unlink()
        if is_new:
            publish_bytes(plan.to_json().encode(), build_folder / _PLAN_NAME, _temporary(out, _PLAN_NAME))
        try:
            yield
        except RefsegError:
            if is_new:
                for task in plan.tasks:
                    (out / f"{task.name}.tar").unlink(missing_ok=True)
                    (out / f"{task.name}.parquet").unlink(missing_ok=True)
                shutil.rmtree(build_folder)
                with suppress(OSError):  # somebody else uses a folder that we made on the way
                    for folder in missing:
                        folder.rmdir()
            raise
        except KeyboardInterrupt:
            logger.warning("%s: interrupted; run the same command again to go on", out)
            raise
        shutil.rmtree(build_folder)


def _build_shards(
    plan: Plan, rejects: list[Reject], options: BuildOptions, progress: Callable[[int, int], None] | None
) -> dict[str, Receipt]:
    """Receipts of all shards by name; what they reject is added to `rejects`."""
    receipts: dict[str, Receipt] = {}
    for task in plan.tasks:
        receipt = find_receipt(task)
        if receipt is not None:
            receipts[task.name] = receipt
            rejects += receipt.rejects
    _apply_policy(rejects, options)
    if receipts:
        logger.info("%s: %d of %d shards are there from before", options.out, len(receipts), len(plan.tasks))
    num_images = {task.name: len(task.samples) for task in plan.tasks}
    tasks = [task for task in plan.tasks if task.name not in receipts]
    workers = min(options.workers or os.cpu_count() or 1, max(len(tasks), 1))
    for receipt in run_local(tasks, workers):
        entry = receipt.entry
        receipts[entry.name] = receipt
        rejects += receipt.rejects
        _apply_policy(rejects, options)
        if progress is not None:
            progress(sum(num_images[name] for name in receipts), sum(num_images.values()))
        else:
            logger.info(
                "%s: %d images, %d refs, %.1f MB (%d of %d shards)",
                entry.name,
                entry.num_images,
                entry.num_refs,
                entry.tar_bytes / 1e6,
                len(receipts),
                len(plan.tasks),
            )
    return receipts


def _finalize(
    plan: Plan, raw: RawDataset, receipts: dict[str, Receipt], rejects: Sequence[Reject], options: BuildOptions
) -> Descriptor:
    """Write rejects, then the descriptor: from that rename on, there is a dataset."""
    entries = [receipts[task.name].entry for task in plan.tasks]
    if not any(entry.num_refs for entry in entries):
        raise BuildError(f"{options.dataset}: all {len(rejects)} refs have faults; the first: {rejects[0].message}")
    descriptor = Descriptor(
        dataset=raw.spec.dataset_id,
        refseg_version=__version__,
        plan_fingerprint=plan.fingerprint,
        mask_rule=options.mask_rule,
        tokenizer=dict(tokenizer.IDENTITY),
        num_rejects=len(rejects),
        shards=tuple(entry for entry in entries if entry.num_images),
        sources=raw.sources,
        licences=_licences(raw, [sample.records[0] for task in plan.tasks for sample in task.samples]),
        plan_keys=plan.keys,
    )
    if rejects:
        temporary = _temporary(options.out, REJECTS_NAME)
        write_rejects(temporary, rejects, raw.spec)
        publish(temporary, options.out / REJECTS_NAME)
    publish_bytes(
        descriptor.to_json().encode(), options.out / DESCRIPTOR_NAME, _temporary(options.out, DESCRIPTOR_NAME)
    )
    return descriptor


def _licences(raw: RawDataset, records: Sequence[RefRecord]) -> tuple[str, ...]:
    """Licences of the images in use, as `instances.json` names them."""
    used = [raw.images[record.image_id].get("license") for record in records]
    return tuple(f"images: {text}" for licence, text in sorted(raw.licences.items()) if licence in used)


def _temporary(out: Path, name: str) -> Path:
    return out / BUILD_FOLDER / f"tmp-{name}"


def _is_temporary(path: Path) -> bool:
    return path.name.startswith("tmp-")
