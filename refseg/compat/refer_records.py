"""Turns manifest rows into REFER's records: refs, images, annotations and categories.

Values that a manifest does not contain are left out; `differences` lists them.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from refseg.dataset.schema import DatasetSpec

Row = Mapping[str, Any]
Record = dict[str, Any]

NO_TARGET = -1
"""Annotation and category id of a ref without a target, as in gRefCOCO."""
COLUMNS = (
    *("split", "ref_id", "image_id", "file_name", "height", "width", "category", "no_target"),
    *(f"sentences.list.element.{name}" for name in ("sent_id", "raw", "sent", "words.list.element", "exists")),
    "annotations",
)
"""Columns of the manifest from which records are made; the name of a nested column includes all its parts."""


_BY_GROUP = {
    "person": "1 person",
    "vehicle": "2 bicycle, 3 car, 4 motorcycle, 5 airplane, 6 bus, 7 train, 8 truck, 9 boat",
    "outdoor": "10 traffic light, 11 fire hydrant, 13 stop sign, 14 parking meter, 15 bench",
    "animal": "16 bird, 17 cat, 18 dog, 19 horse, 20 sheep, 21 cow, 22 elephant, 23 bear, 24 zebra, 25 giraffe",
    "accessory": "27 backpack, 28 umbrella, 31 handbag, 32 tie, 33 suitcase",
    "sports": "34 frisbee, 35 skis, 36 snowboard, 37 sports ball, 38 kite, 39 baseball bat, 40 baseball glove, "
    "41 skateboard, 42 surfboard, 43 tennis racket",
    "kitchen": "44 bottle, 46 wine glass, 47 cup, 48 fork, 49 knife, 50 spoon, 51 bowl",
    "food": "52 banana, 53 apple, 54 sandwich, 55 orange, 56 broccoli, 57 carrot, 58 hot dog, 59 pizza, 60 donut, "
    "61 cake",
    "furniture": "62 chair, 63 couch, 64 potted plant, 65 bed, 67 dining table, 70 toilet",
    "electronic": "72 tv, 73 laptop, 74 mouse, 75 remote, 76 keyboard, 77 cell phone",
    "appliance": "78 microwave, 79 oven, 80 toaster, 81 sink, 82 refrigerator",
    "indoor": "84 book, 85 clock, 86 vase, 87 scissors, 88 teddy bear, 89 hair drier, 90 toothbrush",
}

COCO_CATEGORIES: tuple[tuple[int, str, str], ...] = tuple(
    (int(number), name, group)
    for group, listed in _BY_GROUP.items()
    for number, _, name in (entry.partition(" ") for entry in listed.split(", "))
)
"""COCO's 80 categories in the order of its files: id (1 to 90, with gaps), name, and supercategory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReferTables:
    """The content of `refs(<split_by>).p` and `instances.json`.

    Attributes:
        refs: Refs by descending image id and then ascending ref id, which is the order of RefCOCO's own file.
        images: Images of the refs, sorted by id.
        annotations: Annotations of the refs, sorted by id.
        categories: COCO's 80 categories in COCO's order or, if other names occur, the categories in use by id.
    """

    refs: list[Record]
    images: list[Record]
    annotations: list[Record]
    categories: list[Record]


def refer_tables(rows: Iterable[Row], spec: DatasetSpec) -> ReferTables:
    """Turn rows of all splits, in any order, into REFER's records.

    Args:
        rows: Rows with `COLUMNS`, as plain values.
        spec: Specification of the dataset.
    """
    refs: list[Record] = []
    images: dict[int, Record] = {}
    annotations: dict[int, Record] = {}
    names: dict[int, str] = {}
    for row in rows:
        refs.append(refer_ref(row, spec))
        images.setdefault(row["image_id"], refer_image(row))
        for annotation in row["annotations"]:
            if annotation["ann_id"] not in annotations:
                annotations[annotation["ann_id"]] = refer_annotation(row, annotation)
        learn_names(names, row)
    return ReferTables(
        refs=sorted(refs, key=lambda ref: refer_order(ref["image_id"], ref["ref_id"])),
        images=[images[key] for key in sorted(images)],
        annotations=[annotations[key] for key in sorted(annotations)],
        categories=refer_categories(names, spec),
    )


def refer_order(image_id: int, ref_id: int) -> tuple[int, int]:
    """Return the key by which refs are sorted; RefCOCO's file begins with the largest image id."""
    return -image_id, ref_id


def refer_ref(row: Row, spec: DatasetSpec) -> Record:
    """Return a record of `refs(<split_by>).p`.

    Its `ann_id` is one id, a list of several, or -1 without a target; in gRefCOCO it is always a list.
    """
    ann_ids: Any = [annotation["ann_id"] for annotation in row["annotations"]]
    category_ids: Any = [annotation["category_id"] for annotation in row["annotations"]]
    is_list = spec.refs_prefix == "grefs"
    extra: Record = {}
    if is_list:
        extra["no_target"] = row["no_target"]
    if spec.dataset == "refzom":
        extra["source"] = ("zero", "one", "many")[min(len(ann_ids), 2)]
    if row["no_target"]:
        ann_ids, category_ids = [NO_TARGET], [NO_TARGET]
    single = len(ann_ids) == 1
    has_flags = spec.dataset.startswith("rrefcoco") or (
        not row["no_target"] and not all(sentence["exists"] for sentence in row["sentences"])
    )
    return {
        "sent_ids": [sentence["sent_id"] for sentence in row["sentences"]],
        "file_name": _ref_file_name(row),
        "ann_id": ann_ids[0] if single and not is_list else ann_ids,
        "ref_id": row["ref_id"],
        "image_id": row["image_id"],
        "split": row["split"],
        "sentences": [
            {
                "tokens": list(sentence["words"]),
                "raw": sentence["raw"],
                "sent_id": sentence["sent_id"],
                "sent": sentence["sent"],
                **({"exist": sentence["exists"]} if has_flags else {}),
            }
            for sentence in row["sentences"]
        ],
        "category_id": category_ids[0] if single and not is_list else category_ids,
        **extra,
    }


