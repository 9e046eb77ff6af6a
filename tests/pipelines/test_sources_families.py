"""Every family from its files to manifest rows: many objects, none, crowds, run lengths, boxes, altered sentences."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from pipelines.build import BuildOptions, build_dataset
from refseg.errors import UsageError

SIZE = {"height": 10, "width": 20}


def square(ann_id: int, image_id: int, left: int) -> dict[str, Any]:
    shape = [[left, 2, left + 4, 2, left + 4, 6, left, 6]]
    facts = {"category_id": 1, "iscrowd": 0, "area": 16, "bbox": [left, 2, 4, 4]}
    return {"id": ann_id, "image_id": image_id, "segmentation": shape, **facts}


def ref(ref_id: int, image_id: int, ann_id: Any, split: str = "val", **more: Any) -> dict[str, Any]:
    sentence = {
        "sent_id": ref_id,
        "sent": f"words {ref_id}",
        "raw": f"Words {ref_id}",
        "tokens": ["words", str(ref_id)],
    }
    return {
        "ref_id": ref_id,
        "image_id": image_id,
        "ann_id": ann_id,
        "split": split,
        "sentences": [sentence],
        **more,
    }


def draw(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(int(path.stem.split("_")[-1])).integers(0, 256, (10, 20, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path, quality=90)


def build(root: Path, dataset: str, **options: Any) -> list[dict[str, Any]]:
    """Build a dataset; the rows of all its manifests, by ref id."""
    out = root / "out"
    build_dataset(BuildOptions(dataset=dataset, annotations=root, out=out, workers=1, **options))
    rows = [row for path in sorted(out.glob("*.parquet")) for row in pq.read_table(path).to_pylist()]
    return sorted((row for row in rows if "ref_id" in row and "mask" in row), key=lambda row: row["ref_id"])


def write(root: Path, folder: str, refs_name: str, refs: list[Any], instances: dict[str, Any]) -> None:
    (root / folder).mkdir(parents=True)
    (root / folder / refs_name).write_text(json.dumps(refs))
    (root / folder / "instances.json").write_text(json.dumps(instances))


def instances_of(image_names: dict[int, str], annotations: list[dict[str, Any]]) -> dict[str, Any]:
    images = [{"id": image_id, "file_name": name, **SIZE} for image_id, name in image_names.items()]
    return {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "person"}]}


def test_grefcoco_has_many_objects_none_and_crowds(tmp_path: Path) -> None:
    crowd = {**square(901, 7, 0), "iscrowd": 1, "segmentation": {"size": [10, 20], "counts": [190, 10]}}
    crowd["bbox"] = [19, 0, 1, 10]
    name = "COCO_train2014_000000000007.jpg"
    refs = [
        ref(1, 7, [70, 71], category_id=[1, 1]), ref(2, 7, [-1], category_id=[-1], no_target=True),
        ref(3, 7, [70, 901], category_id=[1, 1]), ref(4, 7, [70], category_id=[1]),
    ]  # fmt: skip
    write(
        tmp_path, "grefcoco", "grefs(unc).json", refs,
        instances_of({7: name}, [square(70, 7, 1), square(71, 7, 3), crowd]),
    )  # fmt: skip
    draw(tmp_path / "images" / "train2014" / name)

    many, none, crowded, one = build(tmp_path, "grefcoco/unc")

    assert [a["ann_id"] for a in many["annotations"]] == [70, 71]
    assert (many["area"], many["box_xywh"]) == (6 * 4, [1, 2, 6, 4])  # two squares that share two columns
    assert (none["no_target"], none["area"], none["sentences"][0]["exists"]) == (True, 0, False)
    assert (crowded["area"], crowded["annotations"][1]["iscrowd"]) == (16 + 10, True)
    assert (one["area"], one["no_target"]) == (16, False)


def test_refclef_has_run_lengths_by_part_and_images_of_its_own(tmp_path: Path) -> None:
    drawn = np.zeros((10, 20), np.uint8, order="F")
    drawn[1:3, 4:9] = 1
    packed = coco_mask.encode(drawn)
    compressed = {"size": packed["size"], "counts": packed["counts"].decode()}
    runs = {"size": [10, 20], "counts": [195, 5]}
    annotation = {**square(5, 112, 0), "segmentation": [compressed, runs], "bbox": [4, 1, 16, 9]}
    write(
        tmp_path, "refclef", "refs(unc).json", [ref(1, 112, 5, "testC")], instances_of({112: "112.jpg"}, [annotation])
    )  # fmt: skip
    draw(tmp_path / "images" / "saiapr_tc-12" / "112.jpg")

    (row,) = build(tmp_path, "refclef/unc")

    assert (row["split"], row["area"], row["box_only"]) == ("testC", 10 + 5, False)
    assert len(row["annotations"][0]["segmentation"]["rles"]) == 2


def test_the_berkeley_boxes_are_marked(tmp_path: Path) -> None:
    files = {
        "referit_query_train.json": {"112_3": ["the sand"]},
        "referit_bbox.json": {"112_3": [10, 5, 12, 9]},
        "referit_imsize.json": {"112.jpg": [20, 10]},
    }
    (tmp_path / "refclef").mkdir()
    for name, content in files.items():
        (tmp_path / "refclef" / name).write_text(json.dumps(content))
    draw(tmp_path / "images" / "saiapr_tc-12" / "112.jpg")

    (row,) = build(tmp_path, "refclef/berkeley")

    assert (row["box_only"], row["area"], row["box_xywh"], row["category"]) == (True, 3 * 5, [10, 5, 3, 5], "")


def test_ref_zom_says_by_source_how_many_objects_it_names(tmp_path: Path) -> None:
    names = {7: "COCO_train2014_000000000007.jpg", 8: "COCO_val2014_000000000008.jpg"}
    refs = [
        ref(1, 7, [70], "train", source="zero"), ref(2, 7, 70, "train", source="one"),
        ref(3, 8, [80, 81], "test", source="many"), ref(4, 8, [], "test", source="zero"),
    ]  # fmt: skip
    annotations = [square(70, 7, 1), square(80, 8, 1), square(81, 8, 9)]
    write(tmp_path, "ref-zom", "refs(final).json", refs, instances_of(names, annotations))
    draw(tmp_path / "train2014" / names[7])
    draw(tmp_path / "val2014" / names[8])

    rows = build(tmp_path, "refzom/final")

    assert [(row["no_target"], row["area"]) for row in rows] == [(True, 0), (False, 16), (False, 32), (True, 0)]


def test_r_refcoco_keeps_which_sentences_name_nothing(tmp_path: Path) -> None:
    name = "COCO_train2014_000000000007.jpg"
    altered = ref(1, 7, 70)
    altered["sentences"] = [
        {"sent_id": 1, "sent": "left one", "exist": True}, {"sent_id": 2, "sent": "left bull", "exist": False},
    ]  # fmt: skip
    write(tmp_path, "rrefcoco+", "refs(unc).json", [altered], instances_of({7: name}, [square(70, 7, 1)]))
    draw(tmp_path / "images" / "mscoco" / "images" / "train2014" / name)

    (row,) = build(tmp_path, "rrefcoco+/unc")

    assert [sentence["exists"] for sentence in row["sentences"]] == [True, False]
    assert (row["no_target"], row["area"], row["dataset"]) == (False, 16, "rrefcocoplus")


@pytest.mark.parametrize("form", ["folder", "table"])
def test_a_table_of_ones_own_becomes_rows(form: str, tmp_path: Path) -> None:
    source = tmp_path / "mine"
    Image.new("L", (20, 10), 1).save((source.mkdir() or source) / "whole.png")
    rows = [
        {"image": "1.jpg", "sentence": "all of it", "split": "val", "mask": "whole.png", "category": "wall"},
        {"image": "1.jpg", "sentence": "a part", "split": "val", "box": [1, 2, 3, 4]},
        {"image": "2.jpg", "sentence": "nothing", "split": "extra", "no_target": True, **SIZE},
    ]
    (source / "sentences.jsonl").write_text("\n".join(map(json.dumps, rows)))
    for name in ("1.jpg", "2.jpg"):
        draw(source / "images" / name)
    if form == "table":
        shutil.move(source / "sentences.jsonl", source / "others.jsonl")
    annotations = source if form == "folder" else source / "others.jsonl"

    build_dataset(BuildOptions(dataset="custom/mine", annotations=annotations, out=tmp_path / "out", workers=1))

    found = [row for path in sorted((tmp_path / "out").glob("*.parquet")) for row in pq.read_table(path).to_pylist()]
    assert [(row["split"], row["category"], row["area"], row["box_only"], row["no_target"]) for row in found] == [
        ("extra", "", 0, False, True), ("val", "wall", 200, False, False), ("val", "", 12, True, False)
    ]  # fmt: skip


def test_faults_inside_a_target_are_rejects_and_nothing_is_lost(tmp_path: Path) -> None:
    source = tmp_path / "mine"
    draw(source / "images" / "1.jpg")
    Image.new("L", (20, 10)).save(source / "nothing.png")
    (source / "instances.json").write_text(json.dumps(instances_of({1: "1.jpg"}, [square(5, 1, 2)])))
    bare = {"image": "1.jpg", "split": "val"}
    rows = [
        {**bare, "sentence": "good", "ann_id": 5},
        {**bare, "sentence": "too short", "rle": {"size": [10, 20], "counts": [1, 2]}},
        {**bare, "sentence": "damaged", "rle": {"size": [10, 20], "counts": "~~~"}},
        {**bare, "sentence": "no pixel", "mask": "nothing.png"},
        {**bare, "sentence": "far outside", "box": [500, 500, 3, 3]},
        {**bare, "sentence": "not listed", "ann_id": 6},
        {**bare, "sentence": "no picture", "image": "2.jpg", "box": [1, 2, 3, 4], **SIZE},
    ]
    (source / "sentences.jsonl").write_text("\n".join(map(json.dumps, rows)))

    built = build(source, "custom/mine", on_bad_sample="skip")

    rejects = pq.read_table(source / "out" / "rejects.parquet").to_pylist()
    assert [row["sentences"][0]["sent"] for row in built] == ["good"]
    assert {reject["ref_id"]: reject["reason"] for reject in rejects} == {
        1: "bad_segmentation", 2: "bad_segmentation", 3: "empty_mask", 4: "box_outside",
        5: "unknown_annotation", 6: "missing_image",
    }  # fmt: skip


def test_tables_of_ones_own_do_not_share_images_by_id(tmp_path: Path) -> None:
    # Image 1 is the first of its table: another picture in each.
    for name in ("one", "two"):
        draw(tmp_path / name / "images" / f"{name}_1.jpg")
        row = {"image": f"{name}_1.jpg", "sentence": "x", "split": "val", "box": [1, 2, 3, 4], **SIZE}
        (tmp_path / name / "sentences.jsonl").write_text(json.dumps(row))
    build(tmp_path / "one", "custom/one")

    with pytest.raises(UsageError, match="custom/two and custom/one cannot share images; remove the option"):
        build(tmp_path / "two", "custom/two", images_from=(tmp_path / "one" / "out",))
