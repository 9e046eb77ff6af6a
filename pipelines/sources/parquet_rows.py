"""Reads the needed columns of other projects' Parquet files, one batch of rows at a time."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.sources.source_file import open_source
from refseg.errors import AnnotationError
from refseg.values import one_line

_BATCH = 256


def parquet_rows(path: Path, columns: Sequence[str], *, optional: Sequence[str] = ()) -> Iterator[tuple[str, Any]]:
    """Yield each row as a dict, with a location. The first location is `row 1`.

    Args:
        path: Path of the file.
        columns: Names of required columns, or of fields of structs (`image.path`).
        optional: Names of columns that are read if they exist.

    Raises:
        AnnotationError: If the file cannot be read, or a required column is missing.
    """
    with _opened(path) as parquet:
        names = set(parquet.schema_arrow.names)
        if missing := [name for name in columns if name.partition(".")[0] not in names]:
            found = ", ".join(sorted(names))
            raise AnnotationError(
                f"{path}: found the columns {found}, without {missing[0]!r}, expected {', '.join(columns)}; is it "
                "another layout (--reader)?"
            )
        wanted = [*columns, *(name for name in optional if name.partition(".")[0] in names)]
        number = 0
        for batch in parquet.iter_batches(batch_size=_BATCH, columns=wanted):
            for row in batch.to_pylist():
                number += 1
                yield f"row {number}", row


def parquet_columns(path: Path) -> tuple[str, ...]:
    """Return the names of a file's columns.

    Raises:
        AnnotationError: If the file cannot be read.
    """
    with _opened(path) as parquet:
        return tuple(parquet.schema_arrow.names)


def parquet_length(path: Path) -> int:
    """Return the number of rows of a file.

    Raises:
        AnnotationError: If the file cannot be read.
    """
    with _opened(path) as parquet:
        return int(parquet.metadata.num_rows)


@contextmanager
def _opened(path: Path) -> Iterator[pq.ParquetFile]:
    try:
        with open_source(path) as file:
            yield pq.ParquetFile(file)
    except (pa.ArrowException, ValueError, OverflowError) as error:
        raise AnnotationError(f"{path}: cannot be read as Parquet ({one_line(error):.200}); fetch it again") from error
