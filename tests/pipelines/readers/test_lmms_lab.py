"""lmms-lab's Parquet sets."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from refseg.errors import AnnotationError

from .example import Example, area, corners, read

SCHEMA = pa.schema(
    [
        ("question_id", pa.string()),
        ("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
        ("question", pa.string()),
        ("answer", pa.list_(pa.string())),
        ("segmentation", pa.list_(pa.float32())),
        ("bbox", pa.list_(pa.float32())),
        ("iscrowd", pa.int8()),
        ("file_name", pa.string()),
    ]
)


def row(number: int, *answers: str, **fields: Any) -> dict[str, Any]:
    name = f"COCO_train2014_{number:012d}_3.jpg"
    shape = {"segmentation": corners(1, 2, 5, 6), "bbox": [1, 2, 4, 4], "iscrowd": 0}
    return {"question_id": str(number), "answer": list(answers), "file_name": name, **shape, **fields}


EXAMPLE = Example(
    reader="lmms-lab",
    files={"testA-00000-of-00001.parquet": pa.Table.from_pylist([row(581857, "the cup", "left cup")], schema=SCHEMA)},
    means={
        ("testA", "COCO_train2014_000000581857.jpg", "the cup"): area(1, 2, 5, 6),
        ("testA", "COCO_train2014_000000581857.jpg", "left cup"): area(1, 2, 5, 6),
    },
    leaves_out=("hold one polygon for each target",),
)


@pytest.mark.parametrize(("total", "own", "partition"), [(8811, "3,811", "unc"), (7573, "2,573", "umd")])
def test_a_merged_partition_is_refused_by_name(total: int, own: str, partition: str, tmp_path: Path) -> None:
    for number, part in enumerate((3000, total - 3000)):
        table = pa.Table.from_pylist([row(7, "x")] * part, schema=SCHEMA)
        pq.write_table(table, tmp_path / f"val-{number:05d}-of-00002.parquet")

    with pytest.raises(AnnotationError) as caught:
        read(tmp_path, "lmms-lab")

    assert f"val holds {total:,} refs, {own} of {partition} and 5,000 of google: a merged partition" in str(
        caught.value
    )
    assert f"take jxu124's set or REFER's own files for val of {partition}" in str(caught.value)


def test_a_name_of_another_form_is_named(tmp_path: Path) -> None:
    EXAMPLE.write(tmp_path, {"test-0.parquet": pa.Table.from_pylist([row(7, "x", file_name="a.jpg")], schema=SCHEMA)})

    with pytest.raises(
        AnnotationError, match=r"test-0.parquet row 1: found .*'a.jpg'.*, expected a name such as COCO_"
    ):
        read(tmp_path, "lmms-lab")
