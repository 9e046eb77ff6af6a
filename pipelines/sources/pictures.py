"""Writes pictures that are stored in Parquet files to a folder."""

from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from pipelines.sources.parquet_rows import parquet_rows
from refseg.aside import write_aside
from refseg.errors import AnnotationError, UsageError


def picture_name(path: Path, number: int, image: Any) -> str:
    """Return the file name of a row's picture: its stored name without folders, or a name made from file and row.

    Args:
        path: Path of the Parquet file.
        number: Position of the row in the file, from 0.
        image: Value of the row's column `image`: a struct with `path`.
    """
    own = PurePosixPath(str(image.get("path") or "")).name if isinstance(image, dict) else ""
    is_plain = own.isprintable() and not own.startswith(".")  # the name comes from an untrusted file
    return own if own and is_plain else f"{path.name.partition('.')[0]}-{number:06d}.jpg"


def unpack_images(files: list[Path], out: Path) -> Iterator[tuple[str, bool]]:
    """Write the pictures of Parquet files to a folder, without changing any bytes.

    Args:
        files: Parquet files, or folders of them, with a column `image` of `bytes` and `path`, as on the Hugging Face
            Hub.
        out: Folder for the pictures. It is created with the first picture. Existing files with the same bytes are kept.

    Yields:
        The name of each picture, and True if it was written.

    Raises:
        UsageError: If a folder holds no Parquet file.
        AnnotationError: If a file has no pictures, or two pictures have the same name.
    """
    for path in files:
        if path.is_dir():
            found = sorted(path.rglob("*.parquet"))
            if not found:
                raise UsageError(f"{path}: found no Parquet file, there or below")
            yield from unpack_images(found, out)
            continue
        for number, (place, row) in enumerate(parquet_rows(path, ("image",))):
            image = row["image"]
            data = image.get("bytes") if isinstance(image, dict) else None
            if not isinstance(data, bytes):
                raise AnnotationError(f"{path}: {place} has no picture in column image, expected bytes and path")
            name = picture_name(path, number, image)
            yield name, _write(out / name, data, f"{path} {place}")


def _write(target: Path, data: bytes, place: str) -> bool:
    if target.exists():
        if target.read_bytes() == data:
            return False
        raise AnnotationError(f"{place}: its picture is called {target.name}, and {target} is another one")
    target.parent.mkdir(parents=True, exist_ok=True)
    write_aside(target, data)
    return True
