"""Any dataset in REFER's layout, by a name of the user's own: `refer/<name>`."""

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from pycocotools import mask as coco_mask

from pipelines.build import build_dataset
from pipelines.sources import read_source
from pipelines.verify import verify_dataset
from refseg.compat.refer import REFER
from refseg.dataset.schema import find_dataset
from refseg.errors import AnnotationError, UsageError


@pytest.fixture
def mine(tiny: Any) -> Any:
    """The five pictures as `rrsisd`, whose partition is called `unc` and whose test split `test`."""
    tiny.folder, tiny.split_by = "rrsisd", "unc"
    for ref in tiny.refs:
        ref["split"] = {"val": "val", "testA": "test"}[ref["split"]]
    for image in tiny.images:
        new = f"{image['id']:05d}.jpg"
        tiny.image_path(image["id"]).rename(tiny.image_folder / new)
        image["file_name"] = new
    return tiny


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return [row for path in sorted(folder.glob("[!r]*.parquet")) for row in pq.read_table(path).to_pylist()]


def build(mine: Any, out: Path, **changes: Any) -> list[dict[str, Any]]:
    build_dataset(mine.options(out, **{"dataset": "refer/rrsisd", "accept_counts": False, **changes}))
    return rows_of(out)


def test_its_refs_are_rows_and_its_splits_its_own(mine: Any, tmp_path: Path) -> None:
    shape = coco_mask.encode(np.asfortranarray(np.eye(10, 20, dtype=np.uint8)))  # RRSIS-D's form: a list of run lengths
    mine.annotations[0]["segmentation"] = [{"size": shape["size"], "counts": shape["counts"].decode()}]

    rows = build(mine, tmp_path / "out")

    assert [(row["dataset"], row["split_by"], row["split"]) for row in rows[::4]] == [
        ("refer", "rrsisd", "test"), ("refer", "rrsisd", "val")
    ]  # fmt: skip
    assert {row["ref_id"]: row["area"] for row in rows} == {70: 10, 80: 16, 90: 16, 110: 16, 120: 16}
    assert verify_dataset(tmp_path / "out") == []


def test_refs_without_a_mask_are_left_out_counted_and_named(
    mine: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    mine.annotations[0]["segmentation"] = []
    del mine.annotations[1]["segmentation"]

    rows = build(mine, tmp_path / "out")

    assert {row["ref_id"] for row in rows} == {90, 110, 120}
    assert "refer/rrsisd: left out 2 refs whose annotation has no segmentation; rejects.parquet names" in caplog.text
    rejects = pq.read_table(tmp_path / "out" / "rejects.parquet").to_pylist()
    assert [(reject["ref_id"], reject["reason"]) for reject in rejects] == [(70, "without_mask"), (80, "without_mask")]


def test_nothing_is_taken_for_coco(mine: Any, tmp_path: Path) -> None:
    coco_name = mine.image_folder / "COCO_train2014_000000000007.jpg"
    (mine.image_folder / "00007.jpg").rename(coco_name)
    with pytest.raises(Exception, match=r"refer/rrsisd .*: found no file 00007\.jpg"):
        build(mine, tmp_path / "out")

    coco_name.rename(mine.image_folder / "00007.jpg")
    build(mine, tmp_path / "out")
    mine.folder = "refcoco"
    with pytest.raises(UsageError, match="image ids of refer/rrsisd are not those of refcoco/unc"):
        build_dataset(mine.options(tmp_path / "two", dataset="refcoco/unc", images_from=(tmp_path / "out",)))


def test_other_projects_find_it_by_the_name_of_their_code(mine: Any, tmp_path: Path) -> None:
    build(mine, tmp_path / "out")

    assert sorted(REFER(str(tmp_path), "rrsisd", "unc").Refs) == [70, 80, 90, 110, 120]
    with pytest.raises(UsageError, match="unknown dataset 'refcocoo/unc'"):
        REFER(str(tmp_path), "refcocoo", "unc")


@pytest.mark.parametrize("form", ["json", "json.gz"])
def test_json_is_read_too_and_the_file_may_be_named(form: str, mine: Any) -> None:
    folder = mine.write() / "rrsisd"
    (folder / "refs(unc).p").unlink()
    data = b"\xef\xbb\xbf" + json.dumps(mine.refs).encode()
    (folder / f"refs(unc).{form}").write_bytes(gzip.compress(data) if "gz" in form else data)
    spec = find_dataset("refer/rrsisd")

    for annotations in (mine.root, folder, folder / f"refs(unc).{form}"):
        raw = read_source(spec, annotations)
        assert raw.spec.splits == ("val", "test")
        assert list(raw.refs) == mine.refs


def test_several_partitions_and_none_are_answered_with_what_to_do(mine: Any, tmp_path: Path) -> None:
    folder = mine.write() / "rrsisd"
    spec = find_dataset("refer/rrsisd")
    (folder / "refs(umd).json").write_text("[]")
    with pytest.raises(UsageError, match=r"found refs\(umd\)\.json, refs\(unc\)\.p, expected one partition; name the"):
        read_source(spec, mine.root)
    with pytest.raises(UsageError, match=r"found no refs\(<name of a partition>\)\.p or \.json, there or in rrsisd/"):
        read_source(spec, tmp_path)
    with pytest.raises(AnnotationError, match=r"refs\(umd\)\.json: its refs name 0 splits, expected 1 to 100"):
        read_source(spec, folder / "refs(umd).json")
