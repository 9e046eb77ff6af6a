"""Folders and files, local or at any fsspec URL: read whole or in part, list, publish whole or not at all.

A local file is published by writing it under a temporary name, fsync and rename; an object by one upload, which object
stores show whole or not at all. Requests to remote storage go through `refseg.storage_requests`.
"""

import errno
import os
import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from http import HTTPStatus
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote, unquote

from refseg.addresses import is_remote as is_remote
from refseg.addresses import parse_address
from refseg.addresses import whole_address as whole_address
from refseg.aside import file_aside, sync_path
from refseg.errors import StorageError
from refseg.storage_requests import ask, http_status, open_file_system

T = TypeVar("T")

_RENAMING = frozenset({"file", "local", "sftp", "ssh", "smb", "hdfs", "webhdfs", "arrow_hdfs"})
"""Protocols of real file systems: an upload there is seen while it grows, a rename is one step. In object stores it is
the other way round."""


class Folder(ABC):
    """One folder. Names may hold `/` for what lies below it.

    Reading raises `FileNotFoundError` where there is no such file and other `OSError`s where storage fails.
    """

    address: str

    def __str__(self) -> str:
        return self.address

    @abstractmethod
    def join(self, name: str) -> str:
        """Address of something in this folder; `..` is followed."""

    @abstractmethod
    def exists(self) -> bool:
        """True if the folder is there (for object stores: holds anything)."""

    @abstractmethod
    def list(self, known: Iterable[str] = ()) -> dict[str, int]:
        """Names of the files directly in this folder and their sizes in bytes; empty if there is no such folder.

        Args:
            known: Names that are looked for where storage cannot list a folder.
        """

    @abstractmethod
    def size(self, name: str) -> int | None:
        """Bytes of a file; None if there is none."""

    @abstractmethod
    def read(self, name: str, start: int = 0, length: int | None = None) -> bytes:
        """Bytes of a file from `start`, at most `length`."""

    @abstractmethod
    def publish(self, temporary: Path, name: str) -> None:
        """Give a finished local file its name here, in one step; the local file is gone afterwards."""

    @abstractmethod
    def remove(self, name: str) -> None:
        """Remove a file or a folder with all it holds; nothing happens if it is not there."""


def open_folder(address: Path | str) -> Folder:
    """A folder by its path, in which `~` is expanded, or its URL; it need not be there.

    Raises:
        UsageError: As `parse_address`.
    """
    parsed = parse_address(address)
    if isinstance(parsed, Path):
        return LocalFolder(parsed)
    is_web = parsed.startswith(("http://", "https://")) and "::" not in parsed
    return WebFolder(parsed) if is_web else RemoteFolder(parsed)


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
            if error.errno == errno.ENAMETOOLONG:  # no file can have that name
                return None
            raise

    def read(self, name: str, start: int = 0, length: int | None = None) -> bytes:
        with (self.path / name).open("rb") as file:
            file.seek(start)
            return file.read(-1 if length is None else length)

    def publish(self, temporary: Path, name: str) -> None:
        # The content goes to the disk first: a rename that outlives a power cut without it would publish an empty file.
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        final = self.path / name
        temporary.replace(final)
        sync_path(final.parent)

    def remove(self, name: str) -> None:
        path = self.path / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.is_symlink() or path.exists():  # on a read-only file system, removing what is not there is an error
            path.unlink(missing_ok=True)


