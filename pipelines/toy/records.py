"""Makes the records of `instances.json` and `refs(<split_by>).p`, with the same keys as COCO and REFER."""

from collections.abc import Sequence
from random import Random
from typing import Any

from pipelines.toy.pictures import crowd_run_lengths
from pipelines.toy.scenes import SHAPES, Polygon, Scene, Thing

_CROWD_CATEGORY = len(SHAPES) + 1

CATEGORIES: list[dict[str, Any]] = [
    *({"supercategory": "shape", "id": number, "name": shape} for number, shape in enumerate(SHAPES, 1)),
    {"supercategory": "crowd", "id": _CROWD_CATEGORY, "name": "dots"},
]
LICENCES = [{"id": 1, "name": "CC0 1.0", "url": "https://creativecommons.org/publicdomain/zero/1.0/"}]


def image_file_name(image_id: int) -> str:
    """Return the name of a JPEG in the style of COCO 2014."""
    return f"COCO_train2014_{image_id:012d}.jpg"


def image_record(image_id: int, image_size: tuple[int, int]) -> dict[str, Any]:
    """Return an entry of `images`. `image_size` is `(height, width)` in pixels."""
    return {
        "license": LICENCES[0]["id"],
        "file_name": image_file_name(image_id),
        "coco_url": "",
        "height": image_size[0],
        "width": image_size[1],
        "date_captured": "",
        "flickr_url": "",
        "id": image_id,
    }


def thing_record(thing: Thing, *, ann_id: int, image_id: int) -> dict[str, Any]:
    """Return an entry of `annotations` for an object."""
    return {
        "segmentation": [[v for corner in polygon for v in corner] for polygon in thing.polygons],
        "area": round(sum(_area(polygon) for polygon in thing.polygons), 2),
        "iscrowd": 0,
        "image_id": image_id,
        "bbox": list(thing.box_xywh),
        "category_id": SHAPES.index(thing.shape) + 1,
        "id": ann_id,
    }


def crowd_record(scene: Scene, image_id: int) -> dict[str, Any]:
    """Return an entry of `annotations` for the crowd.

    It has run lengths, a box in whole pixels, and an id in COCO's style.
    """
    xs, ys = zip(*scene.crowd_dots, strict=True)
    run_lengths = crowd_run_lengths(scene)
    return {
        "segmentation": {"counts": run_lengths, "size": list(scene.image_size)},
        "area": sum(run_lengths[1::2]),
        "iscrowd": 1,
        "image_id": image_id,
        "bbox": [min(xs) - 2, min(ys) - 2, max(xs) - min(xs) + 5, max(ys) - min(ys) + 5],
        "category_id": _CROWD_CATEGORY,
        "id": int(f"9{_CROWD_CATEGORY:03d}{image_id:08d}"),
    }


def ref_record(
    annotation: dict[str, Any],
    sentences: Sequence[str],
    rng: Random,
    *,
    ref_id: int,
    first_sent_id: int,
    split: str,
) -> dict[str, Any]:
    """Return an entry of the refs, with an annotated object and sentences. `raw` imitates what annotators type."""
    return {
        "sent_ids": list(range(first_sent_id, first_sent_id + len(sentences))),
        # RefCOCO's file names end in a number and match no file; readers use image_id.
        "file_name": image_file_name(annotation["image_id"]).replace(".jpg", f"_{ref_id}.jpg"),
        "ann_id": annotation["id"],
        "ref_id": ref_id,
        "image_id": annotation["image_id"],
        "split": split,
        "sentences": [
            {"tokens": sent.split(), "raw": _as_typed(sent, rng), "sent_id": sent_id, "sent": sent}
            for sent_id, sent in enumerate(sentences, first_sent_id)
        ],
        "category_id": annotation["category_id"],
    }


def _as_typed(sentence: str, rng: Random) -> str:
    return rng.choice((sentence, sentence, sentence, sentence.upper(), sentence.capitalize() + ".", f" {sentence} "))


def _area(polygon: Polygon) -> float:
    """Return the area of a polygon in square pixels, by the shoelace formula."""
    turned = zip(polygon, polygon[1:] + polygon[:1], strict=True)
    return abs(sum(x0 * y1 - x1 * y0 for (x0, y0), (x1, y1) in turned)) / 2
