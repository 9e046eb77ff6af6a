"""Folders and files, local or at any fsspec URL: read whole or in part, list, publish whole or not at all.

A local file is published by writing it under a temporary name, fsync and rename; an object by one upload, which object
stores show whole or not at all. Requests to remote storage are tried again with growing pauses before they are errors.
"""

import errno
import logging
import os
import shutil
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from refseg.addresses import is_remote as is_remote
from refseg.addresses import parse_address
from refseg.addresses import whole_address as whole_address
from refseg.errors import StorageError, UsageError

logger = logging.getLogger(__name__)
T = TypeVar("T")

MAX_TRIES = 5
"""So often a request to remote storage is made before its failure is an error."""
MAX_SECONDS = 120.0
"""No further try is begun this long after the first."""
ANNOTATION_SUFFIXES = (
    *(".p", ".json", ".jsonl", ".csv", ".p.gz", ".json.gz", ".jsonl.gz", ".csv.gz", ".parquet", ".txt"),
    ".png",  # masks of a user's own
)
"""Files that `local_annotations` copies."""

_FIRST_PAUSE_SECONDS = 1.0
_LONGEST_PAUSE_SECONDS = 20.0
_RENAMING = frozenset({"file", "local", "sftp", "ssh", "smb", "hdfs", "webhdfs", "arrow_hdfs"})
"""Protocols of real file systems: an upload there is seen while it grows, a rename is one step. In object stores it is
the other way round."""
_FOREIGN_FAILURES = (
    ("botocore.exceptions", "BotoCoreError"),
    ("botocore.exceptions", "ClientError"),
    ("botocore.parsers", "ResponseParserError"),
    ("aiohttp", "ClientError"),
    ("gcsfs.retry", "HttpError"),
    ("azure.core.exceptions", "AzureError"),
)
"""Errors of failed requests, by module and name, that file systems pass on although they are no `OSError`."""


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
    """A folder by its path, in which `~` is expanded, or its URL; it need not be there.

    Raises:
        UsageError: As `parse_address`.
    """
    parsed = parse_address(address)
    return LocalFolder(parsed) if isinstance(parsed, Path) else RemoteFolder(parsed)


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
        scheme, _, path = self.address.partition("://")
        joined = os.path.normpath(f"{path}/{name}")
        # A bucket has no parent, as `/` has none.
        return f"{scheme}://{path.split('/')[0] if joined in ('.', '..') or joined.startswith('../') else joined}"

    def exists(self) -> bool:
        return self._info("") == ("directory", 0)

    def list(self) -> dict[str, int]:
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
        temporary = path.with_name(f"tmp-{os.getpid()}-{path.name}")

        def request(files: Any, remote: str) -> None:
            files.get_file(remote, str(temporary))
            _compare_sizes(self.size(name), temporary.stat().st_size)

        try:
            self._ask("reading", name, request)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)

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

    def _ask(self, what: str, name: str, request: Callable[[Any, str], T]) -> T:
        """Run `request(file system, path)`, again after passing failures, and name place and remedy where it fails.

        Raises:
            FileNotFoundError: If storage says so, at once.
            StorageError: If storage refuses (at once) or fails (after the last try).
        """
        import tenacity

        address = self.join(name)
        files, root = _open_file_system(self.address)
        path = os.path.normpath(f"{root.rstrip('/')}/{name}") if name else root
        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception(_may_pass),
            stop=tenacity.stop_after_attempt(MAX_TRIES) | tenacity.stop_after_delay(MAX_SECONDS),
            wait=tenacity.wait_exponential(multiplier=_FIRST_PAUSE_SECONDS, max=_LONGEST_PAUSE_SECONDS)
            + tenacity.wait_random(0, _FIRST_PAUSE_SECONDS),
            before_sleep=lambda state: logger.warning(
                "%s: %s failed (%s); trying again",
                address,
                what,
                state.outcome and _describe(state.outcome.exception()),
            ),
            reraise=True,
        )
        begin = time.monotonic()
        try:
            return retrying(request, files, path)
        except FileNotFoundError as error:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), address) from error
        except StorageError:
            raise
        except _failures() as error:
            number = getattr(error, "errno", None) or errno.EIO
            if not _may_pass(error):
                remedy = "see to the address, the credentials and what they permit, then run the same command again"
                raise StorageError(number, f"{what} is refused ({_describe(error)}); {remedy}", address) from error
            tries, seconds = retrying.statistics["attempt_number"], time.monotonic() - begin
            raise StorageError(
                number,
                f"{what} failed {tries} times in {seconds:.0f} s, the last time with {_describe(error)}; "
                "see to the network and the server, then run the same command again to go on",
                address,
            ) from error


