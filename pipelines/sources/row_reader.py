"""Makes a `Reader` from a function that turns one annotation file into rows.

This file contains the code that all layouts share, which finds files, splits and pictures. The module of a layout
contains only the function. `docs/write-a-reader.md` has an example.
"""

import hashlib
import logging
import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from pipelines.build_folder import BUILD_FOLDER
from pipelines.sources.custom_row import SPLITS
from pipelines.sources.raw import RawSource
from pipelines.sources.reader import Reader, ReadOptions, serves_custom
from pipelines.sources.row_source import collect_rows
from pipelines.sources.source_file import describe_file
from pipelines.sources.table import Row, RowFault
from refseg.dataset.descriptor import DESCRIPTOR_NAME, SourceFile
from refseg.dataset.schema import DatasetSpec
from refseg.errors import AnnotationError, UsageError
from refseg.wording import counted

logger = logging.getLogger(__name__)

Rows = Iterator[tuple[str, Row]]
"""Rows of one file, each with a location in the file such as `line 3`, `annotations[7]` or `image 'a.jpg'`."""

_NAMES_OF_SPLITS = {name.lower(): name for name in SPLITS} | {
    **dict.fromkeys(("valid", "validation"), "val"),
    "training": "train",
    "testing": "test",
}
_MOST_DESCRIBED = 20
"""Largest number of files that a dataset's descriptor lists one by one.

If there are more files, they become one entry.
"""


def row_reader(
    *,
    name: str,
    reads: str,
    suffixes: Sequence[str],
    rows: Callable[[Path], Rows],
    per_image: bool = False,
    prefix: str = "",
) -> Reader:
    """Make a reader of `custom/<name>` datasets.

    Args:
        name: Name of the reader for `--reader`.
        reads: Short description of the layout, for help and error messages.
        suffixes: Suffixes of the layout's files, such as `.json`. Files with an additional `.gz` are read, too.
        rows: Function that reads one file. It yields dicts with the columns of a table (`docs/your-own-data.md`), or
            `RowFault`s. A row without `split` gets the split of the file. `image` is relative to the pictures' folder
            or to the file's folder.
        per_image: True if each picture has its own file. Then only folders name splits, because a file `train.json` may
            describe a picture of a train.
        prefix: Prefix of the names of the layout's files. It is needed if a folder may also contain other files.
    """

    def read(spec: DatasetSpec, annotations: Path, options: ReadOptions) -> RawSource:
        root = annotations if annotations.is_dir() else annotations.parent
        files = _find_files(annotations, suffixes, prefix, f"{name}: {reads}")
        return collect_rows(
            spec,
            _rows_of_files(files, root, rows, options, per_image=per_image, is_alone=annotations.is_file()),
            origin=annotations,
            root=root,
            sources=_describe(files, root, spec),
            options=options,
        )

    return Reader(name=name, reads=reads, serves=serves_custom, read=read)


def find_split(path: PurePosixPath, *, per_image: bool = False) -> str:
    """Return the split in the name of a file or, without one, of the nearest folder; empty if no name contains a split.

    A name contains a split if one word in it is the name of a split, as in `refcoco_train.jsonl` or
    `valid/labels.json`. A name with two splits (`train_val.json`) counts as a name without a split.
    """
    stem = path.name.split(".json")[0].split(".xml")[0]
    for part in (*(() if per_image else (stem,)), *reversed(path.parts[:-1])):
        words = re.split(r"[^A-Za-z0-9]+", part)
        found = {_NAMES_OF_SPLITS[word.lower()] for word in words if word.lower() in _NAMES_OF_SPLITS}
        if found:
            return found.pop() if len(found) == 1 else ""
    return ""


def warn_left_out(path: Path, number: int, what: str) -> None:
    """Log a warning about items of a file that make no row.

    Args:
        path: Path of the file.
        number: Number of items. If it is 0, nothing is logged.
        what: Description of the items and the reason. It is appended to "left out 3 ".
    """
    if number:
        logger.warning("%s: left out %d %s", path, number, what)


def _find_files(annotations: Path, suffixes: Sequence[str], prefix: str, layout: str) -> list[Path]:
    """Return the given file, or all files of the layout below a folder, except hidden ones and built datasets."""
    endings = tuple(ending for suffix in suffixes for ending in (suffix, f"{suffix}.gz"))
    if annotations.is_file():
        if not annotations.name.lower().endswith(endings):
            raise UsageError(
                f"--annotations {annotations}: expected a file that ends in {', '.join(endings)} ({layout})"
            )
        return [annotations]
    if not annotations.is_dir():
        raise UsageError(f"--annotations {annotations}: no such file or folder; expected annotations ({layout})")
    files = []
    for folder, below, names in os.walk(annotations):
        below[:] = [name for name in below if not name.startswith(".")]
        if DESCRIPTOR_NAME in names or (Path(folder) / BUILD_FOLDER).is_dir():  # a dataset that was built here
            below.clear()
            continue
        wanted = (name for name in names if name.startswith(prefix) and name.lower().endswith(endings))
        files += [Path(folder, name) for name in wanted if not name.startswith(".")]
    files.sort()
    if not files:
        raise UsageError(
            f"--annotations {annotations}: found no file {prefix}*{f', {prefix}*'.join(endings)} there or below it "
            f"({layout})"
        )
    return files


def _rows_of_files(
    files: Sequence[Path],
    root: Path,
    rows: Callable[[Path], Rows],
    options: ReadOptions,
    *,
    per_image: bool,
    is_alone: bool,
) -> Rows:
    """Yield the rows of all files, with splits. Locations include the file's name, unless the user gave the file."""
    for path in files:
        relative = PurePosixPath(path.relative_to(root).as_posix())
        split = options.as_split or find_split(PurePosixPath(root.resolve().name) / relative, per_image=per_image)
        parent = relative.parent
        for place, row in rows(path):
            where = place if is_alone else f"{relative} {place}"
            if isinstance(row, RowFault):
                yield where, row
                continue
            if not row.get("split") and not split:
                raise UsageError(
                    f"{path}: its name says no split, expected a name such as train.json, or a folder train/ around "
                    "it; rename it, or give --as-split NAME"
                )
            own = {} if parent == PurePosixPath() else _beside(row.get("image"), parent, root)
            yield where, {"split": split, **{name: value for name, value in row.items() if value is not None}, **own}


def _beside(image: Any, parent: PurePosixPath, root: Path) -> dict[str, str]:
    """Return the field `image` with the path of a picture beside its annotation file; empty if it does not exist."""
    if isinstance(image, str) and "\0" not in image and (root / parent / image).is_file():
        return {"image": str(parent / image)}
    return {}


def _describe(files: Sequence[Path], root: Path, spec: DatasetSpec) -> list[SourceFile]:
    described = [describe_file(path, f"{spec.folder}/{path.relative_to(root).as_posix()}") for path in files]
    if len(described) <= _MOST_DESCRIBED:
        return described
    digest = hashlib.sha256("".join(f"{file.name}\0{file.sha256}\n" for file in described).encode(errors="replace"))
    return [
        SourceFile(
            name=f"{spec.folder}/{counted(len(described), 'file')}",
            num_bytes=sum(file.num_bytes for file in described),
            sha256=digest.hexdigest(),
        )
    ]


def refuse_layout(path: Path, found: str, expected: str) -> AnnotationError:
    """Return the error for a file that does not have the layout.

    Args:
        path: Path of the file.
        found: Content of the file.
        expected: Content that the layout requires.
    """
    return AnnotationError(f"{path}: found {found}, expected {expected}; is it another layout (--reader)?")
