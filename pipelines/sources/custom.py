"""Reads a user's own data: a table of sentences and optionally a COCO `instances.json`."""

import logging
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipelines.sources.custom_row import COLUMNS, REQUIRED, SPLITS, read_row
from pipelines.sources.custom_store import CustomStore
from pipelines.sources.json_stream import JsonTables
from pipelines.sources.raw import RawSource
from pipelines.sources.source_file import describe_file, find_file, suggest_names
from pipelines.sources.table import SUFFIXES, RowFault, read_table, table_suffix
from refseg.dataset.descriptor import SourceFile
from refseg.dataset.schema import DatasetSpec
from refseg.errors import AnnotationError, UsageError
from refseg.mask_png import DEFAULT_RULE, PngRule, note_object_values

logger = logging.getLogger(__name__)

TABLE_NAME = "sentences"
_SECTIONS = ("categories", "licenses", "images", "annotations")
_MOST_FAULTS = 20


def find_table(spec: DatasetSpec, annotations: Path) -> Path:
    """Find the table: `annotations` itself, or `sentences.csv`, `.jsonl` or `.parquet` there or in `<name>/`.

    Raises:
        UsageError: If there is none, or more than one.
    """
    if annotations.is_file():
        if table_suffix(annotations) not in SUFFIXES:
            raise UsageError(
                f"--annotations {annotations}: expected a table whose name ends in {' or '.join(SUFFIXES)}"
            )
        return annotations
    names = [f"{TABLE_NAME}{suffix}" for suffix in SUFFIXES]
    folders = (annotations / spec.folder, annotations)
    for folder in folders:
        tables = [path for name in names if (path := find_file(folder, name)) is not None]
        if len(tables) > 1:
            found = ", ".join(path.name for path in tables)
            raise UsageError(f"--annotations {folder}: found {found}, expected one table; give the path of the file")
        if tables:
            return tables[0]
    alike = suggest_names(folders, names)
    raise UsageError(
        f"--annotations {annotations}: found no {TABLE_NAME}.csv, .jsonl or .parquet, in that folder or in "
        f"{spec.folder}/{alike or '; see docs/your-own-data.md'}"
    )


def read_custom(spec: DatasetSpec, annotations: Path, png_rule: PngRule = DEFAULT_RULE) -> RawSource:
    """Read a table of sentences; `docs/your-own-data.md` explains its columns.

    Each row is read and checked once and stored in a temporary file, so that memory does not grow with the table. Ids
    that the table does not give are numbered in the order of first appearance: refs and sentences from 0, images and
    annotations after the largest id in `instances.json` and the table. So equal tables give equal ids.

    Args:
        spec: Specification of `custom/<name>`.
        annotations: The table, or a folder with `sentences.csv`, `.jsonl` or `.parquet`. `instances.json` and mask
            files are expected beside the table.
        png_rule: How mask files are read.

    Returns:
        The source; its `spec` has the splits that were found, known ones first.

    Raises:
        UsageError: If there is no table.
        AnnotationError: If a file cannot be read, or if the table has mistakes; the message lists them with their rows.
    """
    table = find_table(spec, annotations)
    instances = find_file(table.parent, "instances.json")
    listed = JsonTables(instances, required=(), optional=_SECTIONS) if instances is not None else None
    sources = [describe_file(path, f"{spec.folder}/{path.name}") for path in (table, instances) if path is not None]
    store = CustomStore(table, png_rule)
    try:
        for section, record in listed or ():
            store.add_listed(section, record)
        _fill(store, table, has_instances=listed is not None)
    except sqlite3.Error as error:
        raise AnnotationError(
            f"{table}: its rows cannot be stored in a temporary file ({error}); set TMPDIR to a disk with free space"
        ) from error
    if note := note_object_values(store.object_values):
        logger.warning("%s: masks: %s", table, note)
    if store.num_mask_files:
        name = f"{spec.folder}/{store.num_mask_files} mask files"
        sources.append(SourceFile(name=name, num_bytes=store.mask_bytes, sha256=store.masks_sha256))
    found = store.splits()
    splits = (*(split for split in SPLITS if split in found), *sorted(found - set(SPLITS)))
    return RawSource(
        spec=replace(spec, splits=splits),
        refs=_Refs(store),
        tables=_Tables(store, listed),
        sources=tuple(sources),
        box_targets=True,
    )


def _fill(store: CustomStore, table: Path, *, has_instances: bool) -> None:
    """Read the table into the store; raise an error that lists its mistakes, if there are any."""
    faults: list[str] = []
    num_faults = 0
    for where, values in read_table(table, COLUMNS, REQUIRED):
        try:
            if isinstance(values, RowFault):
                raise values
            row = read_row(values)
            if row.kind == "ann_id" and not has_instances:
                raise RowFault("found ann_id, but no instances.json beside the table that would define it")
            store.add(row, where)
        except RowFault as fault:
            num_faults += 1
            if num_faults <= _MOST_FAULTS:
                faults.append(f"{where}: {fault}")
    if not store.num_rows and not num_faults:
        raise AnnotationError(f"{table}: found no row, expected one for each sentence")
    if not num_faults:  # the checks over all rows would report rows that are left out because of their faults
        faults = store.finish()
        num_faults, faults = len(faults), faults[:_MOST_FAULTS]
    if num_faults:
        rest = f"\n  and {num_faults - len(faults)} more" if num_faults > len(faults) else ""
        counted = "1 mistake" if num_faults == 1 else f"{num_faults} mistakes"
        raise AnnotationError(f"{table}: found {counted}\n  " + "\n  ".join(faults) + rest)


@dataclass(frozen=True, slots=True)
class _Refs:
    """The refs of a table; it can be iterated any number of times."""

    store: CustomStore

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return self.store.refs()


@dataclass(frozen=True, slots=True)
class _Tables:
    """The records of `instances.json`, if it exists, and those of the table."""

    store: CustomStore
    listed: JsonTables | None

    def __iter__(self) -> Iterator[tuple[str, Any]]:
        for section, record in self.listed or ():
            yield section, self.store.complete(record) if section == "images" else record
        yield from self.store.records()
