"""What a user asks of a build, and what becomes of bad samples."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipelines.engines import ENGINES
from pipelines.rejects import LEFT_OUT, Reject
from pipelines.resize import parse_store
from refseg.dataset.descriptor import StoredImages
from refseg.dataset.schema import CUSTOM, MASK_RULES
from refseg.errors import BuildError, UsageError
from refseg.mask_png import DEFAULT_RULE, PngRule
from refseg.wording import counted

STAGES = ("all", "plan", "shards", "finalize")
"""`plan` reads and checks annotations, `shards` builds this task's part, `finalize` makes a dataset of all parts."""
ON_BAD_SAMPLE = ("fail", "skip")
ON_SHARED_IMAGES = ("warn", "refuse")
CHECK_IMAGES = ("decode", "header")
_MOST_LISTED = 20
"""Faults that a message lists; the rest are counted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildOptions:
    """What to build, from what, where and how. Folders are paths or fsspec URLs.

    Attributes:
        dataset: Dataset id with its partition, for example `refcoco/unc`.
        annotations: Folder that holds the annotation files.
        out: The dataset's own folder; made if it is not there.
        images: Folder of the images; None: beside the annotations.
        images_from: Finished datasets whose images are pointed to instead of being written again.
        splits: Which splits; None: all that have refs.
        workers: Processes; None: one per core, at most one per shard.
        engine: Where shards are built, one of `ENGINES`; with `ray`, `workers` counts tasks in flight.
        images_per_shard: At most so many images in a tar.
        seed: Of the order of images.
        mask_rule: `union` or `legacy`.
        png_rule: How mask PNGs of a user's table are read.
        check_images: `decode`: each image whole. `header`: its size and its end alone.
        store: `letterbox:480` or `stretch:480x640`: store pictures at training size; None: the source's bytes.
        store_quality: Of such JPEGs, 1 to 100.
        on_bad_sample: `fail`: faults of the annotations, or the first of a picture, end the build.
            `skip`: faulty refs go to `rejects.parquet`.
        max_bad: With `skip`: more rejects than this end the build; None: no limit.
        on_shared_images: `warn`: report pictures with equal bytes in several splits. `refuse`: they end the build.
        accept_counts: Build although the counts are not the published ones; the dataset then says so.
        stage: One of `STAGES`.
        task_index: With stage `shards`: which part of the shards, from 0.
        task_count: With stage `shards`: into how many parts they are cut.

    Raises:
        UsageError: If a value is not one of those allowed.
    """

    dataset: str
    annotations: Path | str
    out: Path | str
    images: Path | str | None = None
    images_from: tuple[Path | str, ...] = ()
    splits: tuple[str, ...] | None = None
    workers: int | None = None
    engine: str = "local"
    images_per_shard: int = 512
    seed: int = 0
    mask_rule: str = "union"
    png_rule: PngRule = DEFAULT_RULE
    check_images: str = "decode"
    store: str | None = None
    store_quality: int = 95
    on_bad_sample: str = "fail"
    max_bad: int | None = None
    on_shared_images: str = "warn"
    accept_counts: bool = False
    stage: str = "all"
    task_index: int = 0
    task_count: int = 1

    def __post_init__(self) -> None:
        for name, value, allowed in (
            ("--mask-rule", self.mask_rule, MASK_RULES),
            ("--check-images", self.check_images, CHECK_IMAGES),
            ("--on-shared-images", self.on_shared_images, ON_SHARED_IMAGES),
            ("--on-bad-sample", self.on_bad_sample, ON_BAD_SAMPLE),
            ("--stage", self.stage, STAGES),
            ("--engine", self.engine, ENGINES),
        ):
            if value not in allowed:
                raise UsageError(f"{name} {value}: expected {' or '.join(allowed)}")
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
