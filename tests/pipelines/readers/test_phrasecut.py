"""PhraseCut's refer_<split>.json."""

from .example import Example, area


def polygon(left: int, top: int, right: int, bottom: int) -> list[list[int]]:
    return [[left, top], [right, top], [right, bottom], [left, bottom]]


EXAMPLE = Example(
    reader="phrasecut",
    files={
        "refer_miniv.json": [
            {
                "task_id": "2318313__37", "image_id": 2318313, "ann_ids": [1, 2], "phrase": "green forest",
                "instance_boxes": [[1, 2, 4, 4], [10, 0, 4, 4]],
                "Polygons": [[polygon(1, 2, 5, 6), polygon(4, 2, 8, 6)], [polygon(10, 0, 14, 4)]],
            }
        ],
        "image_data_split.json": [{"image_id": 2318313, "height": 10, "width": 20}],
    },
    means={("miniv", "2318313.jpg", "green forest"): area(1, 2, 8, 6) | area(10, 0, 14, 4)},
)  # fmt: skip
