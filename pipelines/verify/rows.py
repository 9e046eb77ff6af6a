"""A manifest's rows, against the descriptor and against themselves."""

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

import pyarrow as pa

from pipelines.masks import mask_area, target_mask
from pipelines.verify.faults import MOST_FAULTS, Fault
from refseg import tokenizer
from refseg.dataset.descriptor import ShardEntry
from refseg.dataset.manifest_reader import parse_manifest
from refseg.dataset.manifest_reader import read_rows as read_all_rows
from refseg.dataset.manifest_writer import ManifestRow, digest_rows
from refseg.dataset.row_checks import RowRules, find_row_faults
from refseg.dataset.schema import RefRecord
from refseg.errors import AnnotationError, DatasetError

Row = dict[str, Any]
"""A row as Parquet has it: plain values by column."""


def read_table(data: bytes) -> pa.Table:
    """All columns of a manifest, whose rows may be anything.

    Raises:
        DatasetError: If the bytes are not a manifest of this format.
    """
    try:
        return read_all_rows("", parse_manifest("", data))
    except DatasetError as error:
        raise DatasetError(str(error).removeprefix(": ").rpartition("; ")[0]) from error


def read_rows(data: bytes | pa.Table) -> list[Row]:
    """Rows of a manifest, from its bytes or from what `read_table` gives; errors as there."""
    rows: list[Row] = (read_table(data) if isinstance(data, bytes) else data).to_pylist()
    return rows


def parse_rows(rows: Sequence[Row]) -> list[RefRecord | Exception]:
    """The record of each row, or why it is none."""
    return [_parse_row(row) for row in rows]


def _parse_row(row: Row) -> RefRecord | Exception:
    try:
        return ManifestRow.from_dict(row).record
    except (AnnotationError, TypeError, ValueError) as error:
        return error


def check_rows(
    file: str, entry: ShardEntry, table: pa.Table, rows: Sequence[Row], *, rules: RowRules, mask_rule: str
) -> tuple[list[Fault], list[RefRecord | Exception]]:
    """Check the rows of one shard.

    Args:
        file: Name of the manifest.
        entry: What the descriptor says of the shard.
        table: From `read_table`.
        rows: The same as plain values.
        rules: What the rows must be.
        mask_rule: Mask rule of the dataset.

    Returns:
        The faults, and the record of each row; empty if some rows cannot be used at all, which no other check reads.
    """
    faults = []
    if digest_rows(rows) != entry.rows_sha256:
        expected = f"rows with digest {entry.rows_sha256:.12}"
        faults.append(Fault(file=file, found="rows of another build", expected=expected))
    if len(rows) != entry.num_refs:
        faults.append(Fault(file=file, found=f"{len(rows)} refs", expected=f"{entry.num_refs}"))
    unusable = [
        Fault(file=file, sample=f"ref {rows[fault.row]['ref_id']}", found=fault.found, expected=fault.expected)
        for fault in islice(find_row_faults(table, rules), MOST_FAULTS + 1)
    ]
    if unusable:
        return faults + unusable, []
    for what, found, expected_number in (
        ("sentences", sum(len(row["sentences"]) for row in rows), entry.num_sentences),
        ("images", len({row["image_id"] for row in rows}), entry.num_images),
    ):
        if found != expected_number:
            faults.append(Fault(file=file, found=f"{found} {what}", expected=f"{expected_number}"))
    records = parse_rows(rows)
    for row, record in zip(rows, records, strict=True):
        for found_text, expected_text in _record_faults(record, mask_rule):
            faults.append(Fault(file=file, sample=f"ref {row['ref_id']}", found=found_text, expected=expected_text))
    return faults, records


def _record_faults(record: RefRecord | Exception, mask_rule: str) -> Iterator[tuple[str, str]]:
    """What is found and expected wherever a row contradicts itself."""
    if isinstance(record, Exception):
        yield f"no record ({record})", "a record"
        return
    size = (record.height, record.width)
    if record.mask != target_mask(record.annotations, size, mask_rule):
        yield "a mask that differs from its annotations", f"their {mask_rule}"
    if record.area != mask_area(record.mask):
        yield f"area {record.area}", f"{mask_area(record.mask)} pixels as in the mask"
    if record.no_target != (record.area == 0):
        yield f"no_target {record.no_target} with area {record.area}", "a target with pixels, or none"
    for sentence in record.sentences:
        if sentence.token_ids != tokenizer.encode(sentence.sent):
            yield f"other token_ids in sentence {sentence.sent_id}", f"those of {tokenizer.IDENTITY['name']}"
