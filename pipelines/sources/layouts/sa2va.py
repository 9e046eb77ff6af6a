"""Reads Sa2VA's list for fine-tuning, which has polygons and a sentence for each object of a picture."""

from pathlib import Path
from typing import Any

from pipelines.sources.json_stream import JsonList
from pipelines.sources.row_reader import Rows, row_reader
from pipelines.sources.table import RowFault
from pipelines.sources.targets import target_of_segmentation
from refseg.values import short


def rows(path: Path) -> Rows:
    """Yield one row per sentence. `text[i]` names the object of `mask[i]`, which is polygons or run lengths.

    Sa2VA adds up the polygons of an object, so that a pixel in two polygons counts twice. Here the target is the union
    of the polygons.

    Raises:
        AnnotationError: If the file is not a list in JSON.
    """
    for number, record in enumerate(JsonList(path, items="records with image, mask and text")):
        place = f"[{number}]"
        texts, masks = (record.get(name) for name in ("text", "mask")) if isinstance(record, dict) else (None, None)
        if isinstance(texts, str):  # one object, written without the outer lists
            texts, masks = [texts], masks if _holds_objects(masks) else [masks]
        if not isinstance(texts, list) or not isinstance(masks, list) or len(texts) != len(masks):
            yield place, RowFault(f"found {short(record)}, expected image, and mask and text of equal length")
            continue
        for position, (text, mask) in enumerate(zip(texts, masks, strict=True)):
            target = target_of_segmentation(mask)
            image = record.get("image", record.get("img_path"))
            yield f"{place} text[{position}]", {"image": image, "sentence": text, **target}


def _holds_objects(masks: Any) -> bool:
    """Return True if the list has one entry that is the polygons or run lengths of an object."""
    if not isinstance(masks, list) or len(masks) != 1:
        return False
    first = masks[0]
    return isinstance(first, dict) or (isinstance(first, list) and bool(first) and isinstance(first[0], list))


READER = row_reader(name="sa2va", reads="Sa2VA's list of image, mask and text", suffixes=(".json",), rows=rows)
