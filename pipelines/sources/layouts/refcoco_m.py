"""Reads RefCOCO-M (moondream/refcoco-m): Parquet with one row per picture, and new masks for RefCOCO's val."""

from pathlib import Path
from typing import Any

from pipelines.sources.parquet_rows import parquet_rows
from pipelines.sources.row_reader import Rows, row_reader
from pipelines.sources.table import RowFault
from pipelines.sources.targets import coco_name
from refseg.values import short, whole_number


def rows(path: Path) -> Rows:
    """Yield one row per sentence of each sample. The pictures are COCO's and are found by id below `--images`.

    Raises:
        AnnotationError: If the file cannot be read.
    """
    for place, row in parquet_rows(path, ("image_id", "samples")):
        image_id = _image_id(row["image_id"])
        if image_id is None or not isinstance(row["samples"], list):
            yield place, RowFault(f"found image_id {short(row['image_id'])}, expected COCO's id, and samples")
            continue
        for number, sample in enumerate(row["samples"]):
            where = f"{place} samples[{number}]"
            if not isinstance(sample, dict) or not isinstance(sample.get("sentences"), list):
                yield where, RowFault(f"found {short(sample)}, expected mask and sentences")
                continue
            for sentence in sample["sentences"]:
                text = sentence.get("sent", sentence.get("raw")) if isinstance(sentence, dict) else sentence
                yield where, {"image": coco_name(image_id), "sentence": text, "rle": sample.get("mask")}


def _image_id(value: Any) -> int | None:
    return int(value) if isinstance(value, str) and value.isascii() and value.isdigit() else whole_number(value)


READER = row_reader(name="refcoco-m", reads="Parquet files of moondream/refcoco-m", suffixes=(".parquet",), rows=rows)
