"""Writes records as Parquet, one row per ref, and computes a digest that does not depend on the Parquet writer."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from refseg.dataset.schema import MANIFEST_SCHEMA, NOT_DIGESTED, Annotation, ImageLocation, RefRecord, Rle, Sentence
from refseg.json_text import canonical_json

_ROW_GROUP_ROWS = 4096
# Only columns whose values repeat are dictionary-encoded: for other numbers it takes time and 15 % more space.
_REPEATING = [
    *("dataset", "split_by", "split", "file_name", "category", "shard", "image_xxh3", "sample_xxh3", "image_kind"),
    "sentences.list.element.words.list.element",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class ManifestRow:
    """One ref with the location of its image."""

    record: RefRecord
    location: ImageLocation

    def to_dict(self) -> dict[str, Any]:
        """Return the row as plain values, with the keys in the order of `MANIFEST_SCHEMA`."""
        # `dataclasses.asdict` would copy every number of every polygon, which was half of a build's time.
        record, location = self.record, self.location
        return {
            "dataset": record.dataset,
            "split_by": record.split_by,
            "split": record.split,
            "ref_id": record.ref_id,
            "image_id": record.image_id,
            "file_name": record.file_name,
            "height": record.height,
            "width": record.width,
            "category": record.category,
            "box_xywh": record.box_xywh,
            "area": record.area,
            "no_target": record.no_target,
            "box_only": record.box_only,
            "mask": _rle_dict(record.mask),
            "sentences": [
                {
                    "sent_id": sentence.sent_id,
                    "raw": sentence.raw,
                    "sent": sentence.sent,
                    "words": sentence.words,
                    "token_ids": sentence.token_ids,
                    "exists": sentence.exists,
                }
                for sentence in record.sentences
            ],
            "annotations": [
                {
                    "ann_id": annotation.ann_id,
                    "category_id": annotation.category_id,
                    "iscrowd": annotation.iscrowd,
                    "area": annotation.area,
                    "box_xywh": annotation.box_xywh,
                    "segmentation": {"polygons": annotation.polygons, "rles": list(map(_rle_dict, annotation.rles))},
                }
                for annotation in record.annotations
            ],
            "shard": location.shard,
            "image_offset": location.image_offset,
            "image_bytes": location.image_bytes,
            "image_xxh3": location.image_xxh3,
            "sample_bytes": location.sample_bytes,
            "sample_xxh3": location.sample_xxh3,
            "source_rank": record.source_rank,
            "image_kind": location.image_kind,
            "ignore": None if record.ignore is None else _rle_dict(record.ignore),
        }

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> "ManifestRow":
        """Make a row from the values of `to_dict`; sequences may be lists or tuples.

        Raises:
            AnnotationError: If the values contradict each other (see `RefRecord`).
        """
        location = ImageLocation(
            shard=fields["shard"],
            image_offset=fields["image_offset"],
            image_bytes=fields["image_bytes"],
            image_xxh3=fields["image_xxh3"],
            sample_bytes=fields["sample_bytes"],
            sample_xxh3=fields["sample_xxh3"],
            image_kind=fields["image_kind"],
        )
        record = RefRecord(
            dataset=fields["dataset"],
            split_by=fields["split_by"],
            split=fields["split"],
            ref_id=fields["ref_id"],
            image_id=fields["image_id"],
            file_name=fields["file_name"],
            height=fields["height"],
            width=fields["width"],
            category=fields["category"],
            box_xywh=tuple(fields["box_xywh"]),
            area=fields["area"],
            no_target=fields["no_target"],
            box_only=fields["box_only"],
            mask=_rle(fields["mask"]),
            sentences=tuple(map(_sentence, fields["sentences"])),
            annotations=tuple(map(_annotation, fields["annotations"])),
            source_rank=fields["source_rank"],
            ignore=None if fields["ignore"] is None else _rle(fields["ignore"]),
        )
        return cls(record=record, location=location)


def write_manifest(path: Path, rows: Sequence[ManifestRow]) -> str:
    """Write rows as a Parquet file.

    Equal rows give an equal digest with any version of pyarrow, and equal bytes with the same version.

    Returns:
        The digest of the rows (`rows_sha256`).
    """
    return write_rows(path, [row.to_dict() for row in rows])


def write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> str:
    """Like `write_manifest`, for rows of plain values with the keys in the order of `MANIFEST_SCHEMA`."""
    _write(path, pa.Table.from_pylist(rows, schema=MANIFEST_SCHEMA))
    return digest_rows(rows)


def write_table(path: Path, table: pa.Table) -> str:
    """Like `write_manifest`, for a table of `MANIFEST_SCHEMA`."""
    _write(path, table.combine_chunks())
    return digest_rows(table.to_pylist())


def _write(path: Path, table: pa.Table) -> None:
    pq.write_table(
        table,
        path,
        compression="zstd",
        compression_level=3,
        use_dictionary=_REPEATING,
        row_group_size=_ROW_GROUP_ROWS,
        version="2.6",
    )


def digest_rows(rows: Iterable[dict[str, Any]]) -> str:
    """Return the SHA-256 of rows as canonical JSON, one row per line, without the values in `NOT_DIGESTED`."""
    digest = hashlib.sha256()
    for row in rows:
        digested = {name: value for name, value in row.items() if not _is_left_out(name, value)}
        digest.update(canonical_json(digested) + b"\n")
    return digest.hexdigest()


def _is_left_out(name: str, value: Any) -> bool:
    return name in NOT_DIGESTED and (name == "source_rank" or value == NOT_DIGESTED[name])


def _rle_dict(rle: Rle) -> dict[str, Any]:
    return {"size": rle.size, "counts": rle.counts}


def _rle(fields: dict[str, Any]) -> Rle:
    height, width = fields["size"]
    return Rle(size=(height, width), counts=tuple(fields["counts"]))


def _sentence(fields: dict[str, Any]) -> Sentence:
    return Sentence(
        sent_id=fields["sent_id"],
        raw=fields["raw"],
        sent=fields["sent"],
        words=tuple(fields["words"]),
        token_ids=tuple(fields["token_ids"]),
        exists=fields["exists"],
    )


def _annotation(fields: dict[str, Any]) -> Annotation:
    segmentation = fields["segmentation"]
    return Annotation(
        ann_id=fields["ann_id"],
        category_id=fields["category_id"],
        iscrowd=fields["iscrowd"],
        area=fields["area"],
        box_xywh=tuple(fields["box_xywh"]),
        polygons=tuple(map(tuple, segmentation["polygons"])),
        rles=tuple(map(_rle, segmentation["rles"])),
    )
