"""Reads REFER's layout, for published and other datasets: `refs(<split_by>).p` or `.json` beside `instances.json`."""

import logging
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

from pipelines.sources.custom_row import SPLIT_NAME, SPLITS
from pipelines.sources.json_stream import JsonList, JsonTables
from pipelines.sources.plain_pickle import load_plain_pickle
from pipelines.sources.raw import RawSource, find_split
from pipelines.sources.reader import Reader, ReadOptions
from pipelines.sources.source_file import describe_file, find_file, open_source, suggest_names
from refseg.dataset.schema import ANY_REFER, CUSTOM, DatasetSpec
from refseg.errors import AnnotationError, UsageError

logger = logging.getLogger(__name__)

_INSTANCES = "instances.json"
_REFS_NAME = re.compile(r"(?P<prefix>[A-Za-z]*refs)\((?P<split_by>[^()]+)\)\.(p|json)(\.gz)?")
_MOST_SPLITS = 100
_MOST_COMPARED_BYTES = 200 * 10**6
"""Size in bytes of the largest JSON file that is compared with the pickle. A larger file would need too much time."""


def find_refer_folder(spec: DatasetSpec, annotations: Path) -> Path:
    """Find the folder that holds a dataset's files: `annotations/<spec.folder>` or `annotations` itself.

    Raises:
        UsageError: If neither folder holds `refs(<split_by>).p` or `.json` beside `instances.json`.
    """
    if not annotations.is_dir():
        raise UsageError(
            f"--annotations {annotations}: no such folder; expected one that holds {spec.folder}/ in REFER's layout"
        )
    folders = [annotations / spec.folder, annotations]
    for folder in folders:
        if _find_refs(spec, folder) is not None:
            if find_file(folder, _INSTANCES) is None:
                found = suggest_names([folder], [_INSTANCES]) or "; take it from the same release as the refs"
                raise UsageError(f"{folder}: found no {_INSTANCES}{found}")
            return folder
    found = ", ".join(sorted(path.name for folder in folders if folder.is_dir() for path in folder.glob("*refs(*).*")))
    wanted = _refs_names(spec)
    alike = suggest_names(folders, wanted) or suggest_names([annotations], [spec.folder])
    raise UsageError(
        f"--annotations {annotations}: found {found or 'no refs file'}, expected "
        f"{wanted[0]} or .json for {spec.dataset_id}, in that folder or in {spec.folder}/{alike}"
    )


def read_refer(spec: DatasetSpec, annotations: Path) -> RawSource:
    """Read one dataset and partition in REFER's layout.

    If both a pickle and a JSON file exist, the pickle is read. If their contents differ, a warning is logged.

    Args:
        spec: Dataset and partition.
        annotations: The folder that contains `refcoco/`, `refcoco+/`, ..., or the dataset's own folder.

    Raises:
        UsageError: If the files are missing.
        AnnotationError: If a file cannot be read, does not have the expected form, or is a pickle that needs code.
    """
    folder = find_refer_folder(spec, annotations)
    refs_path, instances_path = _find_refs(spec, folder), find_file(folder, _INSTANCES)
    assert refs_path is not None
    assert instances_path is not None
    sources = tuple(describe_file(path, f"{spec.folder}/{path.name}") for path in (refs_path, instances_path))
    refs: Iterable[Any] = JsonList(refs_path)
    if ".json" not in refs_path.suffixes:
        # A pickle can only be read as a whole; the published datasets have at most about 50,000 refs.
        with open_source(refs_path) as file:
            refs = load_plain_pickle(file.read(), refs_path)
        if not isinstance(refs, list):
            raise AnnotationError(f"{refs_path}: found a {type(refs).__name__}, expected a list of refs")
        _compare(refs, refs_path, find_file(folder, _refs_names(spec)[1]))
    return RawSource(
        spec=spec,
        refs=refs,
        tables=JsonTables(instances_path, required=("images", "annotations"), optional=("categories", "licenses")),
        sources=sources,
    )


def read_zom(spec: DatasetSpec, annotations: Path) -> RawSource:
    """Read `ref-zom/refs(final).p`, the name that the authors ask users to give to `Ref-ZOM(final).p`.

    A ref whose `source` is `zero` has no target, whatever its `ann_id` is (DMMI, `refer.py`, `getMask`).

    Raises:
        UsageError: If the files are missing.
        AnnotationError: If a file cannot be read or does not have the expected form.
    """
    raw = read_refer(spec, annotations)
    return replace(raw, refs=_ZomRefs(raw.refs))


