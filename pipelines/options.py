"""What a user asks of a build, and what becomes of bad samples."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args, get_origin, get_type_hints

from pipelines.engines import Engine
from pipelines.rejects import LEFT_OUT, Reject
from pipelines.resize import parse_store
from refseg.dataset.descriptor import StoredImages
from refseg.dataset.schema import CUSTOM
from refseg.errors import BuildError, UsageError
from refseg.mask_png import DEFAULT_RULE, PngRule
from refseg.wording import counted

_MOST_LISTED = 20
"""Faults that a message lists; the rest are counted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildOptions:
    """What to build, from what, where and how. Folders are paths or fsspec URLs.

    Attributes:
        dataset: Dataset id with its partition: refcoco/unc, refcocog/umd, and so on.
        annotations: Folder in REFER's layout (refcoco/, refcoco+/ and so on, with refs(...).p or .json and
            instances.json, or the archive refcoco.zip), or folder with your own table of sentences; path or URL, also
            of a ZIP archive.
        images: Folder of the JPEGs or a COCO layout of them, or a ZIP archive such as train2014.zip, path or URL; by
            default beside the annotations.
        images_from: Finished datasets: images that are there are pointed to instead of being written again.
        out: The dataset's own folder, path or URL; made if it is not there.
        splits: Splits to build; by default all that have refs.
        workers: Processes; by default one per core, at most one per shard. The bytes are the same with any number.
        engine: Where shards are built: in processes of this machine, or on the Ray cluster at RAY_ADDRESS, where
            `workers` counts tasks in flight.
        images_per_shard: Largest number of images in a tar.
        seed: Seed of the order of images.
        mask_rule: Target of an object of several parts: their union, or the pixels of exactly one part, as LAVT has it.
        png_rule: How mask PNGs of a user's table are read.
        on_bad_sample: What becomes of faulty refs. fail: faults of the annotations, or the first of a picture, end the
            build; skip: faulty refs go to rejects.parquet.
        max_bad: With skip, more faulty refs than this end the build; by default there is no limit.
        check_images: Decode each image whole, or look at its size and its end alone.
        store: Store pictures at training size, letterbox:480 or stretch:480x640: lossy, recorded, decoded faster; by
            default the source's bytes.
        store_quality: With `store`, quality of the JPEGs, 1 to 100.
        on_shared_images: What becomes of a picture (equal bytes) in several splits or under several ids: it is
            reported, or ends the build.
        accept_counts: Build although the numbers of refs, sentences or images are not the published ones; this is
            recorded in the dataset.
        stage: For a cluster: plan once (read and check the annotations), build shards in many tasks, finalize once.
        task_index: With stage shards, number of this task, from 0; the command takes Slurm's array task.
        task_count: With stage shards, number of tasks that share the shards; the command takes Slurm's array.

    Raises:
        UsageError: If a value is not one of those allowed.
    """

    dataset: str
    annotations: Path | str
    images: Path | str | None = None
    images_from: tuple[Path | str, ...] = ()
    out: Path | str
    splits: tuple[str, ...] | None = None
    workers: int | None = None
    engine: Engine = "local"
    images_per_shard: int = 512
    seed: int = 0
    mask_rule: Literal["union", "legacy"] = "union"
    png_rule: PngRule = DEFAULT_RULE
    on_bad_sample: Literal["fail", "skip"] = "fail"
    max_bad: int | None = None
    check_images: Literal["decode", "header"] = "decode"
    store: str | None = None
    store_quality: int = 95
    on_shared_images: Literal["warn", "refuse"] = "warn"
    accept_counts: bool = False
    stage: Literal["all", "plan", "shards", "finalize"] = "all"
    task_index: int = 0
    task_count: int = 1

    def __post_init__(self) -> None:
        for name, hint in get_type_hints(type(self)).items():
            value, allowed = getattr(self, name), get_args(hint)
            if get_origin(hint) is Literal and value not in allowed:
                raise UsageError(f"--{name.replace('_', '-')} {value}: expected {' or '.join(allowed)}")
        for name, number, least in (
            ("--workers", self.workers, 1),
            ("--images-per-shard", self.images_per_shard, 1),
            ("--max-bad", self.max_bad, 0),
            ("--task-count", self.task_count, 1),
        ):
            if number is not None and number < least:
                raise UsageError(f"{name} {number}: expected {least} or more")
        if self.png_rule != DEFAULT_RULE and self.dataset.partition("/")[0] != CUSTOM:
            raise UsageError(f"{self.dataset}: has no mask PNGs, of which --mask-... options speak; leave them out")
        if self.store is not None:
            parse_store(self.store, self.store_quality)
            if self.check_images != "decode":
                raise UsageError(f"--store {self.store} decodes each image: leave out --check-images header")
        if not 0 <= self.task_index < self.task_count:
            raise UsageError(f"--task-index {self.task_index}: expected 0 to {self.task_count - 1} (--task-count - 1)")
        if self.max_bad is not None and self.on_bad_sample != "skip":
            raise UsageError("--max-bad needs --on-bad-sample skip: without it any fault ends the build")

    @property
    def stored_images(self) -> StoredImages | None:
        """What `store` says, read."""
        return None if self.store is None else parse_store(self.store, self.store_quality)


def apply_policy(rejects: Sequence[Reject], options: BuildOptions) -> None:
    """End the build if the policy says so; refs that are left out without a fault do not count (`LEFT_OUT`).

    Raises:
        AnnotationError, ImageError: The first faults, with `fail`; of the first one's type.
        BuildError: If there are more than `max_bad`.
    """
    faults = [reject for reject in rejects if reject.reason not in LEFT_OUT]
    if not faults:
        return
    if options.on_bad_sample == "fail":
        error = faults[0].to_error()
        raise type(error)(f"{error}{_list_others(faults)}")
    if options.max_bad is not None and len(faults) > options.max_bad:
        raise BuildError(
            f"{options.dataset}: found {counted(len(faults), 'ref')} with faults, "
            f"more than --max-bad {options.max_bad}; the first: {faults[0].message}"
        )


def _list_others(faults: Sequence[Reject]) -> str:
    """The faults after the first, a line each; of many the first ones and how many more there are."""
    if len(faults) == 1:
        return ""
    lines = [f" ({len(faults)} refs have faults)", *(fault.message for fault in faults[1:_MOST_LISTED])]
    if len(faults) > _MOST_LISTED:
        lines.append(f"and {len(faults) - _MOST_LISTED} more")
    return "\n  ".join(lines)
