"""Reads the Parquet datasets of jxu124 on the Hugging Face Hub: REFER's records, with COCO's records as text."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.sources.parquet_rows import parquet_columns, parquet_rows
from pipelines.sources.raw import RawSource
from pipelines.sources.reader import Reader, ReadOptions
from pipelines.sources.source_file import describe_file
from refseg.compat.refer_records import COCO_CATEGORIES
from refseg.dataset.schema import DatasetSpec
from refseg.errors import AnnotationError
from refseg.json_text import parse_json
from refseg.values import whole_number

_COLUMNS = ("ref_id", "ann_id", "image_id", "sentences", "raw_anns", "raw_image_info")
_SETS = ("refcoco/unc", "refcocoplus/unc", "refcocog/umd")
_NAMES = {"validation": "val"}
"""REFER's names of splits that have another name in these datasets. In a partition with testA, `test` means testA."""


def find_jxu124_files(spec: DatasetSpec, annotations: Path) -> dict[Path, str]:
    """Find the Parquet files in `annotations/<spec.folder>` or `annotations`, or in the subfolder `data/` of either.

    Returns:
        The split of each file, by path; empty if there are no Parquet files, or if REFER's own files exist, too.
    """
    for folder in (annotations / spec.folder, annotations):
        if any(folder.glob(f"{spec.refs_prefix}({spec.split_by}).*")):
            return {}
        for held in (folder, folder / "data"):
            files = sorted(held.glob("*-*-of-*.parquet"))
            found = {path: _split(path, spec) for path in files if set(_COLUMNS) <= set(parquet_columns(path))}
            if found:
                return found
    return {}


def read_jxu124(spec: DatasetSpec, files: dict[Path, str]) -> RawSource:
    """Read jxu124/refcoco, refcocoplus or refcocog. Ids, sentences and shapes are the same as in REFER's own files.

    These datasets do not contain categories, so COCO's names are used.

    Raises:
        AnnotationError: If a file cannot be read.
    """
    for path, split in files.items():
        if split not in spec.splits:
            raise AnnotationError(
                f"{path}: is of split {split!r}, expected {', '.join(spec.splits)} of {spec.dataset_id}; is it the "
                "file of another dataset?"
            )
    return RawSource(
        spec=spec,
        refs=_Refs(files),
        tables=_Tables(tuple(files)),
        sources=tuple(describe_file(path, f"{spec.folder}/{path.name}") for path in files),
    )


def _split(path: Path, spec: DatasetSpec) -> str:
    name = path.name.partition("-")[0]
    if name == "test" and "testA" in spec.splits:
        return "testA"
    return _NAMES.get(name, name)


@dataclass(frozen=True, slots=True)
class _Refs:
    files: dict[Path, str]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for path, split in self.files.items():
            for _, row in parquet_rows(path, ("ref_id", "ann_id", "image_id", "sentences")):
                yield row | {"split": split}


@dataclass(frozen=True, slots=True)
class _Tables:
    files: tuple[Path, ...]

    def __iter__(self) -> Iterator[tuple[str, dict[str, Any]]]:
        for number, name, _ in COCO_CATEGORIES:
            yield "categories", {"id": number, "name": name}
        seen: set[tuple[str, int | None]] = set()
        for path in self.files:
            for place, row in parquet_rows(path, ("raw_anns", "raw_image_info")):
                for section, column in (("images", "raw_image_info"), ("annotations", "raw_anns")):
                    record = _parse(path, place, column, row[column])
                    key = section, whole_number(record.get("id"))
                    if key not in seen:
                        seen.add(key)
                        yield section, record


def _parse(path: Path, place: str, column: str, text: Any) -> dict[str, Any]:
    try:
        record = parse_json(text)
    except (ValueError, TypeError) as error:
        raise AnnotationError(f"{path}: {place} has {column} that is not JSON; fetch the file again") from error
    if not isinstance(record, dict):
        raise AnnotationError(f"{path}: {place} has {column} that is not a record of COCO; fetch the file again")
    return record


def _read(spec: DatasetSpec, annotations: Path, options: ReadOptions) -> RawSource | None:  # noqa: ARG001
    files = find_jxu124_files(spec, annotations)
    return read_jxu124(spec, files) if files else None


READER = Reader(
    name="jxu124",
    reads="Parquet files of jxu124/refcoco, refcocoplus or refcocog",
    serves=lambda spec: spec.dataset_id in _SETS,
    read=_read,
)
