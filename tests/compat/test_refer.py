"""Habits of REFER that clients lean on, images that become files when asked for, and what is refused."""

import copy
import json
import pickle
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from refseg.compat.image_folder import ImageRecord, path_inside
from refseg.compat.refer import G_REFER, REFER
from refseg.compat.refer_records import refer_categories
from refseg.dataset.schema import DATASETS, find_dataset
from refseg.errors import DatasetError, StorageError, UsageError

from .conftest import SQUARE, WriteSource, annotation, build, ref, write_files


@pytest.fixture(scope="module")
def built_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`source` and `root/anything`: three pictures, refs in train, testA and testB; a crowd; category 3 once."""
    refs = [ref(1, 9, 90, split="train"), ref(2, 8, 80, split="testA"), ref(3, 8, 81, split="testA"), ref(4, 7, 70)]
    refs[1]["category_id"] = 3
    refs[3]["split"] = "testB"
    annotations = [
        annotation(90, 9, [SQUARE]), annotation(80, 8, [SQUARE], category_id=3),
        annotation(81, 8, {"size": [10, 20], "counts": [30, 40, 130]}, iscrowd=1), annotation(70, 7, [SQUARE]),
    ]  # fmt: skip
    folder = tmp_path_factory.mktemp("once")
    write_files(folder / "source", "refcoco", "refs(unc).json", refs, annotations, "COCO_train2014_{:012d}.jpg")
    build("refcoco/unc", folder / "source", folder / "root" / "anything")
    return folder


@pytest.fixture
def built(built_once: Path, tmp_path: Path) -> Path:
    """The test's own copy of a root that holds a built `refcoco/unc`; its source lies beside it."""
    shutil.copytree(built_once, tmp_path, dirs_exist_ok=True)
    return tmp_path / "root"


@pytest.fixture
def refer(built: Path) -> REFER:
    return REFER(str(built), "refcoco", "unc")


def files(folder: str | Path) -> list[str]:
    return sorted(path.name for path in Path(folder).glob("*"))


def test_splits_are_filtered_as_in_refer(refer: REFER) -> None:
    assert refer.getRefIds() == [1, 2, 3, 4]
    assert refer.getRefIds(split="train") == [1]
    assert refer.getRefIds(split="testA") == [2, 3]
    assert refer.getRefIds(split="test") == [2, 3, 4]
    assert refer.getRefIds(split="val") == refer.getRefIds(split="testC") == refer.getRefIds(split="testAB") == []
    with pytest.raises(SystemExit, match=r"No such split \[minival\]"):
        refer.getRefIds(split="minival")


def test_ids_filter_one_by_one_and_together(refer: REFER) -> None:
    assert refer.getRefIds(image_ids=8) == refer.getRefIds(image_ids=[8], ref_ids=[4, 3, 2]) == [2, 3]
    assert refer.getRefIds(cat_ids=[3]) == refer.getRefIds(image_ids=[9, 8], cat_ids=3, split="test") == [2]
    assert refer.getAnnIds() == [70, 80, 81, 90]
    assert refer.getAnnIds(image_ids=[8]) == [80, 81]
    assert refer.getAnnIds(cat_ids=3) == refer.getAnnIds(ref_ids=[2, 4], cat_ids=[3]) == [80]
    assert sorted(refer.getImgIds()) == [7, 8, 9]
    assert refer.getImgIds(4) == refer.getImgIds([4]) == refer.getImgIds(ref_ids=(4,)) == [7]


def test_only_pythons_own_integers_are_ids(refer: REFER) -> None:
    assert refer.loadRefs(4) == refer.loadRefs([4]) == refer.loadRefs(ref_ids=(4,)) == [refer.Refs[4]]
    assert refer.loadRefs(np.int64(4)) is None  # type(x) == int, says refer.py
    assert refer.loadAnns(np.int64(70)) is refer.loadImgs("7") is refer.loadCats(None) is None
    assert refer.loadCats([3, 1]) == ["car", "person"]
    values = [*refer.Refs, *refer.Anns, *refer.Imgs, *refer.Cats, *refer.Sents, *refer.Refs[4]["sent_ids"]]
    values += [refer.Refs[4][name] for name in ("ref_id", "ann_id", "image_id", "category_id")]
    assert {type(value) for value in values} == {int}


