"""Reads the `refer` family: `refs(<split_by>).p` or `.json` beside COCO's `instances.json`."""

import hashlib
import io
import json
import pickle
from pathlib import Path
from typing import Any

from pipelines.sources.raw import RawDataset
from refseg.descriptor import SourceFile
from refseg.errors import AnnotationError, UsageError
from refseg.schema import DatasetSpec

# What a damaged pickle can make the C unpickler raise, as far as it is no `PickleError`.
_DAMAGED = (EOFError, ValueError, TypeError, AttributeError, LookupError, OverflowError, MemoryError, ImportError)


def find_refer_folder(spec: DatasetSpec, annotations: Path) -> Path:
    """Find the folder that holds a dataset's files: `annotations/<spec.folder>` or `annotations` itself.

    Raises:
        UsageError: If neither holds `refs(<split_by>).p` or `.json` beside `instances.json`.
    """
    if not annotations.is_dir():
        raise UsageError(
            f"--annotations {annotations}: no such folder; expected one that holds {spec.folder}/ in REFER's layout"
        )
    folders = [annotations / spec.folder, annotations]
    for folder in folders:
        if any(path.is_file() for path in _refs_files(spec, folder)):
            if not (folder / "instances.json").is_file():
                raise UsageError(f"{folder}: found no instances.json; take it and the refs from one release")
            return folder
    found = sorted(path.name for folder in folders if folder.is_dir() for path in folder.glob("refs(*).*"))
    raise UsageError(
        f"--annotations {annotations}: found {', '.join(found) or 'no refs file'}, expected "
        f"refs({spec.split_by}).p or .json for {spec.dataset_id}, there or in {spec.folder}/"
    )


def read_refer(spec: DatasetSpec, annotations: Path) -> RawDataset:
    """Read one dataset and partition in REFER's layout; the pickle is preferred where both forms are there.

    Args:
        spec: Dataset and partition.
        annotations: The root that holds `refcoco/`, `refcoco+/`, ..., or the dataset's own folder.

    Raises:
        UsageError: If the files are not there.
        AnnotationError: If a file cannot be read, is not of the expected form, or its pickle asks for code.
    """
    folder = find_refer_folder(spec, annotations)
    refs_path = next(path for path in _refs_files(spec, folder) if path.is_file())
    refs_data, refs_source = _read(refs_path, spec)
    instances_data, instances_source = _read(folder / "instances.json", spec)
    refs = load_plain_pickle(refs_data, refs_path) if refs_path.suffix == ".p" else _load_json(refs_data, refs_path)
    if not isinstance(refs, list):
        raise AnnotationError(f"{refs_path}: found a {type(refs).__name__}, expected a list of refs")
    instances = _load_json(instances_data, folder / "instances.json")
    tables = {
        name: _by_id(instances, name, folder / "instances.json", required=name in ("images", "annotations"))
        for name in ("images", "annotations", "categories", "licenses")
    }
    return RawDataset(
        spec=spec,
        refs=refs,
        images=tables["images"],
        annotations=tables["annotations"],
        categories={key: str(record.get("name", key)) for key, record in tables["categories"].items()},
        licences={
            key: " ".join(str(record[field]) for field in ("name", "url") if record.get(field))
            for key, record in tables["licenses"].items()
        },
        sources=(refs_source, instances_source),
    )


def load_plain_pickle(data: bytes, path: Path) -> Any:
    """Load a pickle of plain values (dict, list, str, numbers), of any protocol; nothing in it can run.

    Python 2's `str` is read as Latin-1, as REFER's users do.

    Args:
        data: Content of the file.
        path: Of the file, for messages.

    Raises:
        AnnotationError: If the pickle asks for any global (class or function), or is damaged.
    """
    try:
        return _PlainUnpickler(io.BytesIO(data), path).load()
    except (pickle.PickleError, *_DAMAGED) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise AnnotationError(f"{path}: cannot be read as a pickle of refs ({reason}); fetch the file again") from error


class _PlainUnpickler(pickle.Unpickler):
    """An unpickler without globals: a pickle runs code only through a global it names."""

    def __init__(self, file: io.BytesIO, path: Path) -> None:
        super().__init__(file, encoding="latin1")
        self._path = path

    def find_class(self, module: str, name: str) -> Any:
        raise AnnotationError(
            f"{self._path}: the pickle asks for {module}.{name}, expected plain dicts, lists, strings and numbers; "
            "it may run code when loaded elsewhere, do not use it"
        )

    def persistent_load(self, _pid: Any) -> Any:
        raise AnnotationError(
            f"{self._path}: the pickle asks for an outside object, expected plain dicts, lists, strings and numbers"
        )


def _refs_files(spec: DatasetSpec, folder: Path) -> tuple[Path, Path]:
    return folder / f"refs({spec.split_by}).p", folder / f"refs({spec.split_by}).json"


def _read(path: Path, spec: DatasetSpec) -> tuple[bytes, SourceFile]:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise AnnotationError(f"{path}: cannot be read ({error.strerror})") from error
    digest = hashlib.sha256(data).hexdigest()
    return data, SourceFile(name=f"{spec.folder}/{path.name}", num_bytes=len(data), sha256=digest)


def _load_json(data: bytes, path: Path) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise AnnotationError(f"{path}: cannot be read as JSON ({error}); fetch the file again") from error


def _by_id(instances: Any, name: str, path: Path, *, required: bool) -> dict[int, dict[str, Any]]:
    records = instances.get(name) if isinstance(instances, dict) else None
    if records is None and not required:
        return {}
    if not isinstance(records, list):
        raise AnnotationError(f"{path}: found no list {name!r}, expected COCO's images, annotations and categories")
    table: dict[int, dict[str, Any]] = {}
    for position, record in enumerate(records):
        key = record.get("id") if isinstance(record, dict) else None
        if not isinstance(key, int) or isinstance(key, bool):
            raise AnnotationError(f"{path}: {name}[{position}] has no whole number as its id")
        if table.setdefault(key, record) != record:
            raise AnnotationError(f"{path}: {name} has id {key} twice with different contents; fetch the file again")
    return table
