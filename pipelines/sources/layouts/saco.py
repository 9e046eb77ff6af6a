"""Reads SA-Co, the format of SAM 3: COCO's JSON with one `images` entry per pair of a picture and a noun phrase."""

from collections import defaultdict
from pathlib import Path
from typing import Any

from pipelines.sources.json_stream import JsonTables
from pipelines.sources.row_reader import Rows, row_reader, warn_left_out
from pipelines.sources.table import RowFault
from pipelines.sources.targets import join_segmentations
from refseg.values import short, whole_number


def rows(path: Path) -> Rows:
    """Yield one row per pair.

    The target is the union of all masks of the pair. A pair without annotations has no target.

    Boxes and areas of the format are fractions of the picture and are not used. A pair with neither
    `is_instance_exhaustive` nor `is_pixel_exhaustive` is annotated incompletely. The target is unknown, so the pair
    makes no row, and a warning states the number of these pairs. The masks of the whole file are in memory.

    Raises:
        AnnotationError: If the file is not COCO's JSON.
    """
    masks: defaultdict[int, list[Any]] = defaultdict(list)
    for number, (_, record) in enumerate(JsonTables(path, required=(), optional=("annotations",))):
        image_id = whole_number(record.get("image_id")) if isinstance(record, dict) else None
        if image_id is None:
            yield f"annotations[{number}]", RowFault(f"found {short(record)}, expected an annotation with image_id")
            continue
        masks[image_id].append(record.get("segmentation"))
    unknown = 0
    for number, (_, record) in enumerate(JsonTables(path, required=("images",), optional=())):
        place = f"images[{number}]"
        image_id = whole_number(record.get("id")) if isinstance(record, dict) else None
        if image_id is None:
            yield place, RowFault(f"found {short(record)}, expected a pair with id, file_name and text_input")
            continue
        found = masks.pop(image_id, [])
        if record.get("is_instance_exhaustive") in (0, False) and record.get("is_pixel_exhaustive") in (None, 0, False):
            unknown += 1
            continue
        if None in found:
            yield place, RowFault("found an annotation without segmentation, expected a mask")
            continue
        try:
            target = join_segmentations(found) if found else {"no_target": True}
        except RowFault as fault:
            yield place, fault
            continue
        facts = {"image": record.get("file_name"), "sentence": record.get("text_input")}
        yield place, {**facts, "height": record.get("height"), "width": record.get("width"), **target}
    for image_id in masks:
        yield f"image_id {image_id}", RowFault("is named by annotations and is not in images")
    warn_left_out(path, unknown, "pairs that are marked as annotated incompletely")


READER = row_reader(name="saco", reads="SA-Co JSON of SAM 3, with negatives", suffixes=(".json",), rows=rows)
