"""One export: written aside, published by a rename, and never over anything."""

import itertools
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

from pipelines.export.dataset import ExportedDataset
from refseg.addresses import is_remote, local_path
from refseg.aside import folder_aside
from refseg.dataset.descriptor import refuse_within_dataset
from refseg.errors import UsageError
from refseg.wording import counted

FORMATS = {
    "refer": "pipelines.export.refer",
    "cris-lmdb": "pipelines.export.cris_lmdb",
    "coco": "pipelines.export.coco",
    "parquet-hf": "pipelines.export.parquet_hf",
}
"""Each a module with `write(dataset, out, options, progress) -> tuple of differences`."""
REPORT_NAME = "refseg-export.json"
Progress = Callable[[], None]
"""Called by a format after each shard."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportOptions:
    """What to export, into what, where.

    Attributes:
        folder: A finished dataset, path or URL.
        to: refer: REFER's pickles, JSON and images; cris-lmdb: records and masks of CRIS, ETRIS and DETRIS; coco: a
            JSON per split for detection tools; parquet-hf: Parquet with images for Hugging Face's datasets.
        out: A new or empty folder of this machine.
        splits: Splits to export; by default all.
        images: Whether images are written; refer and coco can leave them out.
        annotations: With refer, the files that the dataset was built from, which are put back as they were instead of
            being made from the shards.

    Raises:
        UsageError: If a value is not allowed, or not with this format.
    """

    folder: Path | str
    to: Literal["refer", "cris-lmdb", "coco", "parquet-hf"]
    out: Path | str
    splits: tuple[str, ...] | None = None
    images: bool = True
    annotations: Path | None = None

    def __post_init__(self) -> None:
        if self.to not in FORMATS:
            raise UsageError(f"--to {self.to}: expected one of {', '.join(FORMATS)}")
        if not self.images and self.to not in ("refer", "coco"):
            raise UsageError(f"--no-images: {self.to} holds the images within its records; leave the option out")
        if self.annotations is not None and self.to != "refer":
            raise UsageError(f"--annotations goes with --to refer alone, not with {self.to}")
        if self.annotations is not None and self.splits is not None:
            raise UsageError("--annotations puts the whole files back: leave out --splits")
        if is_remote(self.out):
            raise UsageError(f"--out {self.out}: expected a folder of this machine; copy the export from there")


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportReport:
    """What was exported; also in `refseg-export.json` beside the files.

    Attributes:
        format: One of `FORMATS`.
        dataset: Dataset id.
        digest: Of the dataset.
        splits: Those exported.
        num_refs: Of these splits.
        num_sentences: Of these splits.
        images: Whether images were written.
        annotations: Whether the annotation files were put back as they were.
        num_files: Number of files written, without this report.
        num_bytes: Size of these files in bytes.
        differences: In sentences, what the files have otherwise than those the dataset was built from, or lack
            against the shards.
    """

    format: str
    dataset: str
    digest: str
    splits: tuple[str, ...]
    num_refs: int
    num_sentences: int
    images: bool
    annotations: bool
    num_files: int
    num_bytes: int
    differences: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportResult:
    """What there is now.

    Attributes:
        report: What the export holds.
        was_complete: True if an earlier run had finished it and nothing was changed.
    """

    report: ExportReport
    was_complete: bool


def export_dataset(options: ExportOptions, *, progress: Callable[[int, int], None] | None = None) -> ExportResult:
    """Export a finished dataset.

    The files are written beside `out` under a temporary name, which becomes `out` when all is done; a killed export
    leaves no `out`. An export that is finished already is left as it is.

    Args:
        options: See there.
        progress: Called after each shard with how many are done and how many there are.

    Raises:
        UsageError: If the dataset cannot be had in this form, or `out` holds anything but this export or lies within a
            dataset.
        DatasetError: If the dataset is unfinished or damaged.
        OSError: If `out` cannot be written.
    """
    out = local_path(options.out)
    if out.exists() and not out.is_dir():
        raise UsageError(f"--out {out}: is a file, expected a new or empty folder; nothing is overwritten")
    is_new = not out.exists() or not any(out.iterdir())
    if is_new:
        refuse_within_dataset(out)
    elif not (out / REPORT_NAME).is_file():
        raise UsageError(f"--out {out}: is there already, expected a new or empty folder; nothing is overwritten")
    dataset = ExportedDataset(options.folder, options.splits, images=options.images)
    if not is_new:
        return ExportResult(report=_finished(out, dataset, options), was_complete=True)
    module = import_module(FORMATS[options.to])
    numbers = itertools.count(1)

    def after_shard() -> None:
        if progress is not None:
            progress(next(numbers), len(dataset.entries))

    try:
        with folder_aside(out, synced=True, is_shared=True) as aside:
            differences = module.write(dataset, aside, options, after_shard)
            num_files, num_bytes = _measure(aside)
            report = ExportReport(
                **_identity(dataset, options),
                num_refs=sum(entry.num_refs for entry in dataset.entries),
                num_sentences=sum(entry.num_sentences for entry in dataset.entries),
                num_files=num_files,
                num_bytes=num_bytes,
                differences=tuple(differences),
            )
            (aside / REPORT_NAME).write_text(json.dumps(asdict(report), indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        if error.filename is None:  # a write says what is wrong, and not where
            raise OSError(error.errno, error.strerror or str(error), str(out)) from error
        raise
    return ExportResult(report=report, was_complete=False)


def _identity(dataset: ExportedDataset, options: ExportOptions) -> dict[str, Any]:
    """The fields of a report by which an export is known again."""
    return {
        "format": options.to,
        "dataset": dataset.descriptor.dataset,
        "digest": dataset.descriptor.digest,
        "splits": dataset.splits,
        "images": options.images,
        "annotations": options.annotations is not None,
    }


def _finished(out: Path, dataset: ExportedDataset, options: ExportOptions) -> ExportReport:
    """The report of an export that is finished, compared with what was asked for and with the files that are there."""
    path = out / REPORT_NAME
    remedy = "give another --out, or delete the folder"
    try:
        report = TypeAdapter(ExportReport).validate_json(path.read_bytes())
    except ValidationError as error:
        raise UsageError(
            f"--out {out}: is there already, and {path} cannot be read as of an export; {remedy}"
        ) from error
    asked = _identity(dataset, options)
    if differing := [name for name, value in asked.items() if getattr(report, name) != value]:
        raise UsageError(f"--out {out}: is there already and holds another export ({', '.join(differing)}); {remedy}")
    found = _measure(out)
    if found != (report.num_files, report.num_bytes):
        raise UsageError(
            f"--out {out}: holds this export, but {counted(found[0], 'file')} of {counted(found[1], 'byte')}, expected "
            f"{report.num_files:,} of {report.num_bytes:,}; {remedy}"
        )
    return report


def _measure(folder: Path) -> tuple[int, int]:
    """How many files a folder holds, without the report, and their bytes."""
    sizes = [path.stat().st_size for path in folder.rglob("*") if path.is_file() and path != folder / REPORT_NAME]
    return len(sizes), sum(sizes)
