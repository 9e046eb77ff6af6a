"""Reads MDETR's conversion of REFER's datasets, one COCO file per split with one image record per sentence."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from pipelines.sources.json_stream import JsonTables
from pipelines.sources.raw import RawSource
from pipelines.sources.reader import Reader, ReadOptions
from pipelines.sources.source_file import describe_file, find_file
from refseg.dataset.schema import DatasetSpec
from refseg.values import whole_number

_INSTANCES = ("instances.json", "instances_train2014.json")
_SECTIONS = ("categories", "licenses", "images", "annotations")
_CONVERTED = ("refcoco/unc", "refcocoplus/unc", "refcocog/umd", "grefcoco/unc")


def find_mdetr_files(spec: DatasetSpec, annotations: Path) -> dict[str, Path]:
    """Find the files `finetune_<spec.folder>_<split>.json` in `annotations/<spec.folder>` or `annotations` itself.

    Returns:
        The paths by split; empty if there are no files, or if REFER's own files exist, too, because they contain more.
    """
    for folder in (annotations / spec.folder, annotations):
        if any(folder.glob(f"{spec.refs_prefix}({spec.split_by}).*")) or spec.dataset_id not in _CONVERTED:
            return {}
        paths = {split: find_file(folder, f"finetune_{spec.folder}_{split}.json") for split in spec.splits}
        if found := {split: path for split, path in paths.items() if path is not None}:
            return found
    return {}


def read_mdetr(spec: DatasetSpec, files: dict[str, Path]) -> RawSource:
    """Read files such as `finetune_refcoco_train.json`, in which `original_id` is COCO's id.

    The conversion removed ids and masks. Adjacent sentences with the same image and target become one ref. `sent_id` is
    the id of the image record whose `caption` is the sentence. `ref_id` is the `sent_id` of the ref's first sentence.
    Masks are read from COCO's `instances_train2014.json` or REFER's `instances.json` beside the files. Without either,
    targets are boxes.

    Raises:
        AnnotationError: If a file cannot be read as JSON.
    """
    folder = next(iter(files.values())).parent
    instances = next((path for name in _INSTANCES if (path := find_file(folder, name)) is not None), None)
    paths = [*files.values(), *([instances] if instances else [])]
    return RawSource(
        spec=spec,
        refs=_Refs(files),
        tables=_Tables(tuple(files.values()), instances),
        sources=tuple(describe_file(path, f"{spec.folder}/{path.name}") for path in paths),
        box_targets=instances is None,
    )


@dataclass(frozen=True, slots=True)
class _Refs:
    files: dict[str, Path]

    def __iter__(self) -> Iterator[Any]:
        for split, path in self.files.items():
            targets: dict[Any, tuple[Any, ...]] = {}  # by the sentence's record id
            for record in _records(path, "annotations"):
                key = _id(record, "image_id")
                targets[key] = (*targets.get(key, ()), _id(record, "original_id"))
            sentences = ((record, targets.get(_id(record, "id"), ())) for record in _records(path, "images"))
            for (image_id, ann_ids), group in groupby(sentences, lambda item: (_id(item[0], "original_id"), item[1])):
                found = [{"sent_id": _id(record, "id"), "sent": record.get("caption")} for record, _ in group]
                ref_id = found[0]["sent_id"]
                ref = {"ref_id": ref_id, "image_id": image_id, "ann_id": list(ann_ids), "split": split}
                yield ref | {"sentences": found}


@dataclass(frozen=True, slots=True)
class _Tables:
    files: tuple[Path, ...]
    instances: Path | None

    def __iter__(self) -> Iterator[tuple[str, Any]]:
        if self.instances is not None:
            yield from JsonTables(self.instances, required=(), optional=_SECTIONS)
            return
        seen: set[tuple[str, Any]] = set()
        for path in self.files:
            image_ids: dict[Any, Any] = {}  # by the sentence's record id
            for section in _SECTIONS:
                for record in _records(path, section):
                    if section == "images":
                        image_ids[_id(record, "id")] = _id(record, "original_id")
                    elif section == "annotations":
                        record["image_id"] = image_ids.get(_id(record, "image_id"))
                    record["id"] = _id(record, "original_id" if "original_id" in record else "id")
                    if record["id"] not in (None, -1) and (section, record["id"]) not in seen:
                        seen.add((section, record["id"]))
                        yield section, record


def _records(path: Path, section: str) -> Iterator[dict[str, Any]]:
    tables = JsonTables(path, required=(), optional=(section,))
    return (record for _, record in tables if isinstance(record, dict))


def _id(record: dict[str, Any], name: str) -> int | None:
    return whole_number(record.get(name))


def _read(spec: DatasetSpec, annotations: Path, options: ReadOptions) -> RawSource | None:  # noqa: ARG001
    files = find_mdetr_files(spec, annotations)
    return read_mdetr(spec, files) if files else None


READER = Reader(
    name="mdetr",
    reads="MDETR's finetune_<dataset>_<split>.json",
    serves=lambda spec: spec.dataset_id in _CONVERTED,
    read=_read,
)
