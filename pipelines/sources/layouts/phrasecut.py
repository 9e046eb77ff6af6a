"""Reads PhraseCut's `refer_<split>.json`, a list of phrases with the polygons of each instance."""

import re
from itertools import chain
from pathlib import Path
from typing import Any

from pipelines.sources.json_stream import JsonList
from pipelines.sources.row_reader import Rows, row_reader
from pipelines.sources.table import RowFault
from refseg.values import short, whole_number


def rows(path: Path) -> Rows:
    """Yield one row per phrase. The target is the union of the polygons of all instances of the phrase.

    Pictures are Visual Genome's, `<image_id>.jpg`, and sizes are read from the pictures. The file's name contains the
    split, which may be `miniv`.

    Raises:
        AnnotationError: If the file is not a list in JSON.
    """
    named = re.search(r"refer_([A-Za-z]+)", path.name)
    split = {"split": named[1]} if named else {}
    for number, task in enumerate(JsonList(path, items="PhraseCut's phrases")):
        image_id = whole_number(task.get("image_id")) if isinstance(task, dict) else None
        instances = task.get("Polygons") if image_id is not None else None
        if image_id is None or not isinstance(instances, list):
            yield f"[{number}]", RowFault(f"found {short(task)}, expected image_id, phrase and Polygons")
            continue
        place = f"[{number}] task {short(task.get('task_id'))}"
        polygons: list[Any] = list(chain.from_iterable(part for part in instances if isinstance(part, list)))
        facts = {"image": f"{image_id}.jpg", "sentence": task.get("phrase"), "polygons": polygons}
        yield place, {**split, **facts}


READER = row_reader(
    name="phrasecut",
    reads="PhraseCut's refer_<split>.json",
    suffixes=(".json",),
    rows=rows,
    prefix="refer_",
)
