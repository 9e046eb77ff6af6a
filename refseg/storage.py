"""Reads, lists, publishes and removes files in a folder, which is local or at any fsspec URL.

A published file becomes visible as a whole. A local file is written under a temporary name, flushed and renamed. An
object is uploaded by one request, which object stores show only when it is complete. Requests to remote storage go
through `refseg.storage_requests`.
"""

import errno
import functools
import os
import shutil
import threading
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from http import HTTPStatus
from pathlib import Path
from typing import Any, NamedTuple, TypeVar
from urllib.parse import quote, unquote

from refseg.addresses import is_remote as is_remote
from refseg.addresses import parse_address
from refseg.addresses import whole_address as whole_address
from refseg.aside import file_aside, sync_path
from refseg.errors import StorageError
from refseg.http_file import FilePart, HttpFile
from refseg.storage_requests import ask, http_status, open_file_system
from refseg.zip_archive import ZipMember, read_directory, read_member

T = TypeVar("T")

_RENAMING = frozenset({"file", "local", "sftp", "ssh", "smb", "hdfs", "webhdfs", "arrow_hdfs"})
"""Protocols of file systems, where an unfinished upload is visible and a rename is atomic. In object stores an upload
is atomic, and a rename is a copy."""


class Folder(ABC):
    """A folder in local or remote storage. Names are relative to it and may hold `/`.

    Reading raises `FileNotFoundError` if the file does not exist, and another `OSError` if storage fails.
    """

    address: str

    def __str__(self) -> str:
        return self.address

    @abstractmethod
    def join(self, name: str) -> str:
        """Return the address of a file or folder in this folder; `..` leads to the parent folder."""

    @abstractmethod
    def exists(self) -> bool:
        """Return True if the folder exists; in an object store, if it holds at least one object."""

    @abstractmethod
    def list(self, known: Iterable[str] = ()) -> dict[str, int]:
        """Return the names of the files directly in this folder with their sizes in bytes.

        The result is empty if the folder does not exist.

        Args:
            known: Names of files to ask for where storage cannot list a folder.
        """

    @abstractmethod
    def size(self, name: str) -> int | None:
        """Return the size of a file in bytes; None if the file does not exist."""

    @abstractmethod
    def read(self, name: str, start: int = 0, length: int | None = None) -> bytes:
        """Return at most `length` bytes of a file from offset `start`; all from there on if `length` is None."""

    @abstractmethod
    def publish(self, temporary: Path, name: str) -> None:
        """Move a finished local file into this folder; its name becomes visible only with the whole content."""

    @abstractmethod
    def remove(self, name: str) -> None:
        """Remove a file, or a folder with its content; nothing happens if it does not exist."""


def open_folder(address: Path | str) -> Folder:
    """Return the folder at a path, in which `~` is expanded, or at a URL; the folder need not exist.

    Raises:
        UsageError: If `parse_address` refuses the address.
    """
    parsed = parse_address(address)
    if isinstance(parsed, Path):
        return LocalFolder(parsed)
    if parsed.startswith("zip://") and parsed.count("::") == 1:
        return ZipFolder(parsed)
    is_web = parsed.startswith(_WEB) and "::" not in parsed
    return WebFolder(parsed) if is_web else RemoteFolder(parsed)


def archive_as_folder(address: Path | str) -> str:
    """The address of the files in a ZIP archive, `zip://::ARCHIVE`; any other address as `whole_address` gives it."""
    whole = whole_address(address)
    is_archive = whole.lower().endswith(".zip") and "::" not in whole and (is_remote(whole) or Path(whole).is_file())
    return f"zip://::{whole}" if is_archive else whole