def refer_image(row: Row) -> Record:
    """Return an image's record of `instances.json`."""
    return {
        "file_name": row["file_name"],
        "height": row["height"],
        "width": row["width"],
        "id": row["image_id"],
    }


def refer_annotation(row: Row, annotation: Mapping[str, Any]) -> Record:
    """Return an annotation's record of `instances.json`.

    Polygons are unchanged. Run lengths of a crowd are a dict with a list of counts, as in COCO; others are a list of
    dicts with compressed text, as in RefClef. If an annotation has only a box, its polygon is the box's corners.
    """
    return {
        "segmentation": _segmentation(row, annotation),
        "area": annotation["area"],
        "iscrowd": int(annotation["iscrowd"]),
        "image_id": row["image_id"],
        "bbox": list(annotation["box_xywh"]),
        "category_id": annotation["category_id"],
        "id": annotation["ann_id"],
    }


def refer_categories(names: Mapping[int, str], spec: DatasetSpec) -> list[Record]:
    """Return category records for the names in use or, if all of them are COCO's, for COCO's 80 categories."""
    coco = {number: name for number, name, _ in COCO_CATEGORIES}
    if spec.is_coco and all(coco.get(number) == name for number, name in names.items()):
        return [{"supercategory": above, "id": number, "name": name} for number, name, above in COCO_CATEGORIES]
    return [{"id": number, "name": names[number]} for number in sorted(names)]


def differences(spec: DatasetSpec) -> tuple[str, ...]:
    """Describe in sentences how these records differ from the files that a dataset was built from."""
    found = [
        "instances.json contains the images and annotations of refs, sorted by id; others of the source are not in the "
        "shards",
        "records of images have file_name, height, width and id; licence, date and URLs are not in the shards",
        "numbers in annotations are equal, but are written with a decimal point",
        "refs are sorted by descending image id and ascending ref id",
    ]
    if spec.dataset != "refcocog":
        found.append("a ref's file_name, which matches no file and is not used by clients, ends in its annotation's id")
    if not spec.is_coco:
        found.append("an annotation that has only a box has the box's corners as its polygon")
    return tuple(found)


def decode_segmentation(segmentation: Any, height: int, width: int) -> np.ndarray:
    """Draw the parts of a `segmentation` with pycocotools, `(H, W, parts)` uint8.

    Args:
        segmentation: Polygons, run lengths, or a list of run lengths.
        height: Height of the image in pixels.
        width: Width of the image in pixels.
    """
    runs = segmentation
    if isinstance(segmentation, dict):
        runs = [coco_mask.frPyObjects(segmentation, height, width)]
    elif isinstance(segmentation[0], list):
        runs = coco_mask.frPyObjects(segmentation, height, width)
    return np.asarray(coco_mask.decode(runs))


def _ref_file_name(row: Row) -> str:
    """Return the image's name with the annotation's id, as in RefCOCOg; RefCOCO numbers refs within the image."""
    file_name = str(row["file_name"])
    stem, dot, suffix = file_name.rpartition(".")
    if len(row["annotations"]) != 1 or not dot:
        return file_name
    return f"{stem}_{row['annotations'][0]['ann_id']}.{suffix}"


def _segmentation(row: Row, annotation: Mapping[str, Any]) -> Any:
    shape = annotation["segmentation"]
    if shape["polygons"]:
        return [list(polygon) for polygon in shape["polygons"]]
    rles = [{"size": list(rle["size"]), "counts": list(rle["counts"])} for rle in shape["rles"]]
    if annotation["iscrowd"] and len(rles) == 1:
        return rles[0]
    if rles:
        packed = (coco_mask.frPyObjects(rle, *rle["size"]) for rle in rles)
        return [{"size": list(rle["size"]), "counts": rle["counts"].decode("ascii")} for rle in packed]
    left, top, box_width, box_height = annotation["box_xywh"]
    # Clipped to the image, like the box's mask in the build.
    left, right = np.clip([left, left + box_width], 0, row["width"]).tolist()
    top, bottom = np.clip([top, top + box_height], 0, row["height"]).tolist()
    return [[left, top, left, bottom, right, bottom, right, top]]


def learn_names(names: dict[int, str], row: Row) -> None:
    """Add the category names of a row to `names`; for a target of several categories they are joined by commas."""
    ids = list(dict.fromkeys(annotation["category_id"] for annotation in row["annotations"]))
    if len(ids) == 1:
        names[ids[0]] = row["category"]
        return
    found = row["category"].split(", ")
    if len(found) == 1:  # several categories have the same name, which is stored once
        found *= len(ids)
    # If a name itself contains a comma, the names cannot be separated; the categories are then named by their ids.
    for number, name in zip(ids, found if len(found) == len(ids) else map("category {}".format, ids), strict=True):
        names.setdefault(number, name)
