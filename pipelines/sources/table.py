"""Reads a user's table (CSV, JSON lines or Parquet) row by row, so that memory does not grow with the file."""

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
_MAX_FIELD = 64 * 2**20  # a mask can exceed csv's own limit of 128 KiB

_SEPARATORS = (",", ";", "\t")  # spreadsheets use ";" in languages with decimal commas
_LONE_RETURN = re.compile(rb"\r(?!\n)")  # the end of a line in old files


class RowFault(Exception):
    """A fault of one row. The reader of the table adds the number of the row to the message."""


Row = dict[str, Any] | RowFault
"""The values of a row by column, or the fault that makes the row unreadable. An empty field has the value None."""


def read_table(path: Path, columns: Sequence[str], required: Sequence[str]) -> Iterator[tuple[str, Row]]:
    """Yield each row with a location, such as `line 2` (the last line of the row) or, for Parquet, `row 2`.

    Args:
        path: Path of a table with one of `SUFFIXES`.
        columns: Names of all allowed columns.
        required: Names of the required columns.

    Raises:
        AnnotationError: If the file cannot be read, a required column is missing, or a column is unknown.
    """
    suffix = table_suffix(path)
    try:
        yield from {".csv": _csv_rows, ".jsonl": _json_rows, ".parquet": _parquet_rows}[suffix](path, columns, required)
    except UnicodeDecodeError as error:
        where = "a string in it" if suffix == ".parquet" else f"line {_find_undecodable(path)}"
        raise AnnotationError(f"{path}: {where} is not UTF-8 ({error.reason}); save it as UTF-8") from error
    except (pa.ArrowException, ValueError, OverflowError) as error:
        raise AnnotationError(f"{path}: cannot be read as {suffix[1:].upper()} ({one_line(error)})") from error


def table_suffix(path: Path) -> str:
    """Return the suffix of a table in lower case, without the `.gz` of a compressed table."""
    return Path(path.name.lower().removesuffix(".gz")).suffix


def _csv_rows(path: Path, columns: Sequence[str], required: Sequence[str]) -> Iterator[tuple[str, Row]]:
    csv.field_size_limit(max(_MAX_FIELD, csv.field_size_limit()))
    with open_source(path) as source, io.TextIOWrapper(source, encoding="utf-8", newline="") as file:
        start = file.tell()
        separator = _find_separator(file.readline(), required)
        file.seek(start)
        records = _csv_records(path, file, separator)
        header = [name.strip() for name in next(records, (0, []))[1]]
        while header and not header[-1]:  # empty columns, which spreadsheets often append
            header.pop()
        # pandas writes its index as a first column without a name.
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
    """Return the separator that splits a header into most of the required columns or, in a tie, into most columns."""

    def score(separator: str) -> tuple[int, int]:
        names = [name.strip().strip('"') for name in header.split(separator)]
        return sum(name in required for name in names), len(names)

    return max(_SEPARATORS, key=score)


def _csv_records(path: Path, file: TextIO, separator: str) -> Iterator[tuple[int, list[str]]]:
    """Yield the fields of each record, and the number of the record's last line."""
    reader = csv.reader(file, delimiter=separator, strict=True)
    start = 1
    try:
        for fields in reader:
            yield reader.line_num, fields
            start = reader.line_num + 1
    except csv.Error as error:
        raise AnnotationError(
            f"{path}: cannot be read as CSV from line {start} ({error}); look for a quote that is not closed"
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
        return RowFault("holds half of a surrogate pair, which is not valid text")
    if not isinstance(row, dict):
        return RowFault(f"found a {type(row).__name__}, expected an object with {', '.join(required)}")
    if unknown := sorted(set(row) - set(columns)):
        remedy = _spelling(unknown, columns) or "rename or remove it"
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
    """Return the columns, such as `__index_level_0__`, that hold the index according to pandas' metadata."""
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
        remedy = _spelling(found, columns) or "rename or remove other columns"
        raise AnnotationError(
            f"{path}: found {', '.join(faults)}; expected {', '.join(required)} "
            f"and optionally {', '.join(name for name in columns if name not in required)}; {remedy}"
        )


def _spelling(found: Sequence[str], columns: Sequence[str]) -> str:
    """Return the correct spelling of the first name that is wrong only in capitals or spaces; otherwise empty."""
    for name in found:
        meant = name.strip().lower().replace(" ", "_")
        if name not in columns and meant in columns:
            return f"names are in lower case; write {meant!r} instead of {_quoted([name])}"
    return ""


def _find_undecodable(path: Path) -> int:
    """Return the number of the first line that is not UTF-8."""
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
    """Return False if a string in a value cannot be written as UTF-8."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True
