"""SeqTR's instances.json."""

from .example import Example, area, corners

SIZE = {"height": 10, "width": 20}

EXAMPLE = Example(
    reader="seqtr",
    files={
        "instances.json": {
            "train": [
                {
                    "bbox": [1, 2, 4, 4], "category_id": 1, "expressions": ["left one", "the left"], **SIZE,
                    "image_id": 581857, "mask": [corners(1, 2, 5, 6), corners(8, 2, 9, 3)],
                }
            ],
            "testA": [
                {
                    "bbox": [0, 0, 1, 10], "expressions": ["a crowd"], "image_id": 7, **SIZE,
                    "mask": {"size": [10, 20], "counts": [0, 10, 190]},
                },
                {"bbox": [2, 0, 3, 4], "expressions": ["a box"], "image_id": 8, "data_source": "vg", **SIZE},
            ],
        }
    },
    means={
        ("train", "COCO_train2014_000000581857.jpg", "left one"): area(1, 2, 5, 6) | area(8, 2, 9, 3),
        ("train", "COCO_train2014_000000581857.jpg", "the left"): area(1, 2, 5, 6) | area(8, 2, 9, 3),
        ("testA", "COCO_train2014_000000000007.jpg", "a crowd"): area(0, 0, 1, 10),
        ("testA", "8.jpg", "a box"): area(2, 0, 5, 4),
    },
)  # fmt: skip