def test_lookups_that_nobody_uses_are_there(refer: REFER) -> None:
    assert [found["ref_id"] for found in refer.imgToRefs[8]] == [2, 3]
    assert [found["id"] for found in refer.imgToAnns[8]] == [80, 81]
    assert [found["ref_id"] for found in refer.catToRefs[1]] == [1, 3, 4]
    assert refer.refToAnn[4]["id"] == 70
    assert refer.annToRef[70]["ref_id"] == refer.sentToRef[40]["ref_id"] == 4
    assert refer.sentToTokens[41] == ["the", "other"]
    assert refer.data["dataset"] == "refcoco"
    assert [image["id"] for image in refer.data["images"]] == [7, 8, 9]


def test_a_crowd_is_drawn_where_refer_fails(refer: REFER) -> None:
    # 40 pixels from the 31st on, down columns of 10: columns 3 to 6.
    mask = refer.getMask(refer.Refs[3])["mask"]

    assert np.flatnonzero(mask.any(axis=0)).tolist() == [3, 4, 5, 6]
    assert mask.sum() == 40
    assert refer.getPolygon(refer.Refs[3])["polygon"] == [{"size": [10, 20], "counts": [30, 40, 130]}]


def test_categories_are_cocos_80_only_where_names_are_cocos(refer: REFER) -> None:
    of_others = refer_categories({3: "cat", 1: "person"}, find_dataset("refcoco/unc"))

    assert len(refer.getCatIds()) == 80
    assert refer.loadCats(refer.getCatIds())[:3] == ["person", "bicycle", "car"]
    assert of_others == [{"id": 1, "name": "person"}, {"id": 3, "name": "cat"}]


@pytest.mark.parametrize("take", [
    lambda record: record["file_name"], lambda record: record.get("file_name"), dict, lambda record: {**record},
    lambda record: record.copy(), copy.deepcopy, lambda record: list(record.items()),
    lambda record: list(record.values()), json.dumps,
])  # fmt: skip
def test_a_file_is_there_however_its_name_is_read(take: Any, refer: REFER) -> None:
    record = refer.loadImgs(7)[0]
    assert (record["height"], record.get("width"), record.get("nothing", 5), "file_name" in record) == (10, 20, 5, True)
    assert files(refer.IMAGE_DIR) == []

    take(record)

    assert files(refer.IMAGE_DIR) == ["COCO_train2014_000000000007.jpg"]


def test_files_hold_the_jpegs_own_bytes_and_are_written_once(refer: REFER, tmp_path: Path) -> None:
    path = Path(refer.IMAGE_DIR, refer.Imgs[8]["file_name"])
    written = path.stat().st_mtime_ns
    source = tmp_path / "source/images/mscoco/images/train2014" / path.name

    assert path.read_bytes() == source.read_bytes()
    assert REFER(refer.ROOT_DIR).Imgs[8]["file_name"] == path.name
    assert path.stat().st_mtime_ns == written


def test_a_folder_of_images_below_the_root_is_used_and_filled(built: Path) -> None:
    folder = built / "images/mscoco/images/train2014"
    folder.mkdir(parents=True)
    refer = REFER(built)
    name = refer.Imgs[7]["file_name"]

    assert str(folder) == refer.IMAGE_DIR
    assert files(folder) == [name]