class LocalFolder(Folder):
    """A folder of this machine's file systems."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.address = str(path)

    def join(self, name: str) -> str:
        return os.path.normpath(self.path / name)

    def exists(self) -> bool:
        return self.path.is_dir()

    def list(self, known: Iterable[str] = ()) -> dict[str, int]:  # noqa: ARG002
        try:
            with os.scandir(self.path) as entries:
                return {entry.name: entry.stat().st_size for entry in entries if entry.is_file()}
        except (FileNotFoundError, NotADirectoryError):
            return {}

    def size(self, name: str) -> int | None:
        path = self.path / name
        try:
            return path.stat().st_size if path.is_file() else None
        except OSError as error:
            if error.errno == errno.ENAMETOOLONG:  # no file can have such a long name, so none exists
                return None
            raise

    def read(self, name: str, start: int = 0, length: int | None = None) -> bytes:
        with (self.path / name).open("rb") as file:
            if start:  # a pipe cannot be sought
                file.seek(start)
            return file.read(-1 if length is None else length)

    def publish(self, temporary: Path, name: str) -> None:
        # The content is flushed before the rename: after a power failure, a rename that reached the disk without it
        # would leave an empty file under the final name.
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        final = self.path / name
        temporary.replace(final)
        sync_path(final.parent)

    def remove(self, name: str) -> None:
        path = self.path / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.is_symlink() or path.exists():  # a read-only file system refuses to remove even a missing file
            path.unlink(missing_ok=True)


class RemoteFolder(Folder):
    """A folder at an fsspec URL.

    Every method raises `StorageError`, an `OSError`, if storage refuses the request or fails on every try. The object
    holds only the address: fsspec gives each process and thread its own client, and the object can be pickled.
    """

    def __init__(self, address: str) -> None:
        self.address = address.rstrip("/") if not address.endswith("://") else address

    def join(self, name: str) -> str:
        own, chain, archive = self.address.partition("::")  # `zip://folder::s3://bucket/file.zip`
        scheme, _, path = own.partition("://")
        joined = os.path.normpath(f"{path}/{name}")
        # A bucket has no parent folder, so `..` stops there, as it does at `/`.
        below = path.split("/")[0] if joined in (".", "..") or joined.startswith("../") else joined
        return f"{scheme}://{below}{chain}{archive}"

    def exists(self) -> bool:
        return self._info("") == ("directory", 0)

    def list(self, known: Iterable[str] = ()) -> dict[str, int]:  # noqa: ARG002
        return {name: size for name, (kind, size) in self._entries().items() if kind == "file"}

    def folders(self) -> tuple[str, ...]:
        """Return the sorted names of the folders directly in this folder; empty if this folder does not exist."""
        return tuple(sorted(name for name, (kind, _) in self._entries().items() if kind == "directory"))

    def size(self, name: str) -> int | None:
        found = self._info(name)
        return found[1] if found is not None and found[0] == "file" else None

    def read(self, name: str, start: int = 0, length: int | None = None) -> bytes:
        if length == 0:
            return b""

        def request(files: Any, path: str) -> bytes:
            try:
                # With an explicit start, even 0, s3fs sends one request; without it, a request for the size precedes.
                end = None if length is None else start + length
                return bytes(files.cat_file(path, start=start, end=end, **_exactly(files)))
            except OSError as error:
                # Object stores refuse a range that begins at or after the end (416); a local file returns no bytes.
                if error.errno == errno.EINVAL and start >= int(files.info(path)["size"]):
                    return b""
                raise

        return self._ask("reading", name, request)

    def fetch(self, name: str, path: Path) -> None:
        """Copy a file to a local path, where it becomes visible only when it is complete.

        Raises:
            FileNotFoundError: If the file does not exist.
            StorageError: If storage refuses the request or fails on every try.
        """
        with file_aside(path, is_shared=True) as aside:

            def request(files: Any, remote: str) -> None:
                files.get_file(remote, str(aside))
                _compare_sizes(self.size(name), aside.stat().st_size)

            self._ask("reading", name, request)

    def publish(self, temporary: Path, name: str) -> None:
        num_bytes = temporary.stat().st_size

        def request(files: Any, path: str) -> None:
            if not _RENAMING.isdisjoint([files.protocol] if isinstance(files.protocol, str) else files.protocol):
                parent, _, last = path.rpartition("/")
                files.makedirs(parent, exist_ok=True)
                upload = f"{parent}/tmp-{last}"
                files.put_file(str(temporary), upload)
                files.mv(upload, path)
            else:
                files.put_file(str(temporary), path)
            _compare_sizes(num_bytes, self.size(name))

        try:
            self._ask("writing", name, request)
        except FileNotFoundError as error:
            message = "cannot be written: there is no such bucket; make it, or give another address"
            raise StorageError(errno.ENOENT, message, self.join(name)) from error
        temporary.unlink()

    def remove(self, name: str) -> None:
        def request(files: Any, path: str) -> None:
            files.rm(path, recursive=True)
            if self._info(name) is not None:  # s3fs raises no error for objects that the server did not delete
                raise OSError(errno.EIO, "still there after it was removed")

        if self._info(name) is not None:
            with suppress(FileNotFoundError):  # an earlier try removed it, but the answer of the server was lost
                self._ask("removing", name, request)

    def _info(self, name: str) -> tuple[str, int] | None:
        """Return kind (`file` or `directory`) and bytes of an entry of this folder; None if it does not exist."""

        def request(files: Any, path: str) -> tuple[str, int]:
            files.invalidate_cache(path)
            info = files.info(path)
            return str(info["type"]), int(info["size"] or 0) if info["type"] == "file" else 0

        try:
            return self._ask("reading", name, request)
        except FileNotFoundError:
            return None

    def _entries(self) -> dict[str, tuple[str, int]]:
        """Return kind and size in bytes of the entries directly in this folder, by name."""

        def request(files: Any, path: str) -> dict[str, tuple[str, int]]:
            found = {}
            files.invalidate_cache(path)
            for entry in files.ls(path, detail=True):
                parent, _, name = entry["name"].rstrip("/").rpartition("/")
                if parent == path.rstrip("/"):  # leaves out the empty object that some stores keep for a folder
                    found[name] = (str(entry["type"]), int(entry["size"] or 0))
            return found

        if not self.exists():  # for a missing folder, s3fs would list the whole parent folder
            return {}
        try:
            return self._ask("listing", "", request)
        except FileNotFoundError:
            return {}

    def _path(self, root: str, name: str) -> str:
        """Return the file system's path of an entry of this folder; `root` is the path of the folder."""
        return os.path.normpath(f"{root.rstrip('/')}/{name}") if name else root

    def _ask(self, what: str, name: str, request: Callable[[Any, str], T]) -> T:
        """Run `request(file system, path)` by `storage_requests.ask`, which repeats it after passing failures."""

        def call() -> T:
            files, root = open_file_system(self.address)
            return request(files, self._path(root, name))

        return ask(what, self.join(name), call)


