"""The options of a build, and the policy for refs with faults."""

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
    """The input, output and options of a build. Folders are paths or fsspec URLs.

    Attributes:
        dataset: Dataset id with its partition, such as refcoco/unc or refcocog/umd.
        annotations: Folder in REFER's layout (refcoco/, refcoco+/ and so on, with refs(...).p or .json and
            instances.json, or the archive refcoco.zip), or folder with your own table of sentences; path or URL, also
            of a ZIP archive.
        reader: Layout of the annotations, by the name of its reader: coco, saco, sa2va, label-studio, cvat and so on;
            by default REFER's layout or that of a published conversion, and for custom/<name> your own table.
        as_split: Split of annotation files that name none; by default such files are refused.
        ignored_regions: Handling of annotated regions whose pixels should not count, as in ReasonSeg: refuse the build,
            because training and scores would count them, or count them as background.
        images: Folder of the JPEGs or with a COCO layout of them, or a ZIP archive such as train2014.zip, path or URL;
            by default beside the annotations.
        images_from: Finished datasets whose images are used. An image in one of them is referred to and not written
            again.
        out: Folder of the new dataset, path or URL; it is created if it does not exist.
        splits: Splits to build; by default all that have refs.
        workers: Number of processes; by default one per core, at most one per shard. It does not change the result.
        engine: Where shards are built: in processes on this machine, or on the Ray cluster at RAY_ADDRESS. With Ray,
            `workers` is the number of concurrent tasks.
        images_per_shard: Largest number of images in a tar.
        seed: Seed of the order of images.
        mask_rule: Target of an object with several parts: the union of the parts, or legacy, the pixels that exactly
            one part covers, as in LAVT.
        png_rule: How mask PNGs of a user's table are read.
        on_bad_sample: Handling of refs with faults. fail: the build ends, with all faults of the annotations or the
            first fault of a picture. skip: such refs are written to rejects.parquet.
        max_bad: With skip, the build ends if more refs than this have faults; by default there is no limit.
        check_images: Check of each image: decode it completely, or read only its size and its end.
        convert_images: JPEG quality, 1 to 100, with which pictures of other kinds (PNG, WebP, BMP, TIFF, and AVIF and
            HEIC where Pillow reads them) are converted. This is lossy and recorded in the plan. By default they are
            refused.
        exif: Handling of EXIF orientations. stored: pixels count as they are stored. apply: pictures are rotated as a
            viewer shows them, as their annotations must then be, and saved with the quality of `convert_images`.
        store: Store pictures reduced to training size, letterbox:480 or stretch:480x640. This is lossy, is recorded in
            the dataset and makes decoding faster. By default the source's bytes are stored.
        store_quality: With `store`, quality of the JPEGs, 1 to 100.
        on_shared_images: Handling of a picture (equal bytes) in several splits or under several ids: warn about it, or
            refuse the build.
        accept_counts: Build even if the numbers of refs, sentences or images differ from the published ones; this is
            recorded in the dataset.
        stage: For a cluster: plan once (read and check the annotations), build shards in many tasks, finalize once.
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
    """Raise an error if the options do not allow these rejects; reasons in `LEFT_OUT` do not count as faults.

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
    """Return the faults after the first, one per line; beyond `_MOST_LISTED` only their number."""
    if len(faults) == 1:
        return ""
    lines = [f" ({len(faults)} refs have faults)", *(fault.message for fault in faults[1:_MOST_LISTED])]
    if len(faults) > _MOST_LISTED:
        lines.append(f"and {len(faults) - _MOST_LISTED} more")
    return "\n  ".join(lines)
