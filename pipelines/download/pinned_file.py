"""Downloads one file whose size and digest are known, from the first mirror that has it.

Received bytes are written to a hidden file beside the target, so that a killed download can be resumed. The hidden file
is renamed when the digest is correct.
"""

import hashlib
import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO

from pipelines.download.catalogue import PinnedFile
from refseg.aside import sync_path
from refseg.errors import DownloadError, RefsegError, StorageError
from refseg.http_file import HttpFile, NoRangesError
from refseg.storage import FolderFile, open_file
from refseg.storage_requests import ask

logger = logging.getLogger(__name__)

_LEAST_PROGRESS = 1 << 20
"""A broken connection counts as a failed attempt only if it has transferred fewer bytes than this. Connections often
break during a download of 13 GB.
"""


class _MirrorError(RefsegError):
    """A mirror has a different file, or sends a different number of bytes than it announced."""


def part_path(path: Path) -> Path:
    """Return the path of the hidden file to which an incomplete file is written."""
    return path.with_name(f".{path.name}.part")


def is_complete(pin: PinnedFile, path: Path) -> bool:
    """Return True if a file exists and is the expected one, and False if it does not exist.

    Raises:
        DownloadError: If the file has other content. It is not overwritten.
    """
    if not path.exists():
        return False
    num_bytes = path.stat().st_size
    found = f"{num_bytes:,} bytes" if num_bytes != pin.num_bytes else f"SHA-256 {_digest(path)}"
    expected = f"{pin.num_bytes:,} bytes" if num_bytes != pin.num_bytes else f"SHA-256 {pin.sha256}"
    if found != expected:
        raise DownloadError(
            f"{path}: found {found}, expected {expected}; move the file away and run the same command again to "
            "download the expected one"
        )
    return True


def fetch_file(pin: PinnedFile, path: Path, addresses: Sequence[str], progress: Callable[[int], None]) -> None:
    """Download a file, or the missing rest of an interrupted download.

    Args:
        pin: Expected size and digest of the file.
        path: Path of the complete file.
        addresses: URLs or paths of the file, in order of preference.
        progress: Called with the number of received bytes. A negative number means that bytes were discarded.

    Raises:
        DownloadError: If no mirror has the file, or it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = part_path(path)
    faults = []
    part.touch()
    with part.open("rb+") as file:
        for address in addresses:
            try:
                _fetch_from(pin, open_file(address), file, path, progress)
            except FileNotFoundError:
                faults.append(f"{address}: no such file")
            except (_MirrorError, NoRangesError, StorageError) as error:
                faults.append(str(error))
            else:
                os.fsync(file.fileno())
                part.replace(path)
                sync_path(path.parent)
                return
            logger.warning("%s", faults[-1])
    if not part.stat().st_size:
        part.unlink()
    listed = "".join(f"\n  {fault}" for fault in faults)
    raise DownloadError(
        f"{path}: no mirror gave the file; run the same command again later to continue, add --mirror URL, or put the "
        f"file there by hand ({pin.num_bytes:,} bytes, SHA-256 {pin.sha256}){listed}"
    )


def _fetch_from(
    pin: PinnedFile, mirror: HttpFile | FolderFile, file: IO[bytes], path: Path, progress: Callable[[int], None]
) -> None:
    """Complete the file from one mirror. If bytes of an earlier download prove wrong, all bytes are fetched again."""
    assert pin.num_bytes is not None
    while True:
        before = file.seek(0, os.SEEK_END)
        if before > pin.num_bytes:
            before = _restart(file, progress)
        while file.seek(0, os.SEEK_END) < pin.num_bytes:
            ask("reading", mirror.address, lambda: _append(pin, mirror, file, path, progress))
        file.flush()
        found = _digest(part_path(path))
        if found == pin.sha256:
            return
        _restart(file, progress)
        if before == 0:
            raise _MirrorError(f"{mirror.address}: found SHA-256 {found}, expected {pin.sha256}")
        logger.warning("%s: the %d bytes of an earlier download are of another file; downloading again", path, before)


def _restart(file: IO[bytes], progress: Callable[[int], None]) -> int:
    progress(-file.seek(0, os.SEEK_END))
    file.truncate(0)
    return file.seek(0)


def _append(
    pin: PinnedFile, mirror: HttpFile | FolderFile, file: IO[bytes], path: Path, progress: Callable[[int], None]
) -> None:
    """Append the bytes of one request, which may end before the file is complete."""
    assert pin.num_bytes is not None
    start = file.seek(0, os.SEEK_END)
    position = start
    try:
        with mirror.open_part(start) as part:
            if part.num_bytes not in (None, pin.num_bytes):
                raise _MirrorError(f"{mirror.address}: found {part.num_bytes:,} bytes, expected {pin.num_bytes:,}")
            if part.start not in (0, start):
                raise OSError(f"found the bytes from {part.start}, expected those from {start}")
            position = part.start
            for chunk in part.chunks:
                # A server without range requests sends the whole file. The bytes that exist already are skipped.
                new = chunk[max(0, start - position) :]
                position += len(chunk)
                if position > pin.num_bytes:
                    raise _MirrorError(f"{mirror.address}: found more than the expected {pin.num_bytes:,} bytes")
                if new:
                    _write(file, new, path)
                    progress(len(new))
        if position < pin.num_bytes:
            raise OSError(f"broke off after {position:,} of {pin.num_bytes:,} bytes")
    except RefsegError:
        raise
    except Exception as error:
        if position - start < _LEAST_PROGRESS:
            raise
        logger.info("%s: broke off after %d bytes (%s); continuing", mirror.address, position, type(error).__name__)


def _write(file: IO[bytes], data: bytes, path: Path) -> None:
    try:
        file.write(data)
        file.flush()
    except OSError as error:
        raise DownloadError(
            f"{path}: cannot be written ({error.strerror}); check permissions and free disk space, then run the same "
            "command again to continue"
        ) from error


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