def _exactly(files: Any) -> dict[str, str]:
    """How a file system is told to read a range and nothing more: the Hub's would read 5 MB behind it."""
    return {"cache_type": "none"} if "hf" in files.protocol else {}


class WebFolder(RemoteFolder):
    """A folder on a web server (`http:`, `https:`), which can only be read.

    A web server may show a folder as a page of links, or not show it at all. `list` returns the linked files and those
    of the caller's known names that exist. The size of each file takes a request of its own.
    """

    def exists(self) -> bool:
        try:
            return self._info("") is not None
        except StorageError as error:
            return error.errno == errno.EACCES  # a folder whose page is forbidden may still hold files

    def list(self, known: Iterable[str] = ()) -> dict[str, int]:
        names = sorted({*known, *(name for name, (kind, _) in self._entries().items() if kind == "file")})
        with ThreadPoolExecutor(max_workers=16) as pool:
            sizes = dict(zip(names, pool.map(self.size, names), strict=True))
        return {name: size for name, size in sizes.items() if size is not None}

    def read(self, name: str, start: int = 0, length: int | None = None) -> bytes:
        if length == 0:
            return b""
        end = None if length is None else start + length

        def request(files: Any, path: str) -> bytes:
            try:
                data = bytes(files.cat_file(path, start=start, end=end) if start or end else files.cat_file(path))
            except Exception as error:
                if http_status(error) == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
                    return b""
                raise
            # A server that does not support ranges sends the whole file.
            return data[start:end] if length is not None and len(data) > length else data

        return self._ask("reading", name, request)

    def publish(self, temporary: Path, name: str) -> None:  # noqa: ARG002
        raise StorageError(errno.EROFS, _READ_ONLY, self.join(name))

    def remove(self, name: str) -> None:
        if self._info(name) is not None:
            raise StorageError(errno.EROFS, _READ_ONLY, self.join(name))

    def _path(self, root: str, name: str) -> str:
        return f"{self.join('')}/{quote(name)}" if name else root

    def _info(self, name: str) -> tuple[str, int] | None:
        def request(files: Any, path: str) -> tuple[str, int]:
            try:
                size = files.info(path)["size"]
            except FileNotFoundError as error:  # fsspec raises this error for every failure; its cause has the status
                if error.__cause__ is None or http_status(error.__cause__) in _NOT_THERE:
                    raise
                raise error.__cause__ from error
            return "file", len(files.cat_file(path)) if size is None else int(size)

        try:
            return self._ask("reading", name, request)
        except FileNotFoundError:
            return None

    def _entries(self) -> dict[str, tuple[str, int]]:
        def request(files: Any, path: str) -> dict[str, tuple[str, int]]:
            try:
                links = files.ls(f"{path.rstrip('/')}/", detail=True)
            except Exception as error:
                if http_status(error) in (HTTPStatus.FORBIDDEN, *_NOT_THERE):
                    return {}
                raise
            names = {unquote(link["name"].removeprefix(f"{path.rstrip('/')}/")): link["type"] for link in links}
            found = {
                name.rstrip("/"): (str(kind), 0) for name, kind in names.items() if not name.startswith(("?", "#"))
            }
            return {name: entry for name, entry in found.items() if name and "/" not in name}

        try:
            return self._ask("listing", "", request)
        except FileNotFoundError:
            return {}


