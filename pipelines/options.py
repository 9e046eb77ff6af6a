"""Defines the options of a build, and applies the policy for refs with faults."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args, get_origin, get_type_hints

from pipelines.convert_images import ImageConversion
from pipelines.engines import Engine
from pipelines.rejects import LEFT_OUT, Reject
from pipelines.resize import parse_store
from refseg.dataset.descriptor import StoredImages
from refseg.dataset.schema import CUSTOM
from refseg.errors import BuildError, UsageError
from refseg.mask_png import DEFAULT_RULE, PngRule
from refseg.wording import counted

_MOST_LISTED = 20
"""Largest number of faults that a message lists; the others are only counted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildOptions:
    """The options of a build. Folders are paths or fsspec URLs.

    Attributes:
        dataset: Dataset id with its partition, such as refcoco/unc or refcocog/umd.
        annotations: Path or URL of the annotations: a folder in REFER's layout (such as refcoco/ with refs(...).p or
            .json and instances.json, or refcoco.zip), a folder with your own table of sentences, or a ZIP archive of
            one.
        reader: Name of the reader of the annotations, such as coco, saco, sa2va, label-studio or cvat. By default,
            REFER's layout or a published conversion is read, and for custom/<name> your own table.
        as_split: Split for annotation files that do not name one; by default these files are refused.
        ignored_regions: Handling of annotated regions whose pixels should not count, as in ReasonSeg. refuse: the build
            is refused, because training and scores would count these pixels. background: the pixels count as
            background.
        images: Path or URL of a folder of JPEGs, of a folder with a COCO layout, or of a ZIP archive such as
            train2014.zip; by default they are expected beside the annotations.
        images_from: Finished datasets whose images are used. The new dataset refers to these images instead of storing
            them again.
        out: Path or URL of the new dataset's folder; it is created if it does not exist.
        splits: Splits to build; by default all splits that have refs.
        workers: Number of processes; by default one per core, and at most one per shard. It does not change the result.
        engine: Build shards in processes on this machine, or on the Ray cluster at RAY_ADDRESS. With Ray, `workers` is
            the number of concurrent tasks.
        images_per_shard: Largest number of images in a tar.
        seed: Seed of the order of images.
        mask_rule: Target of an object with several parts. union: the union of the parts. legacy: the pixels that
            exactly one part covers, as in LAVT.
        png_rule: How mask PNGs of a user's table are read.
        on_bad_sample: Handling of refs with faults. fail: the build ends, and reports all faults of the annotations or
            the first fault of a picture. skip: refs with faults are written to rejects.parquet.
        max_bad: With skip, the build ends if more refs than this have faults; by default there is no limit.
        check_images: Check of each image: decode it completely, or read only the size and the end.
        store: Store pictures reduced to training size, letterbox:480 or stretch:480x640. This loses detail, makes
            decoding faster, and is recorded in the dataset. By default the source's bytes are stored.
        store_quality: JPEG quality of pictures reduced with `store`, 1 to 100.
        on_shared_images: Handling of pictures with equal bytes in several splits or under several ids: log a warning,
            or refuse the build.
        accept_counts: Build even if the numbers of refs, sentences or images differ from the published ones. This is
            recorded in the dataset.
        stage: Stage to run on a cluster: plan once (read and check the annotations), shards in many tasks, and finalize
            once.
        task_index: With stage shards, number of this task, from 0; by default the task of a Slurm array.
        task_count: With stage shards, number of tasks that share the shards; by default the size of a Slurm array.

    Raises:
        UsageError: If a value is not allowed, or options contradict each other.
    """

    dataset: str
    annotations: Path | str
    reader: str | None = None
    as_split: str | None = None
    ignored_regions: Literal["refuse", "background"] = "refuse"
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
    convert_images: int | None = None
    exif: Literal["stored", "apply"] = "stored"
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
            raise UsageError(
                f"{self.dataset}: found options --mask-..., which apply only to mask PNGs of custom datasets; remove "
                "these options"
            )
        if self.store is not None:
            parse_store(self.store, self.store_quality)
            if self.check_images != "decode":
                raise UsageError(
                    f"--store {self.store}: found --check-images header, but reducing an image decodes it; remove "
                    "--check-images"
                )
        if self.convert_images is not None and not 1 <= self.convert_images <= 100:
            raise UsageError(f"--convert-images {self.convert_images}: expected a JPEG quality, 1 to 100")
        if self.exif == "apply" and self.convert_images is None:
            raise UsageError("--exif apply saves rotated pictures again; give their quality with --convert-images")
        if not 0 <= self.task_index < self.task_count:
            raise UsageError(f"--task-index {self.task_index}: expected 0 to {self.task_count - 1} (--task-count - 1)")
        if self.max_bad is not None and self.on_bad_sample != "skip":
            raise UsageError("--max-bad needs --on-bad-sample skip; without it any fault ends the build")

    @property
    def conversion(self) -> ImageConversion | None:
        """The conversion of pictures that `convert_images` and `exif` request; None if there is none."""
        if self.convert_images is None:
            return None
        return ImageConversion(quality=self.convert_images, is_upright=self.exif == "apply")

    @property
    def stored_images(self) -> StoredImages | None:
        """The parsed value of `store`."""
        return None if self.store is None else parse_store(self.store, self.store_quality)


def apply_policy(rejects: Sequence[Reject], options: BuildOptions) -> None:
    """Raise an error if the options do not allow these rejects. Reasons in `LEFT_OUT` do not count as faults.

    Raises:
        AnnotationError, ImageError: With `fail`, if there is a fault. The type depends on the first fault, and the
            message lists the first faults.
        BuildError: With `skip`, if there are more faults than `max_bad`.
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
    """Return the faults after the first, one per line. Faults beyond `_MOST_LISTED` are only counted."""
    if len(faults) == 1:
        return ""
    lines = [f" ({len(faults)} refs have faults)", *(fault.message for fault in faults[1:_MOST_LISTED])]
    if len(faults) > _MOST_LISTED:
        lines.append(f"and {len(faults) - _MOST_LISTED} more")
    return "\n  ".join(lines)
