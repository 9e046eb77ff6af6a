"""Pictures that lie in Parquet files beside their annotations, written out as files."""

from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from pipelines.sources.parquet_rows import parquet_rows
from refseg.aside import write_aside
from refseg.errors import AnnotationError, UsageError


def picture_name(path: Path, number: int, image: Any) -> str:
    """File name of a row's picture: its own, without folders, or one of the file and the row.

    Args:
        path: The Parquet file.
        number: Position of the row in it, from 0.
        image: The `image` column of the row: a struct with `path`.
    """
    own = PurePosixPath(str(image.get("path") or "")).name if isinstance(image, dict) else ""
    is_plain = own.isprintable() and not own.startswith(".")  # it is a stranger's text that becomes a file's name
    return own if own and is_plain else f"{path.name.partition('.')[0]}-{number:06d}.jpg"


def unpack_images(files: list[Path], out: Path) -> Iterator[tuple[str, bool]]:
    """Write the pictures of Parquet files to a folder, as they are.

    Args:
        files: With a column `image` of `bytes` and `path`, as the Hugging Face Hub has it, or folders of such files.
        out: Folder for the pictures, made with the first one; what is there already with the same bytes is left.

    Yields:
        Each picture's name, and True if it was written.

    Raises:
        UsageError: If a folder holds no Parquet file.
        AnnotationError: If a file has no pictures, or two pictures have one name.
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
