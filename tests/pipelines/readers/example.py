"""What a reader's test declares: files in its layout, and what they mean, worked out by hand."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipelines.masks import read_segmentation, target_mask
from pipelines.sources import ReadOptions, read_source
from pipelines.sources.raw import RawSource
from refseg.dataset.schema import Annotation, find_dataset

HEIGHT, WIDTH = 10, 20
"""Of every picture of the examples, in pixels."""

Meaning = tuple[str, str, str]
"""Split, picture and sentence."""


@dataclass(frozen=True, kw_only=True)
class Example:
    """Files of one layout.

    Attributes:
        reader: Name of the reader.
        files: By name: text, a table that is written as Parquet, or another value that is written as JSON.
        means: By split, picture and sentence: the target's pixels `(10, 20)`; none for a sentence that names nothing.
        leaves_out: Words of the warnings that the files give.
    """

    reader: str
    files: Mapping[str, Any]
    means: Mapping[Meaning, NDArray[np.bool_]]
    leaves_out: tuple[str, ...] = field(default=())

    def write(self, folder: Path, files: Mapping[str, Any] | None = None) -> Path:
        for name, content in (files or self.files).items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(to_bytes(content))
        return folder


def to_bytes(content: Any) -> bytes:
    if isinstance(content, pa.Table):
        buffer = BytesIO()
        pq.write_table(content, buffer)
        return buffer.getvalue()
    if isinstance(content, bytes):
        return content
    return (content if isinstance(content, str) else json.dumps(content)).encode()


def read(folder: Path, reader: str, *, as_split: str = "") -> RawSource:
    return read_source(find_dataset("custom/mine"), folder, ReadOptions(as_split=as_split), reader=reader)


def area(left: int, top: int, right: int, bottom: int) -> NDArray[np.bool_]:
    """The mask whose pixels lie in columns `left` to `right` and rows `top` to `bottom`, the last ones excluded."""
    mask = np.zeros((HEIGHT, WIDTH), np.bool_)
    mask[top:bottom, left:right] = True
    return mask


def corners(left: float, top: float, right: float, bottom: float) -> list[float]:
    """The flat polygon around `area`."""
    return [left, top, right, top, right, bottom, left, bottom]


NOTHING = area(0, 0, 0, 0)


def meanings(raw: RawSource) -> dict[Meaning, NDArray[np.bool_]]:
    """What a source means, drawn."""
    tables: dict[str, dict[int, dict[str, Any]]] = {"images": {}, "annotations": {}, "categories": {}}
    for section, record in raw.tables:
        tables[section][record["id"]] = record
    found = {}
    for ref in raw.refs:
        image = tables["images"][ref["image_id"]]
        size = image.get("height", HEIGHT), image.get("width", WIDTH)
        annotations = []
        for ann_id in [] if ref["ann_id"] == -1 else [ref["ann_id"]]:
            record = tables["annotations"][ann_id]
            assert record["category_id"] in tables["categories"]
            shape = record.get("segmentation")
            polygons, rles = ((), ()) if shape is None else read_segmentation(shape, size)
            box = tuple(map(float, record["bbox"]))
            facts = {"ann_id": ann_id, "category_id": 1, "iscrowd": False, "area": 0.0}
            annotations.append(Annotation(**facts, box_xywh=box, polygons=polygons, rles=rles))  # type: ignore[arg-type]
        runs = target_mask(annotations, size, "union")
        mask = np.repeat(np.arange(len(runs.counts)) % 2 == 1, runs.counts).reshape(size[::-1]).T
        for sentence in ref["sentences"]:
            found[ref["split"], image["file_name"], sentence["sent"]] = mask
    return found
