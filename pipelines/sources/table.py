"""Reads a user's table row by row: CSV, JSON lines or Parquet; memory does not grow with the file."""

import csv
import io
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.sources.source_file import open_source
from refseg.errors import AnnotationError
from refseg.values import one_line

SUFFIXES = (".csv", ".jsonl", ".parquet")
_MAX_FIELD = 64 * 2**20  # csv's own limit of 128 KiB is less than one mask can take

_SEPARATORS = (",", ";", "\t")  # spreadsheets write the second where the comma is in numbers
_LONE_RETURN = re.compile(rb"\r(?!\n)")  # ends a line in old files


class RowFault(Exception):
    """What is wrong with one row; whoever reads the table adds the place."""


Row = dict[str, Any] | RowFault
"""Values by column, None where there is none; or what makes the row unreadable."""


def read_table(path: Path, columns: Sequence[str], required: Sequence[str]) -> Iterator[tuple[str, Row]]:
    """Yield each row with its place: `line 2` of a text file (the line it ends in), `row 2` of a Parquet file.

    Args:
        path: With one of `SUFFIXES`.
        columns: Names the table may have.
        required: Names it must have.

    Raises:
        AnnotationError: If the file cannot be read, or its columns are others.
    """
    suffix = table_suffix(path)
    try:
        yield from {".csv": _csv_rows, ".jsonl": _json_rows, ".parquet": _parquet_rows}[suffix](path, columns, required)
    except UnicodeDecodeError as error:
        place = "a text of it" if suffix == ".parquet" else f"line {_find_undecodable(path)}"
        raise AnnotationError(f"{path}: {place} is not UTF-8 ({error.reason}); save it as UTF-8") from error
    except (pa.ArrowException, ValueError, OverflowError) as error:
        raise AnnotationError(f"{path}: cannot be read as {suffix[1:].upper()} ({one_line(error)})") from error


def table_suffix(path: Path) -> str:
    """The suffix in small letters, without the `.gz` of a compressed table."""
    return Path(path.name.lower().removesuffix(".gz")).suffix


def _csv_rows(path: Path, columns: Sequence[str], required: Sequence[str]) -> Iterator[tuple[str, Row]]:
    csv.field_size_limit(max(_MAX_FIELD, csv.field_size_limit()))
    with open_source(path) as source, io.TextIOWrapper(source, encoding="utf-8", newline="") as file:
        start = file.tell()
        separator = _find_separator(file.readline(), required)
        file.seek(start)
        records = _csv_records(path, file, separator)
        header = [name.strip() for name in next(records, (0, []))[1]]
        while header and not header[-1]:  # columns of nothing, as spreadsheets leave them
            header.pop()
        # pandas writes its index first, without a name; a misspelt name is not empty.
        _check_columns(path, header[1:] if header[:1] == [""] else header, columns, required)
        for number, fields in records:
            if not any(map(str.strip, fields)):  # an empty line
                continue
            while len(fields) > len(header) and not fields[-1].strip():
                fields.pop()
            row: Row = {name: field or None for name, field in zip(header, fields, strict=False)}
            if len(fields) != len(header):
                row = RowFault(
                    f"found {len(fields)} fields, expected {len(header)}; text with {separator!r} in it needs quotes"
                )
            yield f"line {number}", row


def _find_separator(header: str, required: Sequence[str]) -> str:
    """The one that makes most of the required columns of a header, or else most columns."""

    def score(separator: str) -> tuple[int, int]:
        names = [name.strip().strip('"') for name in header.split(separator)]
        return sum(name in required for name in names), len(names)

    return max(_SEPARATORS, key=score)


def _csv_records(path: Path, file: TextIO, separator: str) -> Iterator[tuple[int, list[str]]]:
    """Records with the line each ends in."""
    reader = csv.reader(file, delimiter=separator, strict=True)
    start = 1
    try:
        for fields in reader:
            yield reader.line_num, fields
            start = reader.line_num + 1
    except csv.Error as error:
        raise AnnotationError(
            f"{path}: cannot be read as CSV from line {start} on ({error}); is a quote there that nothing closes?"
        ) from error