def read_file(address: Path | str) -> bytes:
    """All bytes of one file by its path or URL.

    Raises:
        FileNotFoundError: If there is no such file.
        OSError: If it cannot be read; `StorageError` for a URL.
    """
    if not is_remote(address):
        return Path(address).read_bytes()
    folder, _, name = str(address).rpartition("/")
    return open_folder(folder).read(name)


@contextmanager
def local_annotations(address: Path | str) -> Iterator[Path]:
    """A local folder with the annotation files of a folder, for readers that need real files.

    Of a URL, the small files (`ANNOTATION_SUFFIXES`) directly in it and in the folders one level below are copied to a
    temporary folder, which is gone afterwards. A path is given back as it is. The address may also be that of one file:
    it is then given with the small files beside it.

    Raises:
        UsageError: If the URL holds no such file.
        StorageError: If storage refuses or fails.
    """
    if not is_remote(address):
        yield Path(address)
        return
    top, file = RemoteFolder(str(address)), ""
    if not top.exists() and "/" in str(address).partition("://")[2]:
        parent, _, file = top.address.rpartition("/")
        top = RemoteFolder(parent)
    with tempfile.TemporaryDirectory(prefix="refseg-annotations-") as temporary:
        copied: set[str] = set()
        for below in ("", *(() if file else top.folders())):
            folder = RemoteFolder(top.join(below)) if below else top
            for name in folder.list():
                if name.lower().endswith(ANNOTATION_SUFFIXES):
                    (Path(temporary) / below).mkdir(exist_ok=True)
                    folder.fetch(name, Path(temporary) / below / name)
                    copied.add(f"{below}/{name}".lstrip("/"))
        if not copied or (file and file not in copied):
            kinds = ", ".join(ANNOTATION_SUFFIXES)
            raise UsageError(
                f"{address}: found no annotation file ({kinds}) there or one folder below; is the URL right?"
            )
        yield Path(temporary) / file


def _open_file_system(address: str) -> tuple[Any, str]:
    """This process's file system for a URL, and the path in it; fsspec keeps and gives the same one again."""
    import fsspec

    try:
        # Listings are asked anew each time: another process may have written since.
        files, root = fsspec.core.url_to_fs(address, use_listings_cache=False)
    except ImportError as error:
        scheme = address.partition("://")[0]
        raise UsageError(
            f"{address}: {scheme}:// needs a package that is not installed ({error}); for s3:// install refseg[s3]"
        ) from error
    except ValueError as error:
        raise UsageError(f"{address}: {error}; expected a path or a URL such as s3://bucket/folder") from error
    if hasattr(files, "retries"):
        files.retries = 1  # s3fs's and gcsfs's own loop around each request: ours is around it, and they would multiply
    return files, str(root)


def _failures() -> tuple[type[BaseException], ...]:
    """What file systems raise when a request fails; those of libraries that nobody has imported cannot come."""
    named = [getattr(sys.modules[module], name) for module, name in _FOREIGN_FAILURES if module in sys.modules]
    return (OSError, *named)


def _may_pass(error: BaseException) -> bool:
    """True for a failure that another try may not meet; a `StorageError` comes from a request that was tried again."""
    refusals = (
        FileNotFoundError,
        FileExistsError,
        PermissionError,
        IsADirectoryError,
        NotADirectoryError,
        StorageError,
    )
    final = {"NoCredentialsError", "PartialCredentialsError", "ParamValidationError", "ProfileNotFound"}
    return isinstance(error, _failures()) and not isinstance(error, refusals) and type(error).__name__ not in final


def _describe(error: BaseException | None) -> str:
    words = " ".join(str(error).split())  # botocore writes some over several lines
    return f"{type(error).__name__}: {words}" if words else type(error).__name__


def _compare_sizes(expected: int | None, found: int | None) -> None:
    if found != expected:
        raise OSError(errno.EIO, f"found {found} bytes after the copy, expected {expected}")


def sync_path(path: Path) -> None:
    """Bring a local file's content, or a folder's entries (new names), to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def cache_folder(kind: str) -> Path:
    """This machine's folder for what can be made again: `$REFSEG_CACHE/<kind>`, by default in `~/.cache/refseg`.

    Args:
        kind: For example `decoded`.
    """
    chosen = os.environ.get("REFSEG_CACHE")
    # A shell expands `~` in some places and not in others, such as a quoted value or a unit's Environment=.
    return (Path(chosen).expanduser() if chosen else Path.home() / ".cache" / "refseg") / kind


def reserve_space(descriptor: int, num_bytes: int) -> None:
    """Make an open file at least so long, and take the disk space where the system can (macOS cannot).

    Raises:
        OSError: If there is not so much space.
    """
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, 0, num_bytes)
    elif os.fstat(descriptor).st_size < num_bytes:
        os.truncate(descriptor, num_bytes)