def same_length(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[300] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    "damage", [same_length, lambda path: path.write_bytes(b"short"), lambda path: path.write_bytes(b"")]
)
def test_a_damaged_file_of_the_cache_is_written_anew(
    damage: Callable[[Path], None], refer: REFER, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = Path(refer.IMAGE_DIR, refer.Imgs[7]["file_name"])
    whole = path.read_bytes()
    damage(path)

    again = REFER(refer.ROOT_DIR)

    assert Path(again.IMAGE_DIR, again.Imgs[7]["file_name"]).read_bytes() == whole
    assert "bytes that are not the image; it is written again" in caplog.text
    assert files(refer.IMAGE_DIR) == [path.name]


@pytest.mark.parametrize("damage", [same_length, lambda path: path.write_bytes(b"short")])
def test_a_file_of_the_users_own_is_never_written_over(damage: Callable[[Path], None], built: Path) -> None:
    (built / "train2014").mkdir()
    path = built / "train2014" / str(REFER(built).Imgs[7]["file_name"])
    damage(path)
    left = path.read_bytes()

    with pytest.raises(
        DatasetError, match=rf"000000000007\.jpg: found {len(left)} bytes, expected the \d+ bytes in the shards"
    ):
        REFER(built).Imgs[7]["file_name"]
    assert path.read_bytes() == left


def test_workers_ask_for_one_image_at_once(refer: REFER) -> None:
    copies = [pickle.loads(pickle.dumps(refer)) for _ in range(8)]
    assert files(refer.IMAGE_DIR) == []  # a worker's copy needs no file to be made
    assert type(copies[0].Imgs[9]) is ImageRecord

    def read(copy: REFER) -> tuple[int, int]:
        with Image.open(Path(copy.IMAGE_DIR, copy.Imgs[9]["file_name"])) as picture:
            picture.load()
            return picture.size

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(read, copies)) == {(20, 10)}
    assert files(refer.IMAGE_DIR) == ["COCO_train2014_000000000009.jpg"]


def test_a_file_has_its_name_only_when_it_is_whole(refer: REFER, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(source: Path, target: Path) -> None:
        assert source.stat().st_size > 500
        raise OSError(28, "No space left on device", str(target))

    monkeypatch.setattr(Path, "replace", fail)
    expected = f"{refer.IMAGE_DIR}: pictures cannot be written there (No space left on device); set REFSEG_CACHE"
    with pytest.raises(StorageError, match=re.escape(expected)):
        refer.Imgs[7]["file_name"]
    assert files(refer.IMAGE_DIR) == []


def test_a_damaged_tar_gives_no_file(built: Path) -> None:
    row = pq.read_table(built / "anything" / "testB-00000.parquet").to_pylist()[0]
    with (built / "anything" / row["shard"]).open("r+b") as file:
        file.seek(row["image_offset"] + 100)
        file.write(b"damaged")
    refer = REFER(built)

    with pytest.raises(DatasetError, match="the shard is damaged"):
        refer.Imgs[7]["file_name"]
    assert files(refer.IMAGE_DIR) == []


@pytest.mark.parametrize("name", ["../a.jpg", "/etc/a.jpg", "a/../../b.jpg", "", "a\\..\\b.jpg"])
def test_names_that_lead_out_of_the_folder_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="expected a path below the folder of images"):
        path_inside(tmp_path, name)


def test_folders_within_a_name_are_kept(tmp_path: Path) -> None:
    assert path_inside(tmp_path, "a/b.jpg") == tmp_path / "a" / "b.jpg"


def test_a_dataset_at_a_url_is_read_through_the_cache(built: Path) -> None:
    refer = REFER(built.as_uri(), dataset="refcoco", splitBy="unc")

    with Image.open(Path(refer.IMAGE_DIR, refer.Imgs[9]["file_name"])) as picture:
        assert picture.size == (20, 10)
    assert refer.getRefIds() == [1, 2, 3, 4]