class ZipFolder(RemoteFolder):
    """A folder in a ZIP archive, `zip://FOLDER::ARCHIVE`, which is read by byte ranges and cannot be written.

    `ARCHIVE` is a path or a URL. Its directory is read once in each process. A file that is read as a whole is compared
    with its checksum in the archive.
    """

    def __init__(self, address: str) -> None:
        super().__init__(address)
        own, _, self.archive = self.address.partition("::")
        self._inner = own.removeprefix("zip://").strip("/")

    def join(self, name: str) -> str:
        return f"zip://{self._path(self._inner, name)}::{self.archive}"

    def read(self, name: str, start: int = 0, length: int | None = None) -> bytes:
        path = self._path(self._inner, name)

        def request() -> bytes:
            member = _open_archive(self.archive).members.get(path)
            if member is None:
                raise FileNotFoundError
            return read_member(open_file(self.archive), member, start, length)

        if is_remote(self.archive):
            return ask("reading", self.join(name), request)
        try:
            return request()
        except FileNotFoundError as error:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), self.join(name)) from error

    def fetch(self, name: str, path: Path) -> None:
        with file_aside(path, is_shared=True) as aside:
            aside.write_bytes(self.read(name))

    def publish(self, temporary: Path, name: str) -> None:  # noqa: ARG002
        raise StorageError(errno.EROFS, _IN_ARCHIVE, self.join(name))

    def remove(self, name: str) -> None:
        if self._info(name) is not None:
            raise StorageError(errno.EROFS, _IN_ARCHIVE, self.join(name))

    def _info(self, name: str) -> tuple[str, int] | None:
        path = self._path(self._inner, name).strip("/")
        if not path:
            return ("directory", 0) if self._folders() else None
        parent, _, last = path.rpartition("/")
        return self._folders().get(parent, {}).get(last)

    def _entries(self) -> dict[str, tuple[str, int]]:
        return dict(self._folders().get(self._inner, {}))

    def _path(self, root: str, name: str) -> str:
        path = os.path.normpath(f"{root}/{name}").lstrip("/")
        return "" if path == "." else path

    def _folders(self) -> dict[str, dict[str, tuple[str, int]]]:
        """Return the entries directly in each folder of the archive; empty if the archive does not exist."""
        try:
            return _open_archive(self.archive).folders
        except FileNotFoundError:
            return {}


class _Archive(NamedTuple):
    """The directory of an archive: its files, and kind and bytes of the entries of each folder."""

    members: dict[str, ZipMember]
    folders: dict[str, dict[str, tuple[str, int]]]


