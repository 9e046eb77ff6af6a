"""RefCOCO-M."""

import pyarrow as pa

from .example import Example, area

MASK = {"size": [10, 20], "counts": [0, 20, 180]}
ROWS = [
    {
        "image_id": 581857,
        "image": {"bytes": b"\xff\xd8\xff", "path": None},
        "samples": [{"sentences": ["the left", "most left"], "mask": MASK, "bbox": [0.0, 0.0, 2.0, 10.0]}],
    }
]

EXAMPLE = Example(
    reader="refcoco-m",
    files={"validation-00000-of-00002.parquet": pa.Table.from_pylist(ROWS)},
    means={
        ("val", "COCO_train2014_000000581857.jpg", "the left"): area(0, 0, 2, 10),
        ("val", "COCO_train2014_000000581857.jpg", "most left"): area(0, 0, 2, 10),
    },
)
