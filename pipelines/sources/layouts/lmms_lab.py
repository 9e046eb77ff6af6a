"""Reads lmms-lab's RefCOCO, RefCOCO+ and RefCOCOg on the Hugging Face Hub: Parquet with pictures, one row per ref."""

import logging
import re
from pathlib import Path

from pipelines.sources.parquet_rows import parquet_length, parquet_rows
from pipelines.sources.row_reader import Rows, row_reader
from pipelines.sources.table import RowFault
from pipelines.sources.targets import coco_name
from refseg.errors import AnnotationError
from refseg.values import short

logger = logging.getLogger(__name__)

_MERGED = {8811: (3811, "unc"), 7573: (2573, "umd")}
"""Number of rows and name of the partition that papers report, by the number of rows of a `val` that is the union of
two partitions' validation splits.
"""


def rows(path: Path) -> Rows:
    """Yield one row per answer. The pictures are COCO's and are found by id below `--images`.

    Raises:
        AnnotationError: If the file cannot be read, or its split is the union of two partitions.
    """
    _refuse_merged(path)
    logger.warning(
        "%s: lmms-lab's sets hold one polygon for each target, so targets of several parts lack the others; "
        "jxu124's sets and REFER's own files have all",
        path,
    )
    for place, row in parquet_rows(path, ("question_id", "answer", "segmentation", "file_name")):
        named = re.fullmatch(r"COCO_(?:train|val)2014_(\d{12})_\d+\.jpg", str(row["file_name"]))
        if named is None or not isinstance(row["answer"], list):
            found = {name: row[name] for name in ("file_name", "answer")}
            yield place, RowFault(f"found {short(found)}, expected a name such as COCO_train2014_<id>_<number>.jpg")
            continue
        facts = {"image": coco_name(int(named[1])), "polygons": row["segmentation"]}
        yield from ((place, {**facts, "sentence": answer}) for answer in row["answer"])


def _refuse_merged(path: Path) -> None:
    """Refuse a `val` that contains the validation refs of two partitions, because no paper reports scores on it."""
    split = path.name.partition("-")[0]
    total = sum(parquet_length(other) for other in path.parent.glob(f"{split}-*.parquet"))
    if split == "val" and total in _MERGED:
        own, partition = _MERGED[total]
        raise AnnotationError(
            f"{path}: val holds {total:,} refs, {own:,} of {partition} and {total - own:,} of google: a merged "
            f"partition that no paper reports; take jxu124's set or REFER's own files for val of {partition}; for the "
            "other splits give a folder without the val files"
        )


READER = row_reader(
    name="lmms-lab", reads="Parquet files of lmms-lab/RefCOCO and the like", suffixes=(".parquet",), rows=rows
)