class FolderFile:
    """A file in a folder, read by byte ranges as `HttpFile` reads one of a web server.

    Args:
        address: Its path or URL.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        folder, self._name = split_address(address)
        self._folder = open_folder(folder or "/")

    @contextmanager
    def open_part(self, start: int = 0) -> Iterator[FilePart]:
        """Read the bytes from `start`, in parts of some megabytes.

        Raises:
            FileNotFoundError: If there is no such file.
            OSError: If it cannot be read; `StorageError` for a URL.
        """
        num_bytes = self.size()
        starts = range(start, num_bytes, _PART_BYTES)
        chunks = (self._folder.read(self._name, offset, _PART_BYTES) for offset in starts)
        yield FilePart(start, num_bytes, is_whole=False, chunks=chunks)

    def size(self) -> int:
        """Bytes of the file.

        Raises:
            FileNotFoundError: If there is no such file.
        """
        if (num_bytes := self._folder.size(self._name)) is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), self.address)
        return num_bytes

    def read(self, start: int, length: int) -> bytes:
        """The bytes from `start`, `length` of them."""
        return self._folder.read(self._name, start, length)


def open_file(address: str) -> HttpFile | FolderFile:
    """A file by its path or URL, to be read by byte ranges; no request is made before it is read."""
    is_web = address.startswith(_WEB) and "::" not in address
    return HttpFile(address) if is_web else FolderFile(address)


def _open_archive(address: str) -> _Archive:
    """Return the directory of an archive; that of a local archive is read again if the file has changed.

    Raises:
        FileNotFoundError: If the archive does not exist.
        StorageError: If the archive is damaged or cannot be read.
    """
    if is_remote(address):
        with _reading_directory:
            return ask("reading", address, lambda: _read_archive(address, None))
    facts = Path(address).stat()
    with _reading_directory:
        return _read_archive(address, (facts.st_size, facts.st_mtime_ns))


_reading_directory = threading.Lock()
"""Held while a directory is read, so that only one thread reads it."""


@functools.lru_cache(maxsize=8)
def _read_archive(address: str, stamp: tuple[int, int] | None) -> _Archive:  # noqa: ARG001  # another stamp misses the cache
    try:
        members = read_directory(open_file(address))
    except zipfile.BadZipFile as error:
        message = f"is not a complete ZIP archive ({error}); fetch it again"
        raise StorageError(errno.EIO, message, address) from error
    folders: dict[str, dict[str, tuple[str, int]]] = {"": {}}
    for path, member in members.items():
        parent, _, name = path.rpartition("/")
        if parent not in folders:
            parts = parent.split("/")
            for number, part in enumerate(parts):
                folders.setdefault("/".join(parts[:number]), {}).setdefault(part, ("directory", 0))
        folders.setdefault(parent, {})[name] = ("file", member.num_bytes)
    return _Archive(members, folders)


_WEB = ("http://", "https://")
_PART_BYTES = 1 << 23
_IN_ARCHIVE = "cannot be written: a ZIP archive can only be read; write to a folder"
_READ_ONLY = "cannot be written: a web server can only be read; write to a path or to an object store such as s3://"
_NOT_THERE = (HTTPStatus.NOT_FOUND, HTTPStatus.GONE)


def split_address(address: str) -> tuple[str, str]:
    """Split the URL of a file into that of its folder and the file's name; in an archive, at the part before `::`."""
    own, chain, archive = address.partition("::")
    folder, _, name = own.rpartition("/")
    return f"{folder}{'/' * folder.endswith(':/')}{chain}{archive}", name


def read_file(address: Path | str, start: int = 0, length: int | None = None) -> bytes:
    """Return at most `length` bytes of the file at a path or URL, from offset `start`.

    Raises:
        FileNotFoundError: If the file does not exist.
        OSError: If the file cannot be read; for a URL this is a `StorageError`.
    """
    if not is_remote(address):
        with Path(address).open("rb") as file:
            if start:  # a pipe cannot be sought
                file.seek(start)
            return file.read(-1 if length is None else length)
    folder, name = split_address(str(address))
    return open_folder(folder).read(name, start, length)


def _compare_sizes(expected: int | None, found: int | None) -> None:
    if found != expected:
        raise OSError(errno.EIO, f"found {found} bytes after the copy, expected {expected}")
