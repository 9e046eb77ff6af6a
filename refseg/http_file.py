"""Reads byte ranges of a file on a web server, and never the whole file by mistake, which may exceed the memory.

Errors of `requests` are passed on unchanged; callers send requests through `refseg.storage_requests.ask`.
"""

import functools
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from refseg.errors import RefsegError

TIMEOUT_SECONDS = (10.0, 60.0)
"""Time limits in seconds for making a connection, and for the next bytes of an answer."""

LONGEST_WAIT_SECONDS = 60
"""Longest pause in seconds after a refusal with a `Retry-After` header."""

_CHUNK_BYTES = 1 << 18
_CONNECTIONS = 16
_CONTENT_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+|\*)")
_NOT_THERE = (HTTPStatus.NOT_FOUND, HTTPStatus.GONE)


class NoRangesError(RefsegError):
    """The server sends only whole files, or does not state the size of a file."""


@dataclass(frozen=True, slots=True)
class FilePart:
    """An answer of a server.

    Attributes:
        start: Offset of the first byte in the file.
        num_bytes: Size of the whole file in bytes; None if the server does not state it.
        is_whole: True if the server sends the whole file, even if only a part was requested.
        chunks: The bytes from `start` on, in chunks.
    """

    start: int
    num_bytes: int | None
    is_whole: bool
    chunks: Iterator[bytes]


class HttpFile:
    """A file at an `http://` or `https://` URL. Redirects are followed, and the environment's proxies are used.

    Args:
        address: URL of the file; characters that a URL cannot hold are encoded.
    """

    def __init__(self, address: str) -> None:
        self.address = address

    @contextmanager
    def open_part(self, start: int = 0, length: int | None = None) -> Iterator[FilePart]:
        """Request at most `length` bytes from offset `start`; the caller reads `chunks` within the context.

        Raises:
            FileNotFoundError: If the file does not exist on the server.
            OSError: If the server refuses the request, the connection fails, or it ends before the announced size.
        """
        end = "" if length is None else start + length - 1
        asked = {"Range": f"bytes={start}-{end}"} if start or length is not None else {}
        with _session(os.getpid()).get(self.address, headers=asked, stream=True, timeout=TIMEOUT_SECONDS) as answer:
            if answer.status_code in _NOT_THERE:
                raise FileNotFoundError(f"{answer.status_code} {answer.reason}")
            if (seconds := answer.headers.get("Retry-After", "")).isdecimal() and not answer.ok:
                time.sleep(min(int(seconds), LONGEST_WAIT_SECONDS))
            answer.raise_for_status()
            chunks = answer.iter_content(_CHUNK_BYTES)
            found = _CONTENT_RANGE.fullmatch(answer.headers.get("Content-Range", ""))
            if answer.status_code == HTTPStatus.PARTIAL_CONTENT and found is not None:
                num_bytes = None if found[2] == "*" else int(found[2])
                yield FilePart(int(found[1]), num_bytes, is_whole=False, chunks=chunks)
            else:
                announced = answer.headers.get("Content-Length", "")
                yield FilePart(0, int(announced) if announced.isdecimal() else None, is_whole=True, chunks=chunks)

    def size(self) -> int:
        """Return the size of the file in bytes, which the server states in its answer for the first byte.

        Raises:
            NoRangesError: If the server does not state it.
            FileNotFoundError, OSError: If `open_part` fails.
        """
        with self.open_part(0, 1) as part:
            if part.num_bytes is None:
                raise NoRangesError(f"{self.address}: the server does not state the size of the file")
            return part.num_bytes

    def read(self, start: int, length: int) -> bytes:
        """Return exactly `length` bytes from offset `start`.

        Raises:
            NoRangesError: If the server would send the whole file, which is much larger; it is not read then.
            FileNotFoundError: If the file does not exist on the server.
            OSError: If `open_part` fails, or the answer is shorter than expected or is another part.
        """
        with self.open_part(start, length) as part:
            if part.is_whole and (part.num_bytes is None or part.num_bytes > length + _CHUNK_BYTES):
                raise NoRangesError(f"{self.address}: the server does not send parts of files (byte ranges)")
            data = bytearray()
            for chunk in part.chunks:
                data += chunk
        data = data[max(0, start - part.start) :][:length]
        if part.start > start or len(data) != length:
            raise OSError(f"found {len(data)} bytes from offset {part.start}, expected {length} from {start}")
        return bytes(data)


@functools.lru_cache(maxsize=1)
def _session(process: int) -> Any:  # noqa: ARG001  # connections are not shared with a forked process
    """Return the session of this process, whose connections its threads share."""
    import requests
    from requests.adapters import HTTPAdapter

    session = requests.Session()
    for scheme in ("http://", "https://"):
        session.mount(scheme, HTTPAdapter(pool_maxsize=_CONNECTIONS))
    session.headers.update({"User-Agent": "refseg", "Accept-Encoding": "identity"})
    return session
