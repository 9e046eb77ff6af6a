"""Annotation files on disk: found by name, also misspelt ones; opened as plain bytes, also of gzip; hashed."""

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

ANNOTATION_SUFFIXES = (
    *(".p", ".json", ".jsonl", ".csv", ".p.gz", ".json.gz", ".jsonl.gz", ".csv.gz", ".parquet", ".txt"),
    ".png",  # masks of a user's own
)
"""Files that `local_annotations` copies."""
_GZIP_MARK = b"\x1f\x8b"
_UTF8_MARK = b"\xef\xbb\xbf"
_SUFFIX = re.compile(r"(\.(p|pkl|pickle|json|jsonl|csv|tsv|txt|parquet|xls|xlsx|gz|zip))+$")
_FORMS = {".pkl": ".p", ".pickle": ".p"}
"""Other suffixes of the same form."""
_CLOSE = 0.85
"""Names at least this much alike are taken for a slip: `ref(unc)` for `refs(unc)`, and not `refs(umd)`."""


@contextmanager
def local_annotations(address: Path | str, folder: str = "") -> Iterator[Path]:
    """A local folder with the annotation files of a folder, for readers that need real files.

    Of a URL or a ZIP archive, the small files (`ANNOTATION_SUFFIXES`) directly in it and in the folders one level below
    are copied to a temporary folder, which is gone afterwards. A path is given back as it is. The address may also be
    that of one file: it is then given with the small files beside it.

    Args:
        address: Path or URL of a folder, a file or an archive.
        folder: The dataset's own folder in REFER's layout: where it is not there and `<folder>.zip` is, the archive is
            read. Empty: no archive is looked for.

    Raises:
        UsageError: If the URL or archive holds no such file.
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
                f"{address}: found no annotation file ({kinds}) there or one folder below; is the address right?"
            )
        yield Path(temporary) / file


def _find_archive(address: Path | str, folder: str) -> Path | str:
    """The files in the archive that an address means: its own, or that of the dataset's folder where it is packed."""
    if archive_as_folder(address) != whole_address(address):
        return archive_as_folder(address)
    if folder:
        held = open_folder(address)
        if held.size(f"{folder}.zip") is not None and not open_folder(held.join(folder)).exists():
            return archive_as_folder(held.join(f"{folder}.zip"))
    return address


def find_file(folder: Path, name: str) -> Path | None:
    """The file of a name, or the same compressed, `<name>.gz`; None if there is neither."""
    return next((path for path in (folder / name, folder / f"{name}.gz") if path.is_file()), None)


@contextmanager
def open_source(path: Path) -> Iterator[BinaryIO]:
    """Open a file of annotations: unpacked where it is compressed with gzip, without a UTF-8 byte order mark.

    Raises:
        AnnotationError: On opening or reading, if the file cannot be read or unpacked, or is something else than data:
            a Git LFS pointer, a web page, an archive, UTF-16 (`find_stand_in`).
    """
    try:
        with path.open("rb") as packed:
            is_packed = packed.read(len(_GZIP_MARK)) == _GZIP_MARK
            packed.seek(0)
            with cast("BinaryIO", gzip.GzipFile(fileobj=packed)) if is_packed else packed as file:
                head = file.read(HEAD_BYTES)
                if stand_in := find_stand_in(head):
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
    """Hash an annotation file as it lies on disk.

    Args:
        path: Path of the file.
        name: What the descriptor calls it.

    Raises:
        AnnotationError: If it cannot be read.
    """
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            num_bytes = file.tell()
    except OSError as error:
        raise AnnotationError(f"{path}: cannot be read ({one_line(error)})") from error
    return SourceFile(name=name, num_bytes=num_bytes, sha256=digest)


def suggest_names(folders: Sequence[Path], wanted: Sequence[str]) -> str:
    """Name what lies in some folders under nearly a wanted name, as a text that continues a message.

    Args:
        folders: Looked through one level deep; those that do not exist hold nothing.
        wanted: Names of files or folders, in order of preference.

    Returns:
        For example `; did you mean RefCOCO? rename it to refcoco`; empty where nothing is alike.
    """
    found = {path.name for folder in folders if folder.is_dir() for path in folder.iterdir()} - set(wanted)
    by_key: dict[str, str] = {}
    for name in sorted(found):
        by_key.setdefault(_alike_key(name), name)
    for name in wanted:
        key = _alike_key(name)
        close = [key] if key in by_key else difflib.get_close_matches(key, by_key, n=1, cutoff=_CLOSE)
        if close:
            other = by_key[close[0]]
            form = _FORMS.get(_suffix(other), _suffix(other))
            meant = next((one for one in wanted if _alike_key(one) == key and Path(one).suffix == form), None)
            return f"; did you mean {other}? " + (f"rename it to {meant}" if meant else f"save it as {name}")
    return ""


def _alike_key(name: str) -> str:
    """Equal for names that differ in capitals, suffix and punctuation only."""
    return re.sub(r"[^a-z0-9+]", "", _SUFFIX.sub("", name.lower()))


def _suffix(name: str) -> str:
    """Of a file, in small letters, without the `.gz` of a compressed one."""
    return Path(name.lower().removesuffix(".gz")).suffix
