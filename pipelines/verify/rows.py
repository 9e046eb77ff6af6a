"""Compares the rows of a manifest with the descriptor, and checks each row for contradictions."""

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

import pyarrow as pa

from pipelines.masks import mask_area, target_mask
from refseg import tokenizer
from refseg.dataset.descriptor import ShardEntry
from refseg.dataset.faults import MOST_FAULTS, Fault
from refseg.dataset.file_checks import manifest_name
from refseg.dataset.manifest_reader import find_manifest_faults, parse_manifest, read_table
from refseg.dataset.manifest_writer import ManifestRow, digest_rows
from refseg.dataset.row_checks import RowRules
from refseg.dataset.schema import RefRecord
from refseg.errors import AnnotationError
from refseg.storage import open_folder

Row = dict[str, Any]
"""A row of a Parquet file, as plain values by column."""


def read_rows(data: bytes) -> list[Row]:
    """Return the rows in a manifest's bytes as plain, unchecked values. `digest_rows` computes the digest of the rows.

    Raises:
        DatasetError: If the bytes are not a manifest of this format.
    """
    place, name = open_folder("."), "manifest"
    rows: list[Row] = read_table(place, name, parse_manifest(place, name, data)).to_pylist()
    return rows


def _parse_row(row: Row) -> RefRecord | Exception:
    try:
        return ManifestRow.from_dict(row).record
    except (AnnotationError, TypeError, ValueError) as error:
        return error


def check_rows(
    entry: ShardEntry, table: pa.Table, rows: Sequence[Row], *, rules: RowRules, mask_rule: str
) -> tuple[list[Fault], list[RefRecord | Exception]]:
    """Check the rows of one shard.

    Args:
        entry: The descriptor's entry for the shard.
        table: All columns of the shard's manifest.
        rows: The same rows as plain values.
        rules: The values that the descriptor allows.
        mask_rule: Mask rule of the dataset.

    Returns:
        The faults, and the record of each row. There are no records if some rows violate the format, because no other
        check can use them.
    """
    file = manifest_name(entry)
    faults = []
    if digest_rows(rows) != entry.rows_sha256:
        expected = f"rows with digest {entry.rows_sha256:.12}"
        faults.append(Fault(file=file, found="rows of another build", expected=expected))
    faults += islice(find_manifest_faults(table, entry, rules), MOST_FAULTS + 2)
    if any(fault.sample for fault in faults):
        return faults, []
    num_images = len({row["image_id"] for row in rows})
    if num_images != entry.num_images:
        faults.append(Fault(file=file, found=f"{num_images} images", expected=f"{entry.num_images}"))
    records = [_parse_row(row) for row in rows]
    for row, record in zip(rows, records, strict=True):
        for found_text, expected_text in _record_faults(record, mask_rule):
            faults.append(Fault(file=file, sample=f"ref {row['ref_id']}", found=found_text, expected=expected_text))
    return faults, records


def _record_faults(record: RefRecord | Exception, mask_rule: str) -> Iterator[tuple[str, str]]:
    """Yield what was found and what was expected for each contradiction within a row."""
    if isinstance(record, Exception):
        yield f"no valid record ({record})", "a valid record"
        return
    size = (record.height, record.width)
    if record.mask != target_mask(record.annotations, size, mask_rule):
        yield "a mask that differs from its annotations", f"their {mask_rule} mask"
    if record.area != mask_area(record.mask):
        yield f"area {record.area}", f"{mask_area(record.mask)} pixels as in the mask"
    if record.no_target != (record.area == 0):
        yield f"no_target {record.no_target} with area {record.area}", "a target with pixels, or no_target and none"
    for sentence in record.sentences:
        if sentence.token_ids != tokenizer.encode(sentence.sent):
            yield f"other token_ids in sentence {sentence.sent_id}", f"those of {tokenizer.IDENTITY['name']}"
