"""A web server on loopback that answers byte ranges, with faults that a test chooses request by request."""

import os
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote

_CHUNK_BYTES = 1 << 16


class Request(NamedTuple):
    """A request.

    Attributes:
        path: Of the file, without the first slash.
        range: The header `Range`; empty if there was none.
        number: How many requests for this file came before.
    """

    path: str
    range: str
    number: int


class RangeServer(ThreadingHTTPServer):
    """Serves files by name.

    Attributes:
        files: Content by path: bytes, or a local file.
        fault: Returns what is wrong with the answer to a request; None: nothing. `404` and other numbers: this status,
            `429` with `Retry-After: 600`.
            `cut`: half of the bytes, then the connection is closed. `slow`: a pause before each piece. `wrong byte`:
            the last one is another. `short`: half of the file, as if it were all. `lie`: the stated size is one byte
            more. `whole`: ranges are ignored. `chunked`: the whole file without its length. `redirect`: to
            `moved/<path>`. `other part`: the range that follows the requested one.
        requests: All so far.
        num_bytes: Bytes of content sent so far.
        on_chunk: Called before each piece of content.
    """

    daemon_threads = True
    block_on_close = False

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.files: dict[str, bytes | Path] = {}
        self.fault: Callable[[Request], str | None] = lambda request: None
        self.requests: list[Request] = []
        self.num_bytes = 0
        self.on_chunk: Callable[[], None] = lambda: None
        self.lock = threading.Lock()

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that went away is no news."""


@contextmanager
def serving() -> Iterator[RangeServer]:
    """A server that runs in a thread of this process."""
    server = RangeServer()
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: RangeServer

    def do_GET(self) -> None:
        server, path = self.server, unquote(self.path).lstrip("/")
        asked = self.headers.get("Range", "")
        with server.lock:
            request = Request(path, asked, sum(earlier.path == path for earlier in server.requests))
            server.requests.append(request)
        fault = server.fault(request)
        if fault == "redirect" and not path.startswith("moved/"):
            return self._answer(302, {"Location": f"/moved{self.path}"})
        content = server.files.get(path.removeprefix("moved/"))
        if content is None or (fault is not None and fault.isdigit()):
            wait = {"Retry-After": "600"} if fault == "429" else {}
            return self._answer(404 if content is None else int(str(fault)), wait)
        num_bytes = len(content) if isinstance(content, bytes) else content.stat().st_size
        if fault == "short":
            num_bytes //= 2
        start, stop, is_part = 0, num_bytes, False
        if (found := re.fullmatch(r"bytes=(\d+)-(\d*)", asked)) and fault not in ("whole", "chunked"):
            start, stop, is_part = int(found[1]), min(int(found[2] or num_bytes - 1) + 1, num_bytes), True
            if start >= num_bytes:
                return self._answer(416, {"Content-Range": f"bytes */{num_bytes}"})
        if fault == "other part":
            start, stop = stop, min(2 * stop - start, num_bytes)
        told = num_bytes + (fault == "lie")
        headers = {"Content-Range": f"bytes {start}-{stop - 1}/{told}"} if is_part else {}
        length = stop - start + (fault == "lie" and not is_part)
        headers["Content-Length"] = str(length)
        if fault == "chunked":
            headers = {"Connection": "close"}
            self.close_connection = True
        self.send_response(206 if is_part else 200)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self._send(content, start, stop, fault)
        return None

    do_HEAD = do_GET

    def _send(self, content: bytes | Path, start: int, stop: int, fault: str | None) -> None:
        end = start + (stop - start) // 2 if fault in ("cut", "lie") else stop
        self.close_connection = self.close_connection or end < stop
        for position in range(start, end, _CHUNK_BYTES):
            length = min(_CHUNK_BYTES, end - position)
            self.server.on_chunk()
            if isinstance(content, bytes):
                data = content[position : position + length]
            else:
                with content.open("rb") as file:
                    data = os.pread(file.fileno(), length, position)
            if fault == "wrong byte" and position + length == end:
                data = data[:-1] + bytes([data[-1] ^ 1])
            if fault == "slow":
                threading.Event().wait(0.01)
            self.wfile.write(data)
            with self.server.lock:
                self.server.num_bytes += length

    def _answer(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": "0"}.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Say nothing: tests look at `RangeServer.requests`."""
