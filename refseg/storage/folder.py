"""Defines a folder, and reads and writes one of this machine's file systems.

A published file becomes visible as a whole: it is written under a temporary name, flushed and renamed.
"""

import errno
import os
import shutil
from abc import ABC, abstractmethod
from collections.abc import Iterable
from pathlib import Path

from refseg.aside import sync_path


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
