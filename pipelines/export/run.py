"""Runs an export. Files are written to a temporary folder, which is renamed when it is complete."""

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
"""Formats and their modules, each with a function `write(dataset, out, options, progress) -> tuple of differences`."""
REPORT_NAME = "refseg-export.json"
Progress = Callable[[], None]
"""Called by a format after each shard."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportOptions:
    """The dataset, format and folder of an export.

    Attributes:
        folder: Path or URL of a finished dataset.
        to: Format of the export. refer: REFER's pickles, JSON and images. cris-lmdb: records and masks for CRIS, ETRIS
            and DETRIS. coco: a JSON file per split for detection tools. parquet-hf: Parquet with images, for Hugging
            Face's datasets.
        out: A new or empty folder on this machine.
        splits: Splits to export; by default all.
        images: Write images. The formats refer and coco can leave them out.
        annotations: For the format refer, folder of the files from which the dataset was built. They are copied
            unchanged; otherwise new files are made from the shards.

    Raises:
        UsageError: If a value is not allowed, or cannot be combined with the format.
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
            raise UsageError(f"--no-images: {self.to} stores the images in its records; remove the option")
        if self.annotations is not None and self.to != "refer":
            raise UsageError(f"--annotations: expected --to refer, found {self.to}; remove the option")
        if self.annotations is not None and self.splits is not None:
            raise UsageError("--annotations copies the files of all splits; remove --splits")
        if is_remote(self.out):
            raise UsageError(f"--out {self.out}: expected a folder on this machine; copy the export from there")


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportReport:
    """The report of an export, which is also written to `refseg-export.json` beside the files.

    Attributes:
        format: One of `FORMATS`.
        dataset: Dataset id.
        digest: Digest of the dataset.
        splits: The exported splits.
        num_refs: Number of refs of these splits.
        num_sentences: Number of sentences of these splits.
        images: True if images were written.
        annotations: True if the annotation files were copied unchanged.
        num_files: Number of files written, without this report.
        num_bytes: Size of these files in bytes.
        differences: Sentences that describe how the files differ from the dataset's sources, and what the shards hold
            but the files do not.
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
    """The result of an export.

    Attributes:
        report: Report of the export.
        was_complete: True if an earlier run had finished the export and nothing was changed.
    """

    report: ExportReport
    was_complete: bool


def export_dataset(options: ExportOptions, *, progress: Callable[[int, int], None] | None = None) -> ExportResult:
    """Export a finished dataset.

    The files are written to a temporary folder beside `out`, which is renamed to `out` when it is complete. A killed
    export leaves no `out`. A finished export is not changed.

    Args:
        options: Options of the export.
        progress: Called after each shard with (shards done, total shards).

    Raises:
        UsageError: If the dataset cannot be exported in this format, `out` holds files other than this export, or `out`
            is within a dataset.
        DatasetError: If the dataset is unfinished or damaged.
        OSError: If `out` cannot be written.
        StorageError: If remote storage refuses or fails.
    """
    out = local_path(options.out)
    if out.exists() and not out.is_dir():
        raise UsageError(f"--out {out}: is a file, expected a new or empty folder; nothing is overwritten")
    is_new = not out.exists() or not any(out.iterdir())
    if is_new:
        refuse_within_dataset(out)
    elif not (out / REPORT_NAME).is_file():
        raise UsageError(f"--out {out}: already exists, expected a new or empty folder; nothing is overwritten")
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
        if error.filename is None:  # an error of a write has no path
            raise OSError(error.errno, error.strerror or str(error), str(out)) from error
        raise
    return ExportResult(report=report, was_complete=False)


def _identity(dataset: ExportedDataset, options: ExportOptions) -> dict[str, Any]:
    """Return the fields of a report that identify an export."""
    return {
        "format": options.to,
        "dataset": dataset.descriptor.dataset,
        "digest": dataset.descriptor.digest,
        "splits": dataset.splits,
        "images": options.images,
        "annotations": options.annotations is not None,
    }


def _finished(out: Path, dataset: ExportedDataset, options: ExportOptions) -> ExportReport:
    """Read the report of a finished export, and compare it with the options and the files in the folder."""
    path = out / REPORT_NAME
    remedy = "give another --out, or delete the folder"
    try:
        report = TypeAdapter(ExportReport).validate_json(path.read_bytes())
    except ValidationError as error:
        raise UsageError(f"--out {out}: already exists, but {path} is not the report of an export; {remedy}") from error
    asked = _identity(dataset, options)
    if differing := [name for name, value in asked.items() if getattr(report, name) != value]:
        raise UsageError(f"--out {out}: already exists and holds another export ({', '.join(differing)}); {remedy}")
    found = _measure(out)
    if found != (report.num_files, report.num_bytes):
        raise UsageError(
            f"--out {out}: holds this export, but found {counted(found[0], 'file')} of {counted(found[1], 'byte')}, "
            f"expected {report.num_files:,} of {report.num_bytes:,}; {remedy}"
        )
    return report


def _measure(folder: Path) -> tuple[int, int]:
    """Return the number and total size in bytes of the files in a folder, without the report."""
    sizes = [path.stat().st_size for path in folder.rglob("*") if path.is_file() and path != folder / REPORT_NAME]
    return len(sizes), sum(sizes)
