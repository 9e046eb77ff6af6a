"""`BuiltDataset` opens a dataset and compares its files with the descriptor."""

from pathlib import Path

import pytest

from pipelines.build import build_dataset
from pipelines.export.run import ExportOptions, export_dataset
from refseg.dataset.built import BuiltDataset
from refseg.dataset.faults import DamageError
from refseg.dataset.row_images import IMAGE_COLUMNS, RowImages
from refseg.errors import UsageError
from tests.pipelines.conftest import TinyRefer


@pytest.fixture
def built(tmp_path: Path) -> Path:
    """Three refs of train in two shards, one of val; `plus` uses its images as a pool."""
    tiny = TinyRefer(root=tmp_path / "source")
    for image_id, split in ((7, "train"), (8, "train"), (9, "train"), (11, "val")):
        tiny.add_image(image_id, (split,))
    build_dataset(tiny.options(tmp_path / "built"))
    tiny.folder = "refcoco+"
    build_dataset(tiny.options(tmp_path / "plus", images_from=(tmp_path / "built",), images=None))
    return tmp_path / "built"


def test_splits_come_in_the_datasets_order_and_rows_in_that_of_the_shards(built: Path) -> None:
    dataset = BuiltDataset.open(built, ["val", "train"])

    assert dataset.splits == ("train", "val")
    assert [entry.name for entry in dataset.entries] == ["train-00000", "train-00001", "val-00000"]
    assert dataset.read(["split", "image_id"], dataset.entries_of("val")).to_pylist() == [
        {"split": "val", "image_id": 11}
    ]
    assert sorted(dataset.read(["image_id"])["image_id"].to_pylist()) == [7, 8, 9, 11]
    assert dataset.rejects().num_rows == 0


def test_a_split_that_is_not_there_is_refused_with_those_that_are(built: Path) -> None:
    with pytest.raises(UsageError, match=r"built: refcoco/unc has no split 'tset'; expected some of train, val"):
        BuiltDataset.open(built, ["train", "tset"])
    with pytest.raises(UsageError, match=r"built: no split was given; expected some of train, val"):
        BuiltDataset.open(built, [])


def test_only_the_files_of_the_splits_asked_for_must_be_there(built: Path) -> None:
    (built / "val-00000.tar").unlink()

    assert BuiltDataset.open(built, ["train"]).read(["image_id"]).num_rows == 3
    assert BuiltDataset.open(built, with_tars=False).read(["image_id"]).num_rows == 4
    with pytest.raises(DamageError, match=r"built/val-00000\.tar: found no such file"):
        BuiltDataset.open(built, ["val"])


def test_a_file_that_nobody_names_is_refused(built: Path) -> None:
    (built / "train-00000 (copy).tar").write_bytes(b"")

    with pytest.raises(DamageError, match=r"\(copy\)\.tar: found a file that refseg.json does not name.*remove it"):
        BuiltDataset.open(built)


def test_a_pools_tars_are_compared_when_rows_name_them(built: Path) -> None:
    plus = BuiltDataset.open(built.parent / "plus")
    rows = plus.read(IMAGE_COLUMNS).to_pylist()
    images = RowImages(plus, (row["shard"] for row in rows))
    pictures = {row["image_id"]: images.read(row) for row in rows}
    with (built / "val-00000.tar").open("ab") as file:
        file.write(b"\0")

    source = built.parent / "source" / "images" / "train2014"
    assert {source.joinpath(row["file_name"]).read_bytes() for row in rows} == set(pictures.values())
    again = BuiltDataset.open(built.parent / "plus")
    assert again.read(["image_id"], again.entries_of("train")).num_rows == 3
    with pytest.raises(DamageError, match=r"built/val-00000\.tar: found .* bytes, expected .*; restore refcoco/unc"):
        again.read(["image_id"], again.entries_of("val"))


def test_an_export_without_images_needs_manifests_alone(built: Path) -> None:
    for tar in built.glob("*.tar"):
        tar.unlink()

    options = ExportOptions(folder=built.parent / "plus", to="refer", out=built.parent / "out", images=False)
    assert export_dataset(options).report.num_refs == 4