def test_the_dataset_is_found_by_the_id_in_its_descriptor(built: Path, tmp_path: Path) -> None:
    assert REFER("nowhere", ref_root=built).getRefIds() == REFER(built / "anything").getRefIds() == [1, 2, 3, 4]
    with pytest.raises(UsageError, match=r"found only refcoco/unc, expected refcocoplus/unc there or one folder below"):
        REFER(built, "refcoco+", "unc")
    with pytest.raises(UsageError, match=r"found refcoco/unc, expected refcoco/google"):
        REFER(built / "anything", "refcoco", "google")
    with pytest.raises(UsageError, match=r"found no built dataset, expected refcoco/unc"):
        REFER(tmp_path / "empty")
    with pytest.raises(UsageError, match=r"expected one of refcocog/umd, refcocog/google"):
        REFER(built, "refcocog", "unc")
    with pytest.raises(UsageError, match=r"expected grefcoco/unc there"):
        G_REFER(built)
    build("refcoco/unc", tmp_path / "source", built / "again")
    with pytest.raises(UsageError, match=r"again and .*anything hold|anything and .*again hold"):
        REFER(built)


def test_carises_mix_and_small_pictures_are_refused(built: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"mix=True.*ids of different datasets collide"):
        REFER(built, ref_root=None, dataset="refcoco", splitBy="unc", mix=True)
    build("refcoco/unc", tmp_path / "source", tmp_path / "small", store="letterbox:8")
    with pytest.raises(UsageError, match="pictures were reduced to fit 8 x 8 pixels"):
        REFER(tmp_path / "small")


def test_every_dataset_of_refers_layout_is_known_by_its_folders_name(built: Path) -> None:
    for spec in DATASETS.values():
        if spec.dataset_id != "refcoco/unc":
            with pytest.raises(UsageError, match=f"expected {spec.dataset_id} there"):
                REFER(built, spec.folder, spec.split_by)


def test_grefer_habits(write_source: WriteSource, tmp_path: Path) -> None:
    refs = [
        ref(4, 9, [90], category_id=[1]), ref(5, 9, [-1], category_id=[-1], split="testA"),
        ref(0, 7, [70, 71], category_id=[1, 3]),
    ]  # fmt: skip
    annotations = [
        annotation(90, 9, [SQUARE]), annotation(70, 7, [SQUARE]),
        annotation(71, 7, {"size": [10, 20], "counts": [30, 40, 130]}, category_id=3, iscrowd=1),
    ]  # fmt: skip
    refer = G_REFER(
        build("grefcoco/unc", write_source("grefcoco", "grefs(unc).json", refs, annotations), tmp_path / "b")
    )

    assert refer.loadAnns([-1]) == refer.refToAnn[5] == [None]
    assert refer.getRefIds(split=["val", "testA"]) == [4, 5, 0]
    assert refer.getRefIds(cat_ids=3) == refer.getRefIds(image_ids=[7], split="val") == [0]
    with pytest.raises(ValueError, match="Invalid split name: test"):
        refer.getRefIds(split="test")
    assert (refer.getAnnIds(), refer.getAnnIds(ref_ids=[0]), refer.getAnnIds(ref_ids=5)) == (
        [70, 71, 90],
        [70, 71],
        [-1],
    )
    assert refer.getRefBox(5) == []
    assert refer.getRefBox(0) == [[2.0, 1.0, 4.25, 4.0]] * 2
    assert refer.annToRef[-1][0]["ref_id"] == 5
    assert refer.loadCats(refer.loadRefs(0)[0]["category_id"]) == ["person", "car"]
    assert refer.getMask(None) is None
    with pytest.raises(ValueError, match="Crowd object"):
        refer.getMask(refer.Anns[71])
    with pytest.raises(ValueError, match="neither ref nor ref_id"):
        refer.getMaskByRef()
    assert refer.getMaskByRef(ref_id=5)["empty"] is True  # `[]` in grefer.py
    assert [found["area"] for found in refer.getMaskByRef(ref_id=0)] == [16]  # without the crowd
    assert [found["area"] for found in refer.getMaskByRef(ref_id=4)] == [16]


def test_torch_is_not_needed() -> None:
    program = "import sys, refseg.compat.refer; print('torch' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout == "False\n"
