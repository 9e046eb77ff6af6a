"""Reads a folder in a ZIP archive; `refseg.zip_archive` reads the archive itself."""

import errno
import functools
import os
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from refseg.addresses import is_remote
from refseg.aside import file_aside
from refseg.errors import StorageError
from refseg.storage.remote import RemoteFolder
from refseg.storage_requests import ask
from refseg.zip_archive import ByteFile, ZipMember, read_directory, read_member

OpenFile = Callable[[str], ByteFile]

_IN_ARCHIVE = "cannot be written: a ZIP archive can only be read; write to a folder"


class ZipFolder(RemoteFolder):
    """A folder in a ZIP archive, `zip://FOLDER::ARCHIVE`, which is read by byte ranges and cannot be written.

    `ARCHIVE` is a path or a URL. Its directory is read once in each process. A file that is read as a whole is compared
    with its checksum in the archive.

    Args:
        address: Address of the folder.
        open_file: Opens the archive by its path or URL; a function of a module, so that the folder can be pickled.
    """

    def __init__(self, address: str, open_file: OpenFile) -> None:
        super().__init__(address)
        self._open_file = open_file
        own, _, self.archive = self.address.partition("::")
        self._inner = own.removeprefix("zip://").strip("/")

    def join(self, name: str) -> str:
        return f"zip://{self._path(self._inner, name)}::{self.archive}"

    def read(self, name: str, start: int = 0, length: int | None = None) -> bytes:
        path = self._path(self._inner, name)

        def request() -> bytes:
            member = _open_archive(self.archive, self._open_file).members.get(path)
            if member is None:
                raise FileNotFoundError
            return read_member(self._open_file(self.archive), member, start, length)

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
            return _open_archive(self.archive, self._open_file).folders
        except FileNotFoundError:
            return {}


class _Archive(NamedTuple):
    """The directory of an archive: its files, and kind and bytes of the entries of each folder."""

    members: dict[str, ZipMember]
    folders: dict[str, dict[str, tuple[str, int]]]


def _open_archive(address: str, open_file: OpenFile) -> _Archive:
    """Return the directory of an archive; that of a local archive is read again if the file has changed.

    Raises:
        FileNotFoundError: If the archive does not exist.
        StorageError: If the archive is damaged or cannot be read.
    """
    if is_remote(address):
        with _reading_directory:
            return ask("reading", address, lambda: _read_archive(address, None, open_file))
    facts = Path(address).stat()
    with _reading_directory:
        return _read_archive(address, (facts.st_size, facts.st_mtime_ns), open_file)


_reading_directory = threading.Lock()
"""Held while a directory is read, so that only one thread reads it."""


@functools.lru_cache(maxsize=8)
def _read_archive(
    address: str,
    stamp: tuple[int, int] | None,  # noqa: ARG001  # another stamp misses the cache
    open_file: OpenFile,
) -> _Archive:
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
