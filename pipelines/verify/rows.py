"""A manifest's rows, against the descriptor and against themselves."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa

from pipelines.manifest import ManifestRow, digest_rows
from pipelines.masks import mask_area, target_mask
from pipelines.parquet import read_parquet
from pipelines.verify.faults import Fault
from refseg import tokenizer
from refseg.descriptor import ShardEntry
from refseg.errors import AnnotationError, DatasetError
from refseg.schema import MANIFEST_SCHEMA, RefRecord

Row = dict[str, Any]
"""A row as Parquet has it: plain values by column."""


def read_rows(data: bytes) -> list[Row]:
    """Rows of a manifest.

    Raises:
        DatasetError: If the bytes are no manifest of this format.
    """
    try:
        table = read_parquet(data)
    except (OSError, pa.ArrowException) as error:
        raise DatasetError(f"no Parquet file ({str(error).splitlines()[0]})") from error
    if not table.schema.equals(MANIFEST_SCHEMA):
        raise DatasetError("other columns than a manifest's")
    if empty := [name for name in table.column_names if table.column(name).null_count]:
        raise DatasetError(f"no value in some rows of {', '.join(empty)}")
    rows: list[Row] = table.to_pylist()
    return rows


def is_hash(text: str) -> bool:
    """True for the form of an XXH3-64: 16 hexadecimal digits."""
    return re.fullmatch("[0-9a-f]{16}", text) is not None


def parse_rows(rows: Sequence[Row]) -> list[RefRecord | Exception]:
    """The record of each row, or why it is none."""
    return [_parse_row(row) for row in rows]


def _parse_row(row: Row) -> RefRecord | Exception:
    try:
        return ManifestRow.from_dict(row).record
    except (AnnotationError, TypeError, ValueError) as error:
        return error


def check_rows(
    file: str,
    entry: ShardEntry,
    rows: Sequence[Row],
    records: Sequence[RefRecord | Exception],
    *,
    datasets: Mapping[str, int],
    tars: frozenset[str],
    rule: str,
) -> Iterator[Fault]:
    """Check the rows of one shard.

    Args:
        file: Name of the manifest.
        entry: What the descriptor says of the shard.
        rows: As read.
        records: From `parse_rows`.
        datasets: Dataset ids that rows may have.
        tars: What rows may have as `shard`.
        rule: Mask rule of the dataset.
    """
    if digest_rows(rows) != entry.rows_sha256:
        yield Fault(file=file, found="rows of another build", expected=f"rows with digest {entry.rows_sha256:.12}")
    for what, found, expected in (
        ("refs", len(rows), entry.num_refs),
        ("sentences", sum(len(row["sentences"]) for row in rows), entry.num_sentences),
        ("images", len({row["image_id"] for row in rows}), entry.num_images),
    ):
        if found != expected:
            yield Fault(file=file, found=f"{found} {what}", expected=f"{expected}")
    for row, record in zip(rows, records, strict=True):
        for found_text, expected_text in (
            *_place_faults(row, entry.split, datasets, tars),
            *_record_faults(record, rule),
        ):
            yield Fault(file=file, sample=f"ref {row['ref_id']}", found=found_text, expected=expected_text)


def _place_faults(row: Row, split: str, datasets: Mapping[str, int], tars: frozenset[str]) -> Iterator[tuple[str, str]]:
    dataset_id = f"{row['dataset']}/{row['split_by']}"
    if dataset_id not in datasets:
        yield f"dataset {dataset_id}", ", ".join(datasets)
    if row["split"] != split:
        yield f"split {row['split']}", split
    if row["shard"] not in tars:
        yield f"shard {row['shard']}", f"{' or '.join(sorted(tars)[:3])}"
    for name in ("image_xxh3", "sample_xxh3"):
        if not is_hash(row[name]):
            yield f"{name} {row[name]!r}", "16 hexadecimal digits"


def _record_faults(record: RefRecord | Exception, mask_rule: str) -> Iterator[tuple[str, str]]:
    """What is found and expected wherever a row contradicts itself."""
    if isinstance(record, Exception):
        yield f"no record ({record})", "a record"
        return
    size = (record.height, record.width)
    if record.mask.size != size or sum(record.mask.counts) != record.height * record.width:
        yield f"a mask of {sum(record.mask.counts)} pixels, size {record.mask.size}", f"size {size}"
    elif record.mask != target_mask(record.annotations, size, mask_rule):
        yield "a mask that differs from its annotations", f"their {mask_rule}"
    if record.area != mask_area(record.mask):
        yield f"area {record.area}", f"{mask_area(record.mask)} pixels as in the mask"
    if record.no_target != (record.area == 0):
        yield f"no_target {record.no_target} with area {record.area}", "a target with pixels, or none"
    for sentence in record.sentences:
        if sentence.token_ids != tokenizer.encode(sentence.sent):
            yield f"other token_ids in sentence {sentence.sent_id}", f"those of {tokenizer.IDENTITY['name']}"
