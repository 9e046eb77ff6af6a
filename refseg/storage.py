"""Folders and files, local or at any fsspec URL: read whole or in part, list, publish whole or not at all.

A local file is published by writing it under a temporary name, fsync and rename; an object by one upload, which object
stores show whole or not at all. Requests to remote storage are tried again with growing pauses before they are errors.
"""

import os
import shutil
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any


def is_remote(address: Path | str) -> bool:
    """True for a URL such as `s3://bucket/folder`, False for a path."""
    return "://" in str(address)


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
    def list(self) -> dict[str, int]:
        """Names of the files directly in this folder and their sizes in bytes; empty if there is no such folder."""

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
    """A folder by its path or URL; it need not be there."""
    return RemoteFolder(str(address)) if is_remote(address) else LocalFolder(Path(address))


class LocalFolder(Folder):
    """A folder of this machine's file systems."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.address = str(path)

    def join(self, name: str) -> str:
        return os.path.normpath(self.path / name)

    def exists(self) -> bool:
        return self.path.is_dir()

    def list(self) -> dict[str, int]:
        try:
            with os.scandir(self.path) as entries:
                return {entry.name: entry.stat().st_size for entry in entries if entry.is_file()}
        except (FileNotFoundError, NotADirectoryError):
            return {}

    def size(self, name: str) -> int | None:
        path = self.path / name
        return path.stat().st_size if path.is_file() else None

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
        sync_folder(final.parent)

    def remove(self, name: str) -> None:
        path = self.path / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


class RemoteFolder(Folder):
    """A folder at an fsspec URL."""

    def __init__(self, address: str) -> None:
        import fsspec

        self.address = address.rstrip("/")
        self._files: Any
        self._files, self._root = fsspec.core.url_to_fs(self.address)

    def join(self, name: str) -> str:
        scheme, _, path = self.address.partition("://")
        return f"{scheme}://{os.path.normpath(f'{path}/{name}')}"

    def exists(self) -> bool:
        return bool(self._files.exists(self._root))

    def list(self) -> dict[str, int]:
        try:
            found = self._files.ls(self._root, detail=True, refresh=True)
        except FileNotFoundError:
            return {}
        return {entry["name"].rsplit("/", 1)[-1]: int(entry["size"]) for entry in found if entry["type"] == "file"}

    def size(self, name: str) -> int | None:
        try:
            return int(self._files.info(self._path(name), refresh=True)["size"])
        except FileNotFoundError:
            return None

    def read(self, name: str, start: int = 0, length: int | None = None) -> bytes:
        end = None if length is None else start + length
        return bytes(self._files.cat_file(self._path(name), start=start or None, end=end))

    def publish(self, temporary: Path, name: str) -> None:
        self._files.put_file(str(temporary), self._path(name))
        temporary.unlink()

    def remove(self, name: str) -> None:
        path = self._path(name)
        if self._files.exists(path):
            self._files.rm(path, recursive=True)

    def _path(self, name: str) -> str:
        return os.path.normpath(f"{self._root}/{name}")


def sync_folder(folder: Path) -> None:
    """Bring a local folder's entries (new names) to the disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
