"""Reads SeqTR's `instances.json`, which has one list of records per split. SimVG, DeRIS and InstanceVG use it, too."""

from pathlib import Path

from pipelines.sources.json_stream import JsonLists
from pipelines.sources.row_reader import Rows, row_reader
from pipelines.sources.table import RowFault
from pipelines.sources.targets import coco_name, target_of_segmentation
from refseg.values import short, whole_number


def rows(path: Path) -> Rows:
    """Yield one row per expression. The target is the record's `mask` or, without one, the `bbox`.

    Records state the id of a picture. The file name is COCO's or, if `data_source` is another collection (`vg`,
    `flickr`), `<id>.jpg`.

    Raises:
        AnnotationError: If the file is not an object of lists in JSON.
    """
    numbers: dict[str, int] = {}
    for split, record in JsonLists(path):
        number = numbers[split] = numbers.get(split, -1) + 1
        place = f"{split}[{number}]"
        image_id = whole_number(record.get("image_id")) if isinstance(record, dict) else None
        expressions = record.get("expressions") if image_id is not None else None
        if image_id is None or not isinstance(expressions, list):
            yield place, RowFault(f"found {short(record)}, expected image_id, expressions, and mask or bbox")
            continue
        is_coco = "coco" in str(record.get("data_source", "coco"))
        facts = {
            "split": split,
            "image": coco_name(image_id) if is_coco else f"{image_id}.jpg",
            "height": record.get("height"),
            "width": record.get("width"),
            **target_of_segmentation(record.get("mask"), record.get("bbox")),
        }
        yield from ((place, {**facts, "sentence": expression}) for expression in expressions)


READER = row_reader(
    name="seqtr", reads="SeqTR's instances.json (SimVG, DeRIS, InstanceVG)", suffixes=(".json",), rows=rows
)
