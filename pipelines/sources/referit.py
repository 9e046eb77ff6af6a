"""Reads the Berkeley split of ReferIt, with sentences and a box per region, as text_objseg publishes it."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.sources.json_stream import read_json
from pipelines.sources.raw import RawSource
from pipelines.sources.reader import Reader, ReadOptions
from pipelines.sources.source_file import describe_file, find_file
from refseg.dataset.descriptor import SourceFile
from refseg.dataset.schema import DatasetSpec
from refseg.errors import AnnotationError, UsageError

_BOXES = "referit_bbox.json"
_SIZES = "referit_imsize.json"
_NO_CATEGORY = {"id": 0, "name": ""}
_REGIONS_PER_IMAGE = 1000  # numbers reserved per image in an id; no image has more than 39 regions
_SENTENCES_PER_REGION = 1000


def find_referit_folder(spec: DatasetSpec, annotations: Path) -> Path | None:
    """Return the folder with the files `referit_query_<split>.json`.

    This is `annotations/<spec.folder>` or `annotations` itself.
    The result is None if the files do not exist, or if REFER's own `refs(berkeley)`, which has masks, exists, too.
    """
    for folder in (annotations / spec.folder, annotations):
        if any(folder.glob(f"refs({spec.split_by}).*")):
            return None
        if any(_find_query(folder, split) for split in spec.splits):
            return folder
    return None


def read_referit(spec: DatasetSpec, folder: Path) -> RawSource:
    """Read `referit_query_<split>.json`, `referit_bbox.json` and `referit_imsize.json`. Targets are boxes of regions.

    The files identify a region only by the name `<image>_<region>`. Ids are computed from the name, so that they do not
    depend on which splits' files exist. `ref_id` and `ann_id` are 1000 image + region, and `sent_id` is 1000 `ref_id` +
    position of the sentence. Boxes are left, top, right, bottom, including the last pixel. Sizes are width, height.

    Args:
        spec: Specification of `refclef/berkeley`.
        folder: The folder that contains the files.

    Raises:
        UsageError: If the file of boxes or sizes is missing.
        AnnotationError: If a file cannot be read or does not have the expected form.
    """
    paths = {split: path for split in spec.splits if (path := _find_query(folder, split)) is not None}
    tables = []
    for name in (_BOXES, _SIZES):
        if (path := find_file(folder, name)) is None:
            others = ", ".join(path.name for path in paths.values())
            raise UsageError(f"{folder}: found no {name}; take it from the same release as {others}")
        tables.append(path)
    queries = {split: _load(path, spec) for split, path in paths.items()}
    boxes, sizes = (_load(path, spec) for path in tables)
    return RawSource(
        spec=spec,
        refs=_Refs({split: content for split, (content, _) in queries.items()}),
        tables=_Tables(boxes[0], sizes[0]),
        sources=tuple(source for _, source in (*queries.values(), boxes, sizes)),
        box_targets=True,
    )


@dataclass(frozen=True, slots=True)
class _Refs:
    """REFER's records, made from the sentences of each region."""

    queries: dict[str, dict[str, Any]]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for split, query in self.queries.items():
            for region, found in query.items():
                image_id, ref_id = _region_ids(region)
                sentences = found
                if isinstance(found, list):
                    first = None if ref_id is None else ref_id * _SENTENCES_PER_REGION
                    sentences = [_sentence(text, first, position) for position, text in enumerate(found)]
                yield {
                    "ref_id": ref_id,
                    "ann_id": ref_id,
                    "image_id": image_id,
                    "split": split,
                    "sentences": sentences,
                }


@dataclass(frozen=True, slots=True)
class _Tables:
    """COCO's records, made from boxes and sizes. Malformed values are left out, so that the refs become rejects."""

    boxes: dict[str, Any]
    sizes: dict[str, Any]

    def __iter__(self) -> Iterator[tuple[str, dict[str, Any]]]:
        yield "categories", dict(_NO_CATEGORY)
        for name, size in self.sizes.items():
            stem = name.removesuffix(".jpg")
            if re.fullmatch(r"[0-9]{1,12}", stem):
                width, height = size if isinstance(size, list) and len(size) == 2 else (None, None)
                yield "images", {"id": int(stem), "file_name": name, "height": height, "width": width}
        for region, box in self.boxes.items():
            image_id, ann_id = _region_ids(region)
            if ann_id is not None:
                record = {"id": ann_id, "image_id": image_id, "category_id": _NO_CATEGORY["id"], "iscrowd": 0}
                yield "annotations", record | _box_fields(box)


def _find_query(folder: Path, split: str) -> Path | None:
    return find_file(folder, f"referit_query_{split}.json")


def _load(path: Path, spec: DatasetSpec) -> tuple[dict[str, Any], SourceFile]:
    content = read_json(path)
    if not isinstance(content, dict):
        raise AnnotationError(
            f"{path}: found a {type(content).__name__}, expected an object of entries by name, as text_objseg writes it"
        )
    return content, describe_file(path, f"{spec.folder}/{path.name}")


def _region_ids(region: str) -> tuple[int | None, int | None]:
    """Return the image id and region id of the name `<image>_<region>`; None, None for any other name."""
    match = re.fullmatch(r"([0-9]{1,12})_([0-9]{1,3})", region)
    if match is None:
        return None, None
    image_id = int(match[1])
    return image_id, image_id * _REGIONS_PER_IMAGE + int(match[2])


def _sentence(text: Any, first: int | None, position: int) -> dict[str, Any]:
    sentence = {"sent": text, "sent_id": None if first is None else first + position}
    return sentence | ({"tokens": text.split()} if isinstance(text, str) else {})


def _box_fields(box: Any) -> dict[str, Any]:
    """Return `bbox` and `area` of a box that includes the last pixel. `[0, 0, 9, 4]` gives `[0, 0, 10, 5]` and 50."""
    if not isinstance(box, list) or len(box) != 4 or not all(type(value) in (int, float) for value in box):
        return {"bbox": box, "area": 0}
    left, top, right, bottom = box
    width, height = right - left + 1, bottom - top + 1
    if width < 1 or height < 1:
        return {"bbox": None, "area": 0}
    return {"bbox": [left, top, width, height], "area": width * height}


def _read(spec: DatasetSpec, annotations: Path, options: ReadOptions) -> RawSource | None:  # noqa: ARG001
    folder = find_referit_folder(spec, annotations)
    return None if folder is None else read_referit(spec, folder)


READER = Reader(
    name="referit",
    reads="text_objseg's referit_query_<split>.json with boxes and sizes",
    serves=lambda spec: spec.dataset_id == "refclef/berkeley",
    read=_read,
)
