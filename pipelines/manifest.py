"""Records to Parquet and back: one row per ref, and a digest that does not depend on the Parquet writer."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from refseg.errors import DatasetError
from refseg.schema import MANIFEST_SCHEMA, Annotation, ImageLocation, RefRecord, Rle, Sentence

_ROW_GROUP_ROWS = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class ManifestRow:
    """One ref and where its image lies."""

    record: RefRecord
    location: ImageLocation

    def to_dict(self) -> dict[str, Any]:
        """The row as plain values, keys in the order of `MANIFEST_SCHEMA`."""
        fields = asdict(self.record)
        for annotation in fields["annotations"]:
            annotation["segmentation"] = {"polygons": annotation.pop("polygons"), "rles": annotation.pop("rles")}
        return {**fields, **asdict(self.location)}

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> "ManifestRow":
        """Undo `to_dict`, lists or tuples.

        Raises:
            AnnotationError: If the values make no record.
        """
        names = tuple(ImageLocation.__slots__)
        location = ImageLocation(**{name: fields[name] for name in names})
        rest = {name: value for name, value in fields.items() if name not in names}
        rest["box_xywh"] = tuple(rest["box_xywh"])
        rest["mask"] = _rle(rest["mask"])
        rest["sentences"] = tuple(
            Sentence(**{**sentence, "words": tuple(sentence["words"]), "token_ids": tuple(sentence["token_ids"])})
            for sentence in rest["sentences"]
        )
        rest["annotations"] = tuple(map(_annotation, rest["annotations"]))
        return cls(record=RefRecord(**rest), location=location)


def write_manifest(path: Path, rows: Sequence[ManifestRow]) -> str:
    """Write rows; equal rows give equal bytes with one version of pyarrow, and an equal digest with any.

    Returns:
        The digest of the rows (`rows_sha256`).
    """
    plain = [row.to_dict() for row in rows]
    pq.write_table(
        pa.Table.from_pylist(plain, schema=MANIFEST_SCHEMA),
        path,
        compression="zstd",
        compression_level=3,
        row_group_size=_ROW_GROUP_ROWS,
        version="2.6",
    )
    return digest_rows(plain)


def read_manifest(path: Path) -> list[ManifestRow]:
    """Read the rows of a manifest.

    Raises:
        DatasetError: If the file is no manifest of this format.
    """
    return [ManifestRow.from_dict(fields) for fields in read_rows(path)]


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Read the rows of a manifest as plain values.

    Raises:
        DatasetError: If the file is no manifest of this format.
    """
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowException) as error:
        reason = str(error).splitlines()[0]
        raise DatasetError(f"{path}: cannot be read as Parquet ({reason}); build the dataset again") from error
    if not table.schema.equals(MANIFEST_SCHEMA):
        raise DatasetError(f"{path}: has other columns than a manifest; build the dataset again")
    rows: list[dict[str, Any]] = table.to_pylist()
    return rows


def digest_rows(rows: Iterable[dict[str, Any]]) -> str:
    """SHA-256 of rows as JSON, one a line."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps(row, ensure_ascii=False, separators=(",", ":")).encode() + b"\n")
    return digest.hexdigest()


def _rle(fields: dict[str, Any]) -> Rle:
    height, width = fields["size"]
    return Rle(size=(height, width), counts=tuple(fields["counts"]))


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
