from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.build import build_dataset
from pipelines.manifest import ManifestRow, digest_rows, read_manifest, write_manifest
from pipelines.records import make_records
from pipelines.sources.refer import read_refer
from refseg.descriptor import load_descriptor
from refseg.errors import DatasetError
from refseg.schema import MANIFEST_SCHEMA, ImageLocation, find_dataset

UNC = find_dataset("refcoco/unc")
LOCATION = ImageLocation(shard="val-00000.tar", image_offset=512, image_bytes=700, image_xxh3="00ff00ff00ff00ff")


@pytest.fixture
def rows(tiny: Any) -> list[ManifestRow]:
    """A polygon, run lengths, no target, and text beyond ASCII."""
    crowd = {"size": [10, 20], "counts": [3, 5, 192]}
    tiny.annotations[1].update(iscrowd=1, segmentation=crowd)
    tiny.refs[2]["ann_id"] = [-1]
    tiny.refs[3]["sentences"][0]["raw"] = "a pur é e 🦒"
    records, _ = make_records(read_refer(UNC, tiny.write()), splits=UNC.splits, mask_rule="union")
    return [ManifestRow(record=record, location=LOCATION) for record in records]


def test_rows_come_back_as_they_were(rows: list[ManifestRow], tmp_path: Path) -> None:
    digest = write_manifest(tmp_path / "a.parquet", rows)

    assert read_manifest(tmp_path / "a.parquet") == rows
    assert pq.read_schema(tmp_path / "a.parquet").equals(MANIFEST_SCHEMA)
    assert digest_rows(row.to_dict() for row in read_manifest(tmp_path / "a.parquet")) == digest


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
    with pytest.raises(DatasetError, match=r"a\.parquet: has other columns than a manifest"):
        read_manifest(path)
    path.write_bytes(b"PAR1")
    with pytest.raises(DatasetError, match=r"a\.parquet: cannot be read as Parquet"):
        read_manifest(path)


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
