"""Turns the rows of a user's annotations in any layout into the `RawSource` of a build."""

import logging
import sqlite3
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipelines.sources.custom_row import SPLITS, read_row
from pipelines.sources.custom_store import CustomStore
from pipelines.sources.json_stream import JsonTables
from pipelines.sources.raw import RawSource
from pipelines.sources.reader import ReadOptions
from pipelines.sources.table import Row, RowFault
from refseg.dataset.descriptor import SourceFile
from refseg.dataset.schema import DatasetSpec
from refseg.errors import AnnotationError
from refseg.mask_png import note_object_values
from refseg.wording import counted

logger = logging.getLogger(__name__)

_SECTIONS = ("categories", "licenses", "images", "annotations")
_MOST_FAULTS = 20


def collect_rows(
    spec: DatasetSpec,
    rows: Iterable[tuple[str, Row]],
    *,
    origin: Path,
    root: Path,
    sources: Iterable[SourceFile],
    options: ReadOptions,
    instances: Path | None = None,
) -> RawSource:
    """Check rows and join them to refs, images and annotations.

    Each row is read and checked once and stored in a temporary file, so that memory does not grow with the number of
    rows. Missing ids are assigned in the order of first appearance. Ids of refs and sentences start at 0. Ids of images
    and annotations follow the largest id in `instances.json` and the rows. The same rows always give the same ids.

    Args:
        spec: Specification of `custom/<name>`.
        rows: Rows with the columns of `docs/your-own-data.md`, each with a location in the file or folder.
        origin: The file or folder that the rows come from, for messages.
        root: Folder to which paths of mask files are relative.
        sources: The files that were read, with their hashes.
        options: How mask files and regions to ignore are read.
        instances: COCO's `instances.json`, to which `ann_id` refers.

    Returns:
        The source. Its `spec` has the splits that the rows name, known splits first.

    Raises:
        AnnotationError: If a file cannot be read, or if rows have mistakes. The message lists the mistakes and their
            locations.
    """
    listed = JsonTables(instances, required=(), optional=_SECTIONS) if instances is not None else None
    store = CustomStore(root, f"{origin.name} " if origin.is_file() else "", options.png_rule)
    try:
        for section, record in listed or ():
            store.add_listed(section, record)
        ignored = _fill(store, rows, origin, has_instances=listed is not None)
    except sqlite3.Error as error:
        raise AnnotationError(
            f"{origin}: its rows cannot be stored in a temporary file ({error}); set TMPDIR to a disk with free space"
        ) from error
    if ignored:
        _report_ignored(origin, ignored, options.ignored_regions)
    if note := note_object_values(store.object_values):
        logger.warning("%s: masks: %s", origin, note)
    described = list(sources)
    if store.num_mask_files:
        name = f"{spec.folder}/{store.num_mask_files} mask files"
        described.append(SourceFile(name=name, num_bytes=store.mask_bytes, sha256=store.masks_sha256))
    found = store.splits()
    splits = (*(split for split in SPLITS if split in found), *sorted(found - set(SPLITS)))
    return RawSource(
        spec=replace(spec, splits=splits),
        refs=_Refs(store),
        tables=_Tables(store, listed),
        sources=tuple(described),
        box_targets=True,
    )


def _report_ignored(origin: Path, places: list[str], handling: str) -> None:
    """Refuse rows with regions to ignore, or warn that their pixels count as background."""
    rows, first = counted(len(places), "row"), places[0]
    if handling == "refuse":
        raise AnnotationError(
            f"{origin}: found {rows} with regions to ignore, the first at {first}; training and scores would "
            "count their pixels; give --ignored-regions background to build with them as background"
        )
    logger.warning("%s: regions to ignore of %s count as background, the first at %s", origin, rows, first)


def _fill(store: CustomStore, rows: Iterable[tuple[str, Row]], origin: Path, *, has_instances: bool) -> list[str]:
    """Read the rows into the store. If rows have mistakes, raise an error that lists all mistakes.

    Returns:
        The locations of rows with regions to ignore.
    """
    ignored: list[str] = []
    faults: list[str] = []
    num_faults = 0
    for place, values in rows:
        try:
            if isinstance(values, RowFault):
                raise values
            row = read_row(values)
            if row.kind == "ann_id" and not has_instances:
                raise RowFault("found ann_id, but no instances.json beside the table that would define it")
            store.add(row, place)
            if row.has_ignored:
                ignored.append(place)
        except RowFault as fault:
            num_faults += 1
            if num_faults <= _MOST_FAULTS:
                faults.append(f"{place}: {fault}")
    if not store.num_rows and not num_faults:
        raise AnnotationError(f"{origin}: found no row, expected one for each sentence")
    if not num_faults:  # the checks over all rows would report rows that are left out because of their faults
        faults = store.finish()
        num_faults, faults = len(faults), faults[:_MOST_FAULTS]
    if num_faults:
        rest = f"\n  and {num_faults - len(faults)} more" if num_faults > len(faults) else ""
        listed = "\n  ".join(faults)
        raise AnnotationError(f"{origin}: found {counted(num_faults, 'mistake')}\n  {listed}{rest}")
    return ignored


@dataclass(frozen=True, slots=True)
class _Refs:
    """The refs of the rows. They can be iterated any number of times."""

    store: CustomStore

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return self.store.refs()


@dataclass(frozen=True, slots=True)
class _Tables:
    """The records of `instances.json`, if it exists, and the records of the rows."""

    store: CustomStore
    listed: JsonTables | None

    def __iter__(self) -> Iterator[tuple[str, Any]]:
        for section, record in self.listed or ():
            yield section, self.store.complete(record) if section == "images" else record
        yield from self.store.records()
