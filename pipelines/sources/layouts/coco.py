"""Reads COCO's JSON with captions on annotations, as annotation tools export it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipelines.sources.json_stream import JsonTables
from pipelines.sources.row_reader import Rows, row_reader, warn_left_out
from pipelines.sources.table import RowFault
from pipelines.sources.targets import target_of_segmentation
from refseg.values import short, whole_number

CAPTIONS = ("caption", "captions", "sentence", "sentences", "expression", "expressions", "description", "phrase")
"""Fields of an annotation, or of the `attributes` in CVAT's export, that contain sentences (a string or a list)."""


def rows(path: Path) -> Rows:
    """Yield one row per caption of each annotation. Without a segmentation, the target is the annotation's box.

    Annotations without a caption make no row. A warning states the number of these annotations.

    Raises:
        AnnotationError: If the file is not COCO's JSON.
    """
    images: dict[int, dict[str, Any]] = {}
    categories: dict[int, Any] = {}
    for section, record in JsonTables(path, required=("images", "annotations"), optional=("categories",)):
        key = whole_number(record.get("id")) if isinstance(record, dict) else None
        if key is not None and section == "images":
            images[key] = {"image": record.get("file_name")} | {name: record.get(name) for name in ("height", "width")}
        elif key is not None and section == "categories":
            categories[key] = record.get("name")
    bare = 0
    for number, (_, record) in enumerate(JsonTables(path, required=("annotations",), optional=())):
        place = f"annotations[{number}]"
        if not isinstance(record, dict):
            yield place, RowFault(f"found {short(record)}, expected an object")
            continue
        captions = list(_captions(record))
        bare += not captions
        image_id = whole_number(record.get("image_id"))
        if captions and image_id not in images:
            yield place, RowFault(f"found image_id {short(record.get('image_id'))}, which is not in images")
            continue
        for caption in captions:
            target = target_of_segmentation(record.get("segmentation"), record.get("bbox"))
            name = categories.get(whole_number(record.get("category_id")) or 0)
            yield place, {**images[image_id or 0], "sentence": caption, "category": name, **target}
    warn_left_out(path, bare, f"annotations without a caption; captions are read from {', '.join(CAPTIONS)}")


def _captions(record: dict[str, Any]) -> Iterator[Any]:
    attributes = record.get("attributes")
    for holder in (record, attributes if isinstance(attributes, dict) else {}):
        for name in CAPTIONS:
            found = holder.get(name)
            for caption in found if isinstance(found, list) else [found]:
                text = caption.get("sent", caption.get("raw")) if isinstance(caption, dict) else caption
                if text not in (None, ""):
                    yield text


READER = row_reader(name="coco", reads="COCO's JSON with captions on annotations", suffixes=(".json",), rows=rows)
