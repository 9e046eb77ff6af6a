"""Real annotations as a user's table: the masks are pycocotools' own."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco_mask

from pipelines.masks import read_segmentation, target_mask
from pipelines.published import published_counts
from pipelines.sources import read_source
from pipelines.sources.raw import RawSource
from refseg.dataset.descriptor import SplitCounts
from refseg.dataset.schema import Annotation, Rle, find_dataset

MINE = find_dataset("custom/mine")


def draw(annotation: dict[str, Any], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Return the mask of an annotation as pycocotools draws it."""
    shapes = coco_mask.frPyObjects(annotation["segmentation"], *size)
    return coco_mask.decode(coco_mask.merge(shapes) if isinstance(shapes, list) else shapes)


def pixels(rle: Rle) -> NDArray[np.uint8]:
    runs = np.repeat(np.arange(len(rle.counts)) % 2, rle.counts)
    return runs.reshape(rle.size[::-1]).T.astype(np.uint8)


def masks_by_sentence(raw: RawSource) -> dict[str, NDArray[np.uint8]]:
    """The union of each ref's targets, by its first sentence."""
    tables: dict[str, dict[int, dict[str, Any]]] = {}
    for section, record in raw.tables:
        tables.setdefault(section, {})[record["id"]] = record
    masks = {}
    for ref in raw.refs:
        image = tables["images"][ref["image_id"]]
        size = image["height"], image["width"]
        ann_ids = ref["ann_id"] if isinstance(ref["ann_id"], list) else [ref["ann_id"]]
        annotations = []
        for ann_id in ann_ids if ann_ids != [-1] else []:
            record = tables["annotations"][ann_id]
            assert record["image_id"] == ref["image_id"]
            found = record.get("segmentation")
            polygons, rles = ((), ()) if found is None else read_segmentation(found, size)
            facts = {"ann_id": ann_id, "category_id": 0, "iscrowd": False, "area": 0.0}
            box = tuple(map(float, record["bbox"]))
            annotations.append(Annotation(**facts, box_xywh=box, polygons=polygons, rles=rles))  # type: ignore[arg-type]
        masks[ref["sentences"][0]["sent"]] = pixels(target_mask(annotations, size, "union"))
    return masks


@pytest.mark.slow
@pytest.mark.parametrize("column", ["ann_id", "rle", "runs", "mask"])
def test_every_coco_annotation_is_the_same_mask_in_every_column(column: str, shared_data: Path, tmp_path: Path) -> None:
    instances = json.loads((shared_data / "coco-real-64" / "instances.json").read_text())
    images = {image["id"]: image for image in instances["images"]}
    names = {category["id"]: category["name"] for category in instances["categories"]}
    rows, drawn = [], {}
    for annotation in instances["annotations"][:: 1 if column == "ann_id" else 4]:
        image = images[annotation["image_id"]]
        sentence = f"annotation {annotation['id']}"
        drawn[sentence] = draw(annotation, (image["height"], image["width"]))
        packed = coco_mask.encode(np.asfortranarray(drawn[sentence]))
        if column == "mask":
            path = tmp_path / f"{annotation['id']}.png"
            Image.fromarray(drawn[sentence] * 255).save(path, compress_level=1)
        runs = np.flatnonzero(np.diff(drawn[sentence].T.ravel(), prepend=0, append=2)).tolist()
        target = {
            "ann_id": {"ann_id": annotation["id"]},
            "rle": {"rle": {"size": packed["size"], "counts": packed["counts"].decode()}},
            "runs": {"rle": {"size": packed["size"], "counts": np.diff(runs, prepend=0).tolist()}},
            "mask": {"mask": f"{annotation['id']}.png"},
        }[column]
        category = {} if column == "ann_id" else {"category": names[annotation["category_id"]]}
        rows.append({"image": image["file_name"], "sentence": sentence, "split": "train", **target, **category})
    (tmp_path / "sentences.jsonl").write_text("\n".join(map(json.dumps, rows)))
    if column == "ann_id":
        (tmp_path / "instances.json").write_text(json.dumps(instances))

    masks = masks_by_sentence(read_source(MINE, tmp_path))

    assert masks.keys() == drawn.keys()
    for sentence, mask in drawn.items():
        assert (masks[sentence] == mask).all(), sentence


def test_boxes_and_empty_cases_of_refcocos(shared_data: Path, tmp_path: Path) -> None:
    folder = shared_data / "refcocos-mini"
    rows, boxes = [], {}
    for number, record in enumerate(json.loads((folder / "refcocos.json").read_text())):
        name = Path(record["image"]).name
        with Image.open(folder / "images" / record["image"]) as picture:
            width, height = picture.size
        box = record["solution"]
        sentence = f"case {number}"
        boxes[sentence] = (box, height, width)
        target = {"no_target": True} if box is None else {"box": [box[0], box[1], box[2] - box[0], box[3] - box[1]]}
        rows.append({"image": name, "sentence": sentence, "split": "test", "height": height, "width": width, **target})
    (tmp_path / "sentences.jsonl").write_text("\n".join(map(json.dumps, rows)))

    raw = read_source(MINE, tmp_path)
    masks = masks_by_sentence(raw)

    assert sum(ref["ann_id"] == -1 for ref in raw.refs) == 1
    # Two sentences of image 183709 name one box: one ref of two sentences.
    assert len(masks) == len(boxes) - 1 == sum(1 for _ in raw.refs)
    for sentence, mask in masks.items():
        box, height, width = boxes[sentence]
        if box is None:
            assert not mask.any()
            continue
        left, top, right, bottom = box
        corners = [[left, top, left, bottom, right, bottom, right, top]]
        expected = coco_mask.decode(coco_mask.frPyObjects(corners, height, width))[..., 0]
        assert (mask == expected).all()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "dataset_id", "split"),
    [
        ("refcoco_val", "refcoco/unc", "val"),
        ("refcoco+_testA", "refcocoplus/unc", "testA"),
        ("refcocog_test", "refcocog/umd", "test"),
    ],
)
def test_published_sentences_pass_through_a_csv_without_loss(
    name: str, dataset_id: str, split: str, shared_data: Path, tmp_path: Path
) -> None:
    items = json.loads((shared_data / "refcoco-eval-json" / f"{name}.json").read_text())
    objects: dict[str, int] = {}  # `img_id` is of an object: COCO's image and a suffix
    with (tmp_path / "sentences.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "sentence", "split", "box", "height", "width", "ref_id"])
        for item in items:
            ref_id = objects.setdefault(item["img_id"], len(objects))
            box = " ".join(map(repr, item["bbox"]))
            image_id = item["img_id"].split("_")[2]
            writer.writerow([image_id, item["sents"], split, box, item["height"], item["width"], ref_id])

    raw = read_source(MINE, tmp_path)

    images = {record["id"] for section, record in raw.tables if section == "images"}
    boxes = {record["id"]: record["bbox"] for section, record in raw.tables if section == "annotations"}
    refs = list(raw.refs)
    counts = SplitCounts(images=len(images), refs=len(refs), sentences=sum(len(ref["sentences"]) for ref in refs))
    assert counts == published_counts(dataset_id)[split]
    read = {sent["sent_id"]: (sent["sent"], boxes[ref["ann_id"]]) for ref in refs for sent in ref["sentences"]}
    assert [read[number] for number in range(len(items))] == [(item["sents"], item["bbox"]) for item in items]
