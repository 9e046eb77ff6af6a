"""MDETR's conversion of the refer family: one image record per sentence."""

import json
from pathlib import Path
from typing import Any

import pytest

from pipelines.sources import read_source
from refseg.dataset.schema import find_dataset
from refseg.errors import AnnotationError

GREF = find_dataset("grefcoco/unc")


def sentence(key: int, image_id: int, caption: str) -> dict[str, Any]:
    facts = {"file_name": f"COCO_train2014_{image_id:012d}.jpg", "height": 10, "width": 20}
    return {**facts, "id": key, "original_id": image_id, "caption": caption, "dataset_name": "grefcoco"}


def target(key: int, sentence_id: int, ann_id: int) -> dict[str, Any]:
    """As gRefCOCO's script writes it; -1: no target."""
    if ann_id == -1:
        facts = {"area": -1, "iscrowd": -1, "category_id": -1, "bbox": [0, 0, 0, 0], "empty": True}
    else:
        facts = {"area": 9, "iscrowd": 0, "category_id": 1, "bbox": [1, 2, 3, 3], "empty": False}
    return {**facts, "id": key, "image_id": sentence_id, "original_id": ann_id}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    train = {
        "images": [sentence(0, 7, "two"), sentence(1, 7, "both"), sentence(2, 7, "one"), sentence(3, 8, "none")],
        "annotations": [
            target(0, 0, 70), target(1, 0, 71), target(2, 1, 70), target(3, 1, 71), target(4, 2, 70), target(5, 3, -1)
        ],
        "categories": [{"id": 1, "name": "person"}],
    }  # fmt: skip
    val = {"images": [sentence(4, 9, "last")], "annotations": [target(6, 4, 90)], "categories": train["categories"]}
    for split, content in (("train", train), ("val", val)):
        (tmp_path / f"finetune_grefcoco_{split}.json").write_text(json.dumps(content))
    return tmp_path


def test_neighbouring_sentences_of_one_target_are_one_ref(folder: Path) -> None:
    raw = read_source(GREF, folder)

    assert [(ref["ref_id"], ref["image_id"], ref["ann_id"], ref["split"]) for ref in raw.refs] == [
        (0, 7, [70, 71], "train"), (2, 7, [70], "train"), (3, 8, [-1], "train"), (4, 9, [90], "val")
    ]  # fmt: skip
    assert next(iter(raw.refs))["sentences"] == [{"sent_id": 0, "sent": "two"}, {"sent_id": 1, "sent": "both"}]


def test_without_coco_the_targets_are_boxes(folder: Path) -> None:
    raw = read_source(GREF, folder)

    assert raw.box_targets
    assert [(section, record["id"]) for section, record in raw.tables] == [
        ("categories", 1), ("images", 7), ("images", 8), ("annotations", 70), ("annotations", 71),
        ("images", 9), ("annotations", 90),
    ]  # fmt: skip
    assert {r["id"]: (r["image_id"], r["bbox"]) for s, r in raw.tables if s == "annotations"} == {
        70: (7, [1, 2, 3, 3]), 71: (7, [1, 2, 3, 3]), 90: (9, [1, 2, 3, 3])
    }  # fmt: skip


def test_with_coco_the_targets_are_its_annotations(folder: Path) -> None:
    (folder / "instances_train2014.json").write_text(json.dumps({"annotations": [{"id": 70, "segmentation": []}]}))

    raw = read_source(GREF, folder)

    assert not raw.box_targets
    assert list(raw.tables) == [("annotations", {"id": 70, "segmentation": []})]
    assert [source.name for source in raw.sources][-1] == "grefcoco/instances_train2014.json"


def test_refers_own_files_are_preferred(folder: Path) -> None:
    (folder / "grefs(unc).json").write_text("damaged")
    (folder / "instances.json").write_text("{}")

    with pytest.raises(AnnotationError, match=r"grefs\(unc\).json"):
        list(read_source(GREF, folder).refs)


def test_a_damaged_file_is_named(folder: Path) -> None:
    (folder / "finetune_grefcoco_val.json").write_text('{"images": [{"id": ')

    with pytest.raises(AnnotationError, match=r"finetune_grefcoco_val.json: cannot be read as JSON"):
        list(read_source(GREF, folder).refs)
