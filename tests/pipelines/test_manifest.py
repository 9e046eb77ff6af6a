import hashlib
import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.build import build_dataset
from refseg.dataset.descriptor import load_descriptor
from refseg.dataset.manifest_reader import parse_manifest
from refseg.dataset.manifest_writer import ManifestRow, digest_rows, write_manifest, write_table
from refseg.dataset.schema import MANIFEST_SCHEMA, Annotation, ImageLocation, RefRecord, Rle, Sentence
from refseg.errors import DatasetError
from refseg.storage import open_folder

from .conftest import read_manifest

LOCATION = ImageLocation(
    shard="val-00000.tar",
    image_offset=512,
    image_bytes=700,
    image_xxh3="00ff00ff00ff00ff",
    sample_bytes=2560,
    sample_xxh3="ff00ff00ff00ff00",
)
TRIANGLE = Annotation(
    ann_id=31,
    category_id=1,
    iscrowd=False,
    area=6.25,
    box_xywh=(0.5, 2.0, 4.0, 1e-05),
    polygons=((0.5, 2.0, 4.5, 2.0, 4.5, 6.0), (1.0, 1.0, 2.0, 2.0, 3.0, 0.0)),
    rles=(),
)
CROWD = Annotation(
    ann_id=900100000007,
    category_id=90,
    iscrowd=True,
    area=5.0,
    box_xywh=(0.0, 3.0, 1.0, 5.0),
    polygons=(),
    rles=(Rle(size=(10, 20), counts=(3, 5, 192)),),
)
BOX = replace(TRIANGLE, ann_id=32, polygons=())


def record(ref_id: int, annotations: tuple[Annotation, ...], *sentences: str) -> RefRecord:
    return RefRecord(
        dataset="refcoco",
        split_by="unc",
        split="val",
        ref_id=ref_id,
        image_id=7,
        file_name="COCO_train2014_000000000007.jpg",
        height=10,
        width=20,
        category="person" if annotations else "",
        box_xywh=(0.5, 2.0, 4.0, 4.0),
        area=5 if annotations else 0,
        no_target=not annotations,
        box_only=BOX in annotations,
        mask=Rle(size=(10, 20), counts=(3, 5, 192) if annotations else (200,)),
        sentences=tuple(
            Sentence(
                sent_id=10 * ref_id + number,
                raw=sentence.title(),
                sent=sentence,
                words=tuple(sentence.split()),
                token_ids=(49406, 320 + number, 49407),
                exists=bool(annotations) and number == 0,
            )
            for number, sentence in enumerate(sentences)
        ),
        annotations=annotations,
    )


@pytest.fixture
def rows() -> list[ManifestRow]:
    """Polygons, run lengths, several annotations, a box alone, no target, and text beyond ASCII."""
    records = [
        record(1, (TRIANGLE,), "left man", "not there"),
        record(2, (CROWD,), "a pur \u00e9 e \U0001f992", 'quote " \\ \x7f'),
        record(3, (TRIANGLE, BOX), "both"),
        record(4, (), "no horse"),
    ]
    return [ManifestRow(record=one, location=LOCATION) for one in records]


def test_rows_come_back_as_they_were(rows: list[ManifestRow], tmp_path: Path) -> None:
    digest = write_manifest(tmp_path / "a.parquet", rows)

    assert read_manifest(tmp_path / "a.parquet") == rows
    assert pq.read_schema(tmp_path / "a.parquet").equals(MANIFEST_SCHEMA)
    assert digest_rows(row.to_dict() for row in read_manifest(tmp_path / "a.parquet")) == digest