class RemoteFolder(Folder):
    """A folder at an fsspec URL.

    Every method raises `StorageError`, an `OSError`, where storage refuses or fails for good. Only the address is kept:
    each process and thread gets its own client from fsspec, and a folder can be handed to other processes.
    """

    def __init__(self, address: str) -> None:
        self.address = address.rstrip("/") if not address.endswith("://") else address

    def join(self, name: str) -> str:
        own, chain, archive = self.address.partition("::")  # `zip://folder::s3://bucket/file.zip`
        scheme, _, path = own.partition("://")
        joined = os.path.normpath(f"{path}/{name}")
        # A bucket has no parent, as `/` has none.
        below = path.split("/")[0] if joined in (".", "..") or joined.startswith("../") else joined
        return f"{scheme}://{below}{chain}{archive}"

    def exists(self) -> bool:
        return self._info("") == ("directory", 0)

    def list(self, known: Iterable[str] = ()) -> dict[str, int]:  # noqa: ARG002
        return {name: size for name, (kind, size) in self._entries().items() if kind == "file"}

    def folders(self) -> tuple[str, ...]:
        """Names of the folders directly in this folder, sorted; empty if there is no such folder."""
        return tuple(sorted(name for name, (kind, _) in self._entries().items() if kind == "directory"))

    def size(self, name: str) -> int | None:
        found = self._info(name)
        return found[1] if found is not None and found[0] == "file" else None

    def read(self, name: str, start: int = 0, length: int | None = None) -> bytes:
        if length == 0:
            return b""

        def request(files: Any, path: str) -> bytes:
            try:
                # A start, also of 0, makes this one request; without it s3fs asks for the size first.
                return bytes(files.cat_file(path, start=start, end=None if length is None else start + length))
            except OSError as error:
                # Object stores refuse a range that begins at or behind the end (416); local files give nothing there.
                if error.errno == errno.EINVAL and start >= int(files.info(path)["size"]):
                    return b""
                raise

        return self._ask("reading", name, request)

    def fetch(self, name: str, path: Path) -> None:
        """Copy a file to a local path; it appears there whole or not at all.

        Raises:
            FileNotFoundError: If there is no such file.
            StorageError: If storage refuses or fails.
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
            if self._info(name) is not None:  # s3fs says nothing of objects that the server did not delete
                raise OSError(errno.EIO, "still there after it was removed")

        if self._info(name) is not None:
            with suppress(FileNotFoundError):  # the first try's answer was lost
                self._ask("removing", name, request)

    def _info(self, name: str) -> tuple[str, int] | None:
        """Kind (`file`, `directory`) and bytes of something in this folder; None if there is nothing."""

        def request(files: Any, path: str) -> tuple[str, int]:
            info = files.info(path)
            return str(info["type"]), int(info["size"] or 0) if info["type"] == "file" else 0

        try:
            return self._ask("reading", name, request)
        except FileNotFoundError:
            return None

    def _entries(self) -> dict[str, tuple[str, int]]:
        """Name, kind and bytes of what lies directly in this folder."""

        def request(files: Any, path: str) -> dict[str, tuple[str, int]]:
            found = {}
            for entry in files.ls(path, detail=True):
                parent, _, name = entry["name"].rstrip("/").rpartition("/")
                if parent == path.rstrip("/"):  # not the folder's own marker
                    found[name] = (str(entry["type"]), int(entry["size"] or 0))
            return found

        if not self.exists():  # asked first: s3fs would list all of the folder above instead
            return {}
        try:
            return self._ask("listing", "", request)
        except FileNotFoundError:
            return {}

    def _path(self, root: str, name: str) -> str:
        """The file system's own path of something in this folder, whose own is `root`."""
        return os.path.normpath(f"{root.rstrip('/')}/{name}") if name else root

    def _ask(self, what: str, name: str, request: Callable[[Any, str], T]) -> T:
        """Run `request(file system, path)` as `requests.ask` does."""

        def call() -> T:
            files, root = open_file_system(self.address)
            return request(files, self._path(root, name))

        return ask(what, self.join(name), call)


class WebFolder(RemoteFolder):
    """A folder that a web server shows (`http:`, `https:`): it can be read, not written.

    A web server need not list a folder. Where it does, by a page of links, `list` gives what is linked; else it gives
    what is there of the names that the caller knows. Sizes are asked for one by one.
    """

    def exists(self) -> bool:
        try:
            return self._info("") is not None
        except StorageError as error:
            return error.errno == errno.EACCES  # files may be there although the folder itself is not shown

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
            # A server that knows no ranges sends the whole file.
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
            except FileNotFoundError as error:  # fsspec raises it for every failure
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


_READ_ONLY = "cannot be written: a web server is only read from; write to a path or to an object store such as s3://"
_NOT_THERE = (HTTPStatus.NOT_FOUND, HTTPStatus.GONE)


def read_file(address: Path | str) -> bytes:
    """All bytes of one file by its path or URL.

    Raises:
        FileNotFoundError: If there is no such file.
        OSError: If it cannot be read; `StorageError` for a URL.
    """
    if not is_remote(address):
        return Path(address).read_bytes()
    own, chain, archive = str(address).partition("::")
    folder, _, name = own.rpartition("/")
    return open_folder(f"{folder}{chain}{archive}").read(name)


def _compare_sizes(expected: int | None, found: int | None) -> None:
    if found != expected:
        raise OSError(errno.EIO, f"found {found} bytes after the copy, expected {expected}")
