"""Reads a user's own data: a table of sentences and optionally a COCO `instances.json`."""

from pathlib import Path

from pipelines.sources.custom_row import COLUMNS, REQUIRED
from pipelines.sources.raw import RawSource
from pipelines.sources.reader import Reader, ReadOptions, serves_custom
from pipelines.sources.row_source import collect_rows
from pipelines.sources.source_file import describe_file, find_file, suggest_names
from pipelines.sources.table import SUFFIXES, read_table, table_suffix
from refseg.dataset.schema import DatasetSpec
from refseg.errors import UsageError

TABLE_NAME = "sentences"


def find_table(spec: DatasetSpec, annotations: Path) -> Path:
    """Find the table.

    The table is `annotations` itself, or `sentences.csv`, `.jsonl` or `.parquet` in `annotations` or in `<name>/`.

    Raises:
        UsageError: If there is no table, or more than one.
    """
    if annotations.is_file():
        if table_suffix(annotations) not in SUFFIXES:
            raise UsageError(
                f"--annotations {annotations}: expected a table whose name ends in {' or '.join(SUFFIXES)}; for files "
                "of annotation tools and other projects name their layout with --reader"
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
        f"{spec.folder}/{alike or '; see docs/your-own-data.md; for another layout give --reader'}"
    )


def read_custom(spec: DatasetSpec, annotations: Path, options: ReadOptions) -> RawSource:
    """Read a table of sentences. `docs/your-own-data.md` explains the columns.

    Args:
        spec: Specification of `custom/<name>`.
        annotations: The table, or a folder with `sentences.csv`, `.jsonl` or `.parquet`. `instances.json` and mask
            files are expected beside the table.
        options: How mask files are read. The table names the split of each row.

    Raises:
        UsageError: If there is no table.
        AnnotationError: If a file cannot be read, or if the table has mistakes. The message lists the mistakes and
            their rows.
    """
    table = find_table(spec, annotations)
    instances = find_file(table.parent, "instances.json")
    return collect_rows(
        spec,
        read_table(table, COLUMNS, REQUIRED),
        origin=table,
        root=table.parent,
        sources=[describe_file(path, f"{spec.folder}/{path.name}") for path in (table, instances) if path is not None],
        options=options,
        instances=instances,
    )


READER = Reader(
    name="table",
    reads="a user's table of sentences: sentences.csv, .jsonl or .parquet",
    serves=serves_custom,
    read=read_custom,
)
