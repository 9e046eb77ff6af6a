"""COCO's JSON with captions on annotations."""

from .example import Example, area, corners

IMAGES = [{"id": 5, "file_name": "a.jpg", "height": 10, "width": 20}]


def annotation(key: int, **fields: object) -> dict[str, object]:
    return {"id": key, "image_id": 5, "category_id": 2, "bbox": [1, 2, 4, 4], "area": 16, "iscrowd": 0, **fields}


EXAMPLE = Example(
    reader="coco",
    files={
        "train.json": {
            "images": IMAGES,
            "annotations": [
                annotation(1, segmentation=[corners(1, 2, 5, 6), corners(10, 2, 12, 4)], caption="two parts"),
                annotation(2, segmentation={"size": [10, 20], "counts": [0, 20, 180]}, captions=["left", "the left"]),
                annotation(3, attributes={"Caption": "no", "caption": "a box"}),
                annotation(4, segmentation=[corners(0, 0, 1, 1)]),
                annotation(5, segmentation=[corners(7, 0, 9, 1)], sentences=[{"sent": "of REFER", "raw": "Of REFER"}]),
            ],
            "categories": [{"id": 2, "name": "cup"}],
        }
    },
    means={
        ("train", "a.jpg", "two parts"): area(1, 2, 5, 6) | area(10, 2, 12, 4),
        ("train", "a.jpg", "left"): area(0, 0, 2, 10),
        ("train", "a.jpg", "the left"): area(0, 0, 2, 10),
        ("train", "a.jpg", "a box"): area(1, 2, 5, 6),
        ("train", "a.jpg", "of REFER"): area(7, 0, 9, 1),
    },
    leaves_out=("train.json: left out 1 annotations without a caption",),
)
