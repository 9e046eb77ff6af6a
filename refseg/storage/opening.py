"""Opens folders and files by their paths or URLs."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from refseg.addresses import is_remote, parse_address, whole_address
from refseg.http_file import FilePart, HttpFile
from refseg.storage.archive import ZipFolder
from refseg.storage.folder import Folder, LocalFolder
from refseg.storage.remote import RemoteFolder
from refseg.storage.web import WebFolder

_WEB = ("http://", "https://")
_PART_BYTES = 1 << 23


def open_folder(address: Path | str) -> Folder:
    """Return the folder at a path, in which `~` is expanded, or at a URL; the folder need not exist.

    Raises:
        UsageError: If `parse_address` refuses the address.
    """
    parsed = parse_address(address)
    if isinstance(parsed, Path):
        return LocalFolder(parsed)
    if parsed.startswith("zip://") and parsed.count("::") == 1:
        return ZipFolder(parsed, open_file)
    is_web = parsed.startswith(_WEB) and "::" not in parsed
    return WebFolder(parsed) if is_web else RemoteFolder(parsed)


def archive_as_folder(address: Path | str) -> str:
    """Return the address of the files in a ZIP archive, `zip://::ARCHIVE`; of another address, its `whole_address`."""
    whole = whole_address(address)
    is_archive = whole.lower().endswith(".zip") and "::" not in whole and (is_remote(whole) or Path(whole).is_file())
    return f"zip://::{whole}" if is_archive else whole


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
        """Return the size of the file in bytes.

        Raises:
            FileNotFoundError: If there is no such file.
        """
        if (num_bytes := self._folder.size(self._name)) is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), self.address)
        return num_bytes

    def read(self, start: int, length: int) -> bytes:
        """Return `length` bytes from offset `start`."""
        return self._folder.read(self._name, start, length)


def open_file(address: str) -> HttpFile | FolderFile:
    """Return the file at a path or URL, to be read by byte ranges; no request is made before it is read."""
    is_web = address.startswith(_WEB) and "::" not in address
    return HttpFile(address) if is_web else FolderFile(address)


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
        path = Path(address)
        return LocalFolder(path.parent).read(path.name, start, length)
    folder, name = split_address(str(address))
    return open_folder(folder).read(name, start, length)
