"""A stand-in for the Hugging Face Hub on loopback: one dataset repository in memory, by the Hub's HTTP interface."""

import base64
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import unquote, urlsplit

REPOSITORY = "datasets/owner/name"


class HubServer(ThreadingHTTPServer):
    """Holds the files of `hf://datasets/owner/name`.

    Attributes:
        files: Content by path in the repository.
        requests: `METHOD path` of all requests so far.
    """

    daemon_threads = True
    block_on_close = False

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.files: dict[str, bytes] = {}
        self.requests: list[str] = []


@contextmanager
def serving_hub() -> Iterator[HubServer]:
    """A server that runs in a thread of this process."""
    server = HubServer()
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: HubServer

    def _handle(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path = unquote(urlsplit(self.path).path)
        self.server.requests.append(f"{self.command} {path}")
        files = self.server.files
        api = f"/api/{REPOSITORY}"
        if path.startswith(f"/{REPOSITORY}/resolve/main/"):
            return self._send_file(files.get(path.removeprefix(f"/{REPOSITORY}/resolve/main/")))
        if path in (api, f"{api}/revision/main"):
            return self._send({"id": "owner/name", "sha": "0" * 40, "siblings": []})
        if path == f"{api}/paths-info/main":
            return self._send([entry for name in json.loads(body)["paths"] if (entry := self._entry(name))])
        if path.startswith(f"{api}/tree/main"):
            folder = path.removeprefix(f"{api}/tree/main").strip("/")
            below = [name for name in files if name.startswith(f"{folder}/".lstrip("/"))]
            names = {self._child(name, folder) for name in below}
            if "recursive=true" in urlsplit(self.path).query.lower():
                parents = {str(parent) for name in below for parent in PurePosixPath(name).parents} - {"."}
                names |= {*below, *(name for name in parents if name.startswith(f"{folder}/".lstrip("/")))}
            return self._send([self._entry(name) for name in sorted(names)] if names else None)
        if path == f"{api}/preupload/main":
            asked = json.loads(body)["files"]
            found = [{"path": one["path"], "uploadMode": "regular", "shouldIgnore": False} for one in asked]
            return self._send({"files": found})
        if path == f"{api}/commit/main":
            for line in body.splitlines():
                change = json.loads(line)
                name = change["value"].get("path")
                if change["key"] == "file":
                    files[name] = base64.b64decode(change["value"]["content"])
                elif change["key"] in ("deletedFile", "deletedFolder"):
                    for gone in [one for one in files if one == name or one.startswith(f"{name.rstrip('/')}/")]:
                        del files[gone]
            url = f"{self.server.url}/{REPOSITORY}/commit/{'1' * 40}"
            return self._send({"commitOid": "1" * 40, "commitUrl": url, "success": True})
        return self._send(None)

    do_GET = do_POST = do_HEAD = _handle

    @staticmethod
    def _child(name: str, folder: str) -> str:
        below = name.removeprefix(folder).lstrip("/").partition("/")[0]
        return f"{folder}/{below}".lstrip("/")

    def _entry(self, name: str) -> dict[str, Any] | None:
        files = self.server.files
        if name in files:
            return {"type": "file", "path": name, "size": len(files[name]), "oid": "0" * 40}
        is_folder = any(one.startswith(f"{name}/") for one in files)
        return {"type": "directory", "path": name, "size": 0, "oid": "0" * 40} if is_folder else None

    def _send_file(self, content: bytes | None) -> None:
        if content is None:
            return self._send(None)
        found = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        start, stop = (int(found[1]), int(found[2] or len(content) - 1) + 1) if found else (0, len(content))
        headers = {"Content-Range": f"bytes {start}-{stop - 1}/{len(content)}"} if found else {}
        return self._answer(206 if found else 200, content[start:stop], {"ETag": '"0"', **headers})

    def _send(self, answer: Any) -> None:
        if answer is None:
            return self._answer(404, b"{}", {"X-Error-Code": "EntryNotFound"})
        return self._answer(200, json.dumps(answer).encode(), {"Content-Type": "application/json"})

    def _answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Say nothing: tests look at `HubServer.requests`."""