@dataclass(frozen=True, slots=True)
class _ZomRefs:
    """The refs of Ref-ZOM, with the targets of refs whose `source` is `zero` removed."""

    refs: Iterable[Any]

    def __iter__(self) -> Iterator[Any]:
        for ref in self.refs:
            yield {**ref, "ann_id": -1} if isinstance(ref, dict) and ref.get("source") == "zero" else ref


def _refs_names(spec: DatasetSpec) -> tuple[str, str]:
    """Return the names of the refs file as a pickle and as JSON; the pickle is preferred."""
    return f"{spec.refs_prefix}({spec.split_by}).p", f"{spec.refs_prefix}({spec.split_by}).json"


def _find_refs(spec: DatasetSpec, folder: Path) -> Path | None:
    return next((path for name in _refs_names(spec) if (path := find_file(folder, name)) is not None), None)


def read_any_refer(spec: DatasetSpec, annotations: Path) -> RawSource:
    """Read a dataset of any name in REFER's layout: `refs(<split_by>).p` or `.json` beside `instances.json`.

    The image ids are not COCO's. The splits are those that the refs name, known splits first.

    Args:
        spec: Specification of `refer/<name>`.
        annotations: The folder that contains `<name>/`, or the dataset's own folder. If the dataset's folder contains
            several partitions, the refs file.

    Raises:
        UsageError: If the files are missing, or there are several partitions.
        AnnotationError: If a file cannot be read, does not have the expected form, or is a pickle that needs code.
    """
    refs = annotations if annotations.is_file() else _find_any_refs(spec, annotations)
    match = _REFS_NAME.fullmatch(refs.name)
    if match is None:
        raise UsageError(f"--annotations {annotations}: expected a name such as refs(unc).p or refs(unc).json")
    named = replace(spec, refs_prefix=match["prefix"], split_by=match["split_by"])
    raw = read_refer(named, refs.parent)
    splits = Counter(split for ref in raw.refs if (split := find_split(ref)) is not None)
    known = [split for split in splits if re.fullmatch(SPLIT_NAME, split)]
    if not 0 < len(known) <= _MOST_SPLITS:
        raise AnnotationError(f"{refs}: its refs name {len(known)} splits, expected 1 to {_MOST_SPLITS}, such as train")
    ordered = (*(split for split in SPLITS if split in known), *sorted(set(known) - set(SPLITS)))
    return replace(raw, spec=replace(spec, splits=ordered))


def _find_any_refs(spec: DatasetSpec, annotations: Path) -> Path:
    for folder in (annotations / spec.folder, annotations):
        files = sorted(path for path in folder.glob("*refs(*).*") if _REFS_NAME.fullmatch(path.name))
        partitions = {path.name.partition(".")[0]: path for path in reversed(files)}
        if len(partitions) > 1:
            found = ", ".join(path.name for path in files)
            raise UsageError(f"--annotations {folder}: found {found}, expected one partition; name the file itself")
        if partitions:
            return next(iter(partitions.values()))
    raise UsageError(
        f"--annotations {annotations}: found no refs(<name of a partition>).p or .json, there or in {spec.folder}/"
        f"{suggest_names([annotations], [spec.folder])}"
    )


def _compare(refs: list[Any], refs_path: Path, json_path: Path | None) -> None:
    """Log a warning if the JSON file beside the pickle has other refs."""
    if json_path is None or json_path.stat().st_size >= _MOST_COMPARED_BYTES:
        return
    try:
        pairs = enumerate(zip_longest(refs, JsonList(json_path)))
        position = next((position for position, (one, other) in pairs if one != other), None)
        found = "" if position is None else f"differs from it at refs[{position}]"
    except AnnotationError as error:
        found = f"cannot be read ({error})"
    if found:
        logger.warning("%s is used, but %s beside it %s; delete the wrong file", refs_path, json_path.name, found)


def _read(spec: DatasetSpec, annotations: Path, options: ReadOptions) -> RawSource:  # noqa: ARG001
    if spec.dataset == ANY_REFER:
        return read_any_refer(spec, annotations)
    return read_zom(spec, annotations) if spec.dataset == "refzom" else read_refer(spec, annotations)


READER = Reader(
    name="refer",
    reads="REFER's refs(<split_by>).p or .json beside instances.json",
    serves=lambda spec: spec.dataset != CUSTOM,
    read=_read,
)
