"""Images of another dataset are referred to and not written again."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.build import build_dataset
from pipelines.options import BuildOptions
from pipelines.verify import verify_dataset
from refseg.data.index import ManifestIndex
from refseg.dataset.descriptor import load_descriptor
from refseg.errors import DatasetError, ImageError, UsageError

Contents = Callable[[Path], dict[str, bytes]]


@pytest.fixture
def pool(tiny: Any, tmp_path: Path) -> Path:
    """`refcoco/unc` with images 7, 8, 9 (val) and 11, 12 (testA)."""
    build_dataset(tiny.options(tmp_path / "refcoco"))
    return tmp_path / "refcoco"


def _plus(tiny: Any) -> Any:
    """The same pictures and annotations as RefCOCO+."""
    tiny.folder = "refcoco+"
    return tiny


def test_a_dataset_of_the_same_images_writes_no_tar_and_needs_no_picture(tiny: Any, pool: Path, tmp_path: Path) -> None:
    options = _plus(tiny).options(tmp_path / "plus", images_from=(pool,), images=None)
    shutil.rmtree(tiny.image_folder)

    descriptor = build_dataset(options).descriptor

    assert sorted(path.name for path in (tmp_path / "plus").iterdir()) == [
        "refseg.json", "testA-00000.parquet", "testA.index.safetensors", "val-00000.parquet", "val-00001.parquet",
        "val.index.safetensors",
    ]  # fmt: skip
    (used,) = descriptor.image_pools
    assert (used.name, used.path, used.dataset) == ("refcoco-unc", "../refcoco", "refcoco/unc")
    assert [tar.name for tar in used.tars] == ["val-00000.tar", "val-00001.tar", "testA-00000.tar"]
    assert sum(shard.num_images for shard in descriptor.shards) == 5
    assert sum(shard.num_samples for shard in descriptor.shards) == 0
    assert verify_dataset(tmp_path / "plus") == []
    ours, theirs = (ManifestIndex.open(folder, ["val", "testA"]) for folder in (tmp_path / "plus", pool))
    for row in range(ours.num_rows):
        other = int(np.flatnonzero(theirs.image_id == ours.image_id[ours.row_image[row]])[0])
        assert ours.read_image_bytes(int(ours.row_image[row])) == theirs.read_image_bytes(other)


def test_images_that_are_not_there_get_tars(tiny: Any, pool: Path, tmp_path: Path) -> None:
    tiny.add_image(20, ("val",))
    tiny.add_image(21, ("testB",))

    descriptor = build_dataset(_plus(tiny).options(tmp_path / "plus", images_from=(pool,))).descriptor

    samples = {shard.name: (shard.num_images, shard.num_samples) for shard in descriptor.shards}
    assert sum(num_samples for _, num_samples in samples.values()) == 2
    assert samples["testA-00000"] == (2, 0)
    assert samples["testB-00000"] == (1, 1)
    shards = {row["image_id"]: row["shard"] for path in sorted((tmp_path / "plus").glob("*.parquet"))
              for row in pq.read_table(path).to_pylist()}  # fmt: skip
    assert shards[20].startswith("val-")
    assert shards[21] == "testB-00000.tar"
    assert all(shards[image_id].startswith("refcoco-unc/") for image_id in (7, 8, 9, 11, 12))
    assert verify_dataset(tmp_path / "plus") == []


@pytest.mark.slow
def test_workers_and_places_do_not_change_the_bytes(tiny: Any, pool: Path, tmp_path: Path, contents: Contents) -> None:
    tiny.add_image(20, ("val",))
    build_dataset(_plus(tiny).options(tmp_path / "a", images_from=(pool,)))
    build_dataset(_plus(tiny).options(tmp_path / "b", images_from=(pool,), workers=2))

    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    # Both datasets still work after they were moved together: rows name the pool, and the descriptor has its path.
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    shutil.move(pool, moved / "refcoco")
    shutil.move(tmp_path / "a", moved / "a")
    assert verify_dataset(moved / "a") == []


def test_a_pool_of_a_pool_is_pointed_to_itself(tiny: Any, pool: Path, tmp_path: Path) -> None:
    tiny.add_image(20, ("val",))
    build_dataset(_plus(tiny).options(tmp_path / "plus", images_from=(pool,)))
    tiny.folder, tiny.split_by = "refcocog", "umd"
    tiny.refs = [{**ref, "split": "val"} for ref in tiny.refs]

    descriptor = build_dataset(tiny.options(tmp_path / "g", images_from=(tmp_path / "plus",))).descriptor

    assert [(used.name, used.path) for used in descriptor.image_pools] == [
        ("refcocoplus-unc", "../plus"),
        ("refcoco-unc", "../refcoco"),
    ]
    assert not list((tmp_path / "g").glob("*.tar"))
    assert verify_dataset(tmp_path / "g") == []


def test_a_pool_that_changed_is_another_input(tiny: Any, pool: Path, tmp_path: Path) -> None:
    build_dataset(_plus(tiny).options(tmp_path / "plus", images_from=(pool,)))
    tar = pool / "val-00000.tar"
    data = bytearray(tar.read_bytes())
    data[700] ^= 1
    tar.write_bytes(data)

    faults = verify_dataset(tmp_path / "plus")

    assert faults
    assert "refcoco-unc/val-00000.tar" in str(faults[0])


def test_a_pool_whose_manifest_was_altered_gives_no_image(tiny: Any, pool: Path, tmp_path: Path) -> None:
    path = pool / "val-00000.parquet"
    table = pq.read_table(path)
    offsets = pa.array([offset + 512 for offset in table.column("image_offset").to_pylist()])
    pq.write_table(table.set_column(table.schema.get_field_index("image_offset"), "image_offset", offsets), path)

    with pytest.raises(DatasetError, match=r"refcoco/val-00000\.parquet: found (sha256|\d+ bytes)"):
        build_dataset(_plus(tiny).options(tmp_path / "plus", images_from=(pool,)))
    assert not (tmp_path / "plus" / "refseg.json").exists()


def test_a_picture_of_another_size_in_the_pool_is_a_fault(tiny: Any, pool: Path, tmp_path: Path) -> None:
    tiny.images[0]["width"] = 24

    with pytest.raises(ImageError, match="image 7: is 20 x 10 pixels in the pool, expected 24 x 10 as annotated"):
        build_dataset(_plus(tiny).options(tmp_path / "plus", images_from=(pool,)))


def test_ids_of_other_pictures_are_no_pool(tiny: Any, pool: Path, tmp_path: Path) -> None:
    tiny.folder = "refclef"

    with pytest.raises(UsageError, match="image ids of refcoco/unc are not those of refclef/unc"):
        build_dataset(tiny.options(tmp_path / "clef", images_from=(pool,)))


def test_another_partition_of_real_annotations_points_into_the_pool(shared_data: Path, tmp_path: Path) -> None:
    given = {"annotations": shared_data / "refer-mini", "workers": 1, "accept_counts": True}
    build_dataset(BuildOptions(dataset="refcoco/unc", out=tmp_path / "refcoco", **given))
    options = BuildOptions(
        dataset="refcocoplus/unc", out=tmp_path / "plus", images_from=(tmp_path / "refcoco",), **given
    )
    build_dataset(options)

    assert not list((tmp_path / "plus").glob("*.tar"))
    assert verify_dataset(tmp_path / "plus") == []
    assert json.loads((tmp_path / "plus/refseg.json").read_text())["image_pools"][0]["dataset"] == "refcoco/unc"
    assert load_descriptor(tmp_path / "plus").counts_accepted
