"""Finds, opens and hashes annotation files, including gzip files, and suggests names for misspelt ones."""

import difflib
import gzip
import hashlib
import re
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast

from refseg.dataset.descriptor import SourceFile
from refseg.errors import AnnotationError, UsageError
from refseg.file_kinds import HEAD_BYTES, find_stand_in
from refseg.storage import (
    RemoteFolder,
    archive_as_folder,
    is_remote,
    open_folder,
    split_address,
    whole_address,
)
from refseg.values import one_line

_TEXT_SUFFIXES = (".p", ".json", ".jsonl", ".csv", ".xml")
ANNOTATION_SUFFIXES = (
    *_TEXT_SUFFIXES,
    *(f"{suffix}.gz" for suffix in _TEXT_SUFFIXES),
    ".parquet",
    ".txt",
    ".png",  # masks of a user's own table
)
"""Suffixes of the files that `local_annotations` copies."""
_GZIP_MARK = b"\x1f\x8b"
_UTF8_MARK = b"\xef\xbb\xbf"
_SUFFIX = re.compile(r"(\.(p|pkl|pickle|json|jsonl|csv|tsv|txt|parquet|xls|xlsx|gz|zip))+$")
_FORMS = {".pkl": ".p", ".pickle": ".p"}
"""Suffixes that mean the same format."""
_CLOSE = 0.85
"""Similarity from which a name counts as a misspelling: `ref(unc)` for `refs(unc)`, but not `refs(umd)`."""


@contextmanager
def local_annotations(address: Path | str, folder: str = "") -> Iterator[Path]:
    """Yield a local path to annotation files, for readers that need files on disk.

    A path is yielded unchanged. For a URL or a ZIP archive, the files with `ANNOTATION_SUFFIXES` in the folder and one
    level below are copied to a temporary folder, which is removed at the end of the block. If the address names a
    single file, the files beside it are copied, too, and the result is the path of the single file's copy.

    Args:
        address: Path or URL of a folder, a file or an archive.
        folder: Name of the dataset's own folder in REFER's layout. If `<folder>.zip` exists and the folder does not,
            the archive is read. If empty, no archive is searched.

    Raises:
        UsageError: If the URL or archive contains no annotation file.
        StorageError: If storage refuses or fails, or the archive is damaged.
    """
    found = _find_archive(address, folder)
    if not is_remote(found):
        yield Path(found)
        return
    top, file = open_folder(found), ""
    assert isinstance(top, RemoteFolder)
    if not top.exists() and "/" in top.address.partition("://")[2]:
        parent, file = split_address(top.address)
        top = RemoteFolder(parent)
    with tempfile.TemporaryDirectory(prefix="refseg-annotations-") as temporary:
        copied: set[str] = set()
        for below in ("", *(() if file else top.folders())):
            held = open_folder(top.join(below)) if below else top
            assert isinstance(held, RemoteFolder)
            for name in held.list():
                if name.lower().endswith(ANNOTATION_SUFFIXES):
                    (Path(temporary) / below).mkdir(exist_ok=True)
                    held.fetch(name, Path(temporary) / below / name)
                    copied.add(f"{below}/{name}".lstrip("/"))
        if not copied or (file and file not in copied):
            kinds = ", ".join(ANNOTATION_SUFFIXES)
            raise UsageError(
                f"{address}: found no annotation file ({kinds}) there or one folder below; check the address"
            )
        yield Path(temporary) / file


def _find_archive(address: Path | str, folder: str) -> Path | str:
    """Return the address of the files in an archive: the given archive, or `<folder>.zip` if the folder is missing."""
    if archive_as_folder(address) != whole_address(address):
        return archive_as_folder(address)
    if folder:
        held = open_folder(address)
        if held.size(f"{folder}.zip") is not None and not open_folder(held.join(folder)).exists():
            return archive_as_folder(held.join(f"{folder}.zip"))
    return address


def find_file(folder: Path, name: str) -> Path | None:
    """Return the path of `<name>` or, if that does not exist, `<name>.gz`; None if neither exists."""
    return next((path for path in (folder / name, folder / f"{name}.gz") if path.is_file()), None)


@contextmanager
def open_source(path: Path, *, is_xml: bool = False) -> Iterator[BinaryIO]:
    """Open an annotation file for reading. Gzip is unpacked, and a UTF-8 byte order mark is skipped.

    Args:
        path: Path of the file.
        is_xml: True for a file that should be XML.

    Raises:
        AnnotationError: On opening or reading, if the file cannot be read or unpacked, or if it is another kind of
            file: a Git LFS pointer, a web page, an archive or UTF-16 (`find_stand_in`).
    """
    try:
        with path.open("rb") as packed:
            is_packed = packed.read(len(_GZIP_MARK)) == _GZIP_MARK
            packed.seek(0)
            with cast("BinaryIO", gzip.GzipFile(fileobj=packed)) if is_packed else packed as file:
                head = file.read(HEAD_BYTES)
                if stand_in := find_stand_in(head, is_xml=is_xml):
                    raise AnnotationError(f"{path}: {stand_in}")
                file.seek(len(_UTF8_MARK) if head.startswith(_UTF8_MARK) else 0)
                yield file
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise AnnotationError(
            f"{path}: cannot be unpacked with gzip ({one_line(error)}); fetch the file again"
        ) from error
    except OSError as error:
        raise AnnotationError(f"{path}: cannot be read ({one_line(error)})") from error


def describe_file(path: Path, name: str) -> SourceFile:
    """Return the size and hash of an annotation file, without unpacking it.

    Args:
        path: Path of the file.
        name: Name of the file in the descriptor.

    Raises:
        AnnotationError: If the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            num_bytes = file.tell()
    except OSError as error:
        raise AnnotationError(f"{path}: cannot be read ({one_line(error)})") from error
    return SourceFile(name=name, num_bytes=num_bytes, sha256=digest)


def suggest_names(folders: Sequence[Path], wanted: Sequence[str]) -> str:
    """Find a file or folder whose name is similar to a wanted one, and return text to append to a message.

    Args:
        folders: Folders to search, one level deep. Folders that do not exist are skipped.
        wanted: Names of files or folders, in order of preference.

    Returns:
        Text such as `; did you mean RefCOCO? rename it to refcoco`; empty if no name is similar.
    """
    found = {path.name for folder in folders if folder.is_dir() for path in folder.iterdir()} - set(wanted)
    by_key: dict[str, str] = {}
    for name in sorted(found):
        by_key.setdefault(_spelling_key(name), name)
    for name in wanted:
        key = _spelling_key(name)
        close = [key] if key in by_key else difflib.get_close_matches(key, by_key, n=1, cutoff=_CLOSE)
        if close:
            other = by_key[close[0]]
            form = _FORMS.get(_suffix(other), _suffix(other))
            meant = next((one for one in wanted if _spelling_key(one) == key and Path(one).suffix == form), None)
            return f"; did you mean {other}? " + (f"rename it to {meant}" if meant else f"save it as {name}")
    return ""


def _spelling_key(name: str) -> str:
    """Return a key that is equal for names that differ only in capitals, suffix and punctuation."""
    return re.sub(r"[^a-z0-9+]", "", _SUFFIX.sub("", name.lower()))


def _suffix(name: str) -> str:
    """Return the suffix of a file name in lower case, without the `.gz` of a compressed file."""
    return Path(name.lower().removesuffix(".gz")).suffix
