"""One export: written aside, published by a rename, and never over anything."""

import json
import os
import secrets
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path

from pipelines.export.dataset import BuiltDataset
from refseg.descriptor import refuse_within_dataset
from refseg.errors import UsageError
from refseg.storage import is_remote, sync_path

FORMATS = {
    "refer": "pipelines.export.refer",
    "cris-lmdb": "pipelines.export.cris_lmdb",
    "coco": "pipelines.export.coco",
    "parquet-hf": "pipelines.export.parquet_hf",
}
"""Each a module with `write(dataset, out, options) -> tuple of differences`."""
REPORT_NAME = "refseg-export.json"
Progress = Callable[[int, int], None]
"""Called with (shards done, shards in all)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportOptions:
    """What to export, into what, where.

    Attributes:
        folder: A finished dataset, path or URL.
        to: One of `FORMATS`.
        out: A new or empty folder of this machine.
        splits: Which splits; None: all.
        images: False: leave images out, for who has them (`refer`, `coco`).
        annotations: With `refer`: the annotation files the dataset was built from, to be put back as they were.

    Raises:
        UsageError: If a value is not allowed, or not with this format.
    """

    folder: Path | str
    to: str
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
        differences: In sentences, what the files have otherwise than those the dataset was built from, or lack
            against the shards.
    """

    format: str
    dataset: str
    digest: str
    splits: tuple[str, ...]
    num_refs: int
    num_sentences: int
    differences: tuple[str, ...]


def export_dataset(options: ExportOptions, *, progress: Progress | None = None) -> ExportReport:
    """Export a finished dataset.

    The files are written beside `out` under a temporary name, which becomes `out` when all is done; a killed export
    leaves no `out`.

    Args:
        options: See there.
        progress: Called after each shard.

    Raises:
        UsageError: If the dataset cannot be had in this form, or `out` holds something or lies within a dataset.
        DatasetError: If the dataset is unfinished or damaged.
        OSError: If `out` cannot be written.
    """
    out = Path(options.out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"--out {out}: is there already, expected a new or empty folder; nothing is overwritten")
    refuse_within_dataset(out)
    dataset = BuiltDataset(options.folder, options.splits)
    module = import_module(FORMATS[options.to])
    out.absolute().parent.mkdir(parents=True, exist_ok=True)
    aside = out.absolute().with_name(f".{out.absolute().name}-{os.getpid()}-{secrets.token_hex(4)}")
    aside.mkdir()
    try:
        differences = module.write(dataset, aside, options, progress or _ignore)
        report = ExportReport(
            format=options.to,
            dataset=dataset.descriptor.dataset,
            digest=dataset.descriptor.digest,
            splits=dataset.splits,
            num_refs=sum(entry.num_refs for entry in dataset.entries),
            num_sentences=sum(entry.num_sentences for entry in dataset.entries),
            differences=tuple(differences),
        )
        (aside / REPORT_NAME).write_text(json.dumps(asdict(report), indent=1) + "\n", encoding="utf-8")
        aside.replace(out.absolute())
        sync_path(out.absolute().parent)
    except OSError as error:
        if error.filename is None:  # a write says what is wrong, and not where
            raise OSError(error.errno, error.strerror or str(error), str(out)) from error
        raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return report


def _ignore(_done: int, _in_all: int) -> None:
    pass
