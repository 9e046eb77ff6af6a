"""Reads and writes a folder at any fsspec URL; requests go through `refseg.storage_requests`.

An object is uploaded by one request, which object stores show only when it is complete.
"""

import errno
import os
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from refseg.aside import file_aside
from refseg.errors import StorageError
from refseg.storage.folder import Folder
from refseg.storage_requests import ask, open_file_system

T = TypeVar("T")

_RENAMING = frozenset({"file", "local", "sftp", "ssh", "smb", "hdfs", "webhdfs", "arrow_hdfs"})
"""Protocols of file systems, where an unfinished upload is visible and a rename is atomic. In object stores an upload
is atomic, and a rename is a copy."""


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


def _compare_sizes(expected: int | None, found: int | None) -> None:
    if found != expected:
        raise OSError(errno.EIO, f"found {found} bytes after the copy, expected {expected}")