def _json_rows(path: Path, columns: Sequence[str], required: Sequence[str]) -> Iterator[tuple[str, Row]]:
    with open_source(path) as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield f"line {number}", _json_row(line, columns, required)


def _json_row(line: bytes, columns: Sequence[str], required: Sequence[str]) -> Row:
    try:
        row = json.loads(line.rstrip())
    except UnicodeDecodeError:
        raise
    except json.JSONDecodeError as error:
        return RowFault(f"cannot be read as JSON ({error.msg} at character {error.pos + 1})")
    except (ValueError, RecursionError) as error:
        return RowFault(f"cannot be read as JSON ({error})")
    if b"\\ud" in line.lower() and not _is_text(row):
        return RowFault("holds half of a surrogate pair, which no text does")
    if not isinstance(row, dict):
        return RowFault(f"found a {type(row).__name__}, expected an object with {', '.join(required)}")
    if unknown := sorted(set(row) - set(columns)):
        remedy = _spelling(unknown, columns) or "rename or drop it"
        return RowFault(f"found unknown {_quoted(unknown)}, expected {', '.join(columns)}; {remedy}")
    return row


def _parquet_rows(path: Path, columns: Sequence[str], required: Sequence[str]) -> Iterator[tuple[str, Row]]:
    with open_source(path) as file:
        parquet = pq.ParquetFile(file)
        schema = parquet.schema_arrow
        names = [name for name in schema.names if name in columns or name not in _pandas_index(schema)]
        _check_columns(path, names, columns, required)
        number = 0
        for batch in parquet.iter_batches(batch_size=1024, columns=names):
            for row in batch.to_pylist():
                number += 1
                yield f"row {number}", row


def _pandas_index(schema: pa.Schema) -> list[str]:
    """Columns in which pandas keeps a frame's index, such as `__index_level_0__`, by what it notes in the file."""
    try:
        noted = json.loads((schema.metadata or {}).get(b"pandas", b"{}"))["index_columns"]
    except (ValueError, RecursionError, LookupError, TypeError):
        return []
    return [name for name in noted if isinstance(name, str)] if isinstance(noted, list) else []


def _check_columns(path: Path, found: Sequence[str], columns: Sequence[str], required: Sequence[str]) -> None:
    faults = [f"no column {_quoted([name])}" for name in required if name not in found]
    faults += [f"unknown column {_quoted([name])}" for name in dict.fromkeys(found) if name not in columns]
    faults += [f"column {_quoted([name])} twice" for name in columns if found.count(name) > 1]
    if faults:
        remedy = _spelling(found, columns) or "rename or drop the others"
        raise AnnotationError(
            f"{path}: found {', '.join(faults)}; expected {', '.join(required)} "
            f"and maybe {', '.join(name for name in columns if name not in required)}; {remedy}"
        )


def _spelling(found: Sequence[str], columns: Sequence[str]) -> str:
    """How to write the first name that only its capitals or spaces make unknown; empty if there is none."""
    for name in found:
        meant = name.strip().lower().replace(" ", "_")
        if name not in columns and meant in columns:
            return f"names are in small letters, write {meant!r} for {_quoted([name])}"
    return ""


def _find_undecodable(path: Path) -> int:
    """Number of the first line that is not UTF-8."""
    number = 1
    with open_source(path) as file:
        for line in file:
            try:
                line.decode()
            except UnicodeDecodeError as error:
                return number + len(_LONE_RETURN.findall(line, 0, error.start))
            number += 1 + len(_LONE_RETURN.findall(line))
    return number


def _quoted(names: Sequence[str]) -> str:
    return ", ".join(ascii(name[:40]) for name in names[:8])


def _is_text(value: Any) -> bool:
    """False if a text in a value cannot be written as UTF-8."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True
