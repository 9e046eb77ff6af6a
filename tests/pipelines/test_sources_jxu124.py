"""jxu124's Parquet sets, made here from REFER's own files: both must be read as the same."""

import json
import pickle
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.build import build_dataset
from pipelines.options import BuildOptions
from pipelines.sources import read_source
from refseg.dataset.schema import find_dataset
from refseg.errors import AnnotationError

UNC = find_dataset("refcoco/unc")
NAMES = {"val": "validation", "testA": "test"}


def convert(source: Path, out: Path) -> Path:
    """Write a partition as jxu124 does: a file per split, testA as `test`, COCO's records as text."""
    refs = pickle.loads((source / "refs(unc).p").read_bytes())
    instances = json.loads((source / "instances.json").read_text())
    annotations, images = ({record["id"]: record for record in instances[name]} for name in ("annotations", "images"))
    by_split: dict[str, list[dict[str, Any]]] = {}
    for ref in refs:
        texts = {
            "raw_anns": json.dumps(annotations[ref["ann_id"]]),
            "raw_image_info": json.dumps(images[ref["image_id"]]),
        }
        by_split.setdefault(ref["split"], []).append(ref | texts | {"image_path": "coco/x.jpg"})
    (out / "data").mkdir(parents=True)
    for split, rows in by_split.items():
        path = out / "data" / f"{NAMES.get(split, split)}-00000-of-00001-9b0a1c.parquet"
        pq.write_table(pa.Table.from_pylist(rows), path)
    return out


def test_it_is_read_as_refers_own_files_and_test_is_test_a(tiny: Any, tmp_path: Path) -> None:
    folder = convert(tiny.write() / "refcoco", tmp_path / "hub")

    raw, own = read_source(UNC, folder), read_source(UNC, tiny.root)

    def records(source: Any, section: str) -> dict[int, Any]:
        return {record["id"]: record for name, record in source.tables if name == section}

    def ids(source: Any) -> list[Any]:
        names = ("ref_id", "image_id", "ann_id", "split", "sentences")
        return sorted(([ref[name] for name in names] for ref in source.refs), key=lambda ref: ref[0])

    assert ids(raw) == ids(own)
    for section in ("images", "annotations"):
        assert records(raw, section) == records(own, section)
    assert records(raw, "categories")[1] == {"id": 1, "name": "person"}


def test_a_build_of_either_has_the_same_rows(tiny: Any, tmp_path: Path) -> None:
    folder = convert(tiny.write() / "refcoco", tmp_path / "hub")
    given = {"dataset": "refcoco/unc", "annotations": folder, "images": tiny.root / "images", "accept_counts": True}

    build_dataset(tiny.options(tmp_path / "own"))
    build_dataset(BuildOptions(**given, out=tmp_path / "out", workers=1, images_per_shard=2))

    def rows(out: Path) -> list[dict[str, Any]]:
        tables = [pq.read_table(path).drop_columns(["source_rank"]) for path in sorted(out.glob("*.parquet"))]
        return pa.concat_tables(tables).to_pylist()

    assert rows(tmp_path / "out") == rows(tmp_path / "own")


def test_another_split_and_damaged_records_are_named(tiny: Any, tmp_path: Path) -> None:
    folder = convert(tiny.write() / "refcoco", tmp_path / "hub")
    path = next((folder / "data").glob("test-*"))
    table = pq.read_table(path)
    broken = table.set_column(table.schema.names.index("raw_anns"), "raw_anns", pa.array(["{"] * table.num_rows))
    pq.write_table(broken, path)
    with pytest.raises(AnnotationError, match=r"test-.*: row 1 has raw_anns that is not JSON; fetch the file again"):
        list(read_source(UNC, folder).tables)

    path.rename(path.with_name(path.name.replace("test-", "testC-")))
    with pytest.raises(AnnotationError, match=r"testC-.*: is of split 'testC', expected train, val, testA, testB of"):
        read_source(UNC, folder)