def test_a_row_has_every_field_in_the_order_of_the_schema(rows: list[ManifestRow]) -> None:
    def spread(value: Any) -> Any:
        if isinstance(value, Annotation):
            fields = spread(asdict(value))
            return fields | {"segmentation": {name: fields.pop(name) for name in ("polygons", "rles")}}
        if isinstance(value, dict):
            return {name: spread(one) for name, one in value.items()}
        return [spread(one) for one in value] if isinstance(value, tuple | list) else value

    for row in rows:
        expected = spread(asdict(row.record))
        expected["annotations"] = [spread(one) for one in row.record.annotations]
        assert spread(row.to_dict()) == expected | asdict(row.location)
        assert list(row.to_dict()) == MANIFEST_SCHEMA.names
        for name in ("sentences", "annotations"):
            names = [field.name for field in MANIFEST_SCHEMA.field(name).type.value_type]
            assert all(list(one) == names for one in row.to_dict()[name])


def test_the_digest_is_the_hash_of_rows_in_pythons_json(rows: list[ManifestRow], tmp_path: Path) -> None:
    later = ("source_rank", "image_kind", "ignore")  # columns that digests of earlier builds do not know
    kept = [{name: value for name, value in row.to_dict().items() if name not in later} for row in rows]
    text = "".join(json.dumps(row, ensure_ascii=False, separators=(",", ":")) + "\n" for row in kept).encode()

    assert b'"box_xywh":[0.5,2.0,4.0,1e-05]' in text
    assert write_manifest(tmp_path / "a.parquet", rows) == hashlib.sha256(text).hexdigest()


def test_a_table_of_rows_is_written_and_hashed_like_the_rows(rows: list[ManifestRow], tmp_path: Path) -> None:
    digest = write_manifest(tmp_path / "a.parquet", rows)

    assert write_table(tmp_path / "b.parquet", pq.read_table(tmp_path / "a.parquet")) == digest
    assert read_manifest(tmp_path / "b.parquet") == rows


def test_the_digest_sees_a_changed_run_length_but_not_the_writer(rows: list[ManifestRow], tmp_path: Path) -> None:
    digest = write_manifest(tmp_path / "a.parquet", rows)
    pq.write_table(pq.read_table(tmp_path / "a.parquet"), tmp_path / "b.parquet", compression="none", row_group_size=1)
    assert digest_rows(row.to_dict() for row in read_manifest(tmp_path / "b.parquet")) == digest

    mask = rows[0].record.mask
    counts = (mask.counts[0] + 1, mask.counts[1] - 1, *mask.counts[2:])
    changed = replace(rows[0], record=replace(rows[0].record, mask=replace(mask, counts=counts)))
    assert write_manifest(tmp_path / "c.parquet", [changed, *rows[1:]]) != digest


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"ref_id": [1]}), path)
    with pytest.raises(DatasetError, match=r"a\.parquet: found other columns than a manifest has"):
        parse_manifest(open_folder(tmp_path), path.name, path.read_bytes())
    with pytest.raises(DatasetError, match=r"a\.parquet: found a file that cannot be read as Parquet"):
        parse_manifest(open_folder(tmp_path), path.name, b"PAR1")


def test_run_lengths_and_tokens_have_the_documented_types() -> None:
    assert MANIFEST_SCHEMA.field("mask").type.field("counts").type == pa.list_(pa.uint32())
    assert MANIFEST_SCHEMA.field("sentences").type.value_type.field("token_ids").type == pa.list_(pa.uint16())


def test_the_descriptors_digest_does_not_depend_on_how_shards_are_stored(tiny: Any, tmp_path: Path) -> None:
    build_dataset(tiny.options(tmp_path / "out"))
    descriptor = load_descriptor(tmp_path / "out")

    for shard in descriptor.shards:
        assert (
            digest_rows(row.to_dict() for row in read_manifest(tmp_path / f"out/{shard.name}.parquet"))
            == shard.rows_sha256
        )


def test_every_column_is_explained() -> None:
    text = (Path(__file__).parents[2] / "manifests/COLUMNS.md").read_text(encoding="utf-8")
    for name in MANIFEST_SCHEMA.names:
        if name == "mask":
            assert "`mask.size`" in text
            assert "`mask.counts`" in text
        else:
            assert f"`{name}`" in text
    for parent in ("sentences", "annotations"):
        for child in MANIFEST_SCHEMA.field(parent).type.value_type:
            assert f"`.{child.name}" in text
