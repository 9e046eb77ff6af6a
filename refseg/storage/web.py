"""Reads a folder on a web server."""

import errno
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from refseg.errors import StorageError
from refseg.storage.remote import RemoteFolder
from refseg.storage_requests import http_status

_READ_ONLY = "cannot be written: a web server can only be read; write to a path or to an object store such as s3://"
_NOT_THERE = (HTTPStatus.NOT_FOUND, HTTPStatus.GONE)


class WebFolder(RemoteFolder):
    """A folder on a web server (`http:`, `https:`), which can only be read.

    A web server may show a folder as a page of links, or not show it at all. `list` returns the linked files and those
    of the caller's known names that exist. The size of each file takes a request of its own.
    """

    def exists(self) -> bool:
        try:
            return self._info("") is not None
        except StorageError as error:
            return error.errno == errno.EACCES  # a folder whose page is forbidden may still hold files

    def list(self, known: Iterable[str] = ()) -> dict[str, int]:
        names = sorted({*known, *(name for name, (kind, _) in self._entries().items() if kind == "file")})
        with ThreadPoolExecutor(max_workers=16) as pool:
            sizes = dict(zip(names, pool.map(self.size, names), strict=True))
        return {name: size for name, size in sizes.items() if size is not None}

    def read(self, name: str, start: int = 0, length: int | None = None) -> bytes:
        if length == 0:
            return b""
        end = None if length is None else start + length

        def request(files: Any, path: str) -> bytes:
            try:
                data = bytes(files.cat_file(path, start=start, end=end) if start or end else files.cat_file(path))
            except Exception as error:
                if http_status(error) == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
                    return b""
                raise
            # A server that does not support ranges sends the whole file.
            return data[start:end] if length is not None and len(data) > length else data

        return self._ask("reading", name, request)

    def publish(self, temporary: Path, name: str) -> None:  # noqa: ARG002
        raise StorageError(errno.EROFS, _READ_ONLY, self.join(name))

    def remove(self, name: str) -> None:
        if self._info(name) is not None:
            raise StorageError(errno.EROFS, _READ_ONLY, self.join(name))

    def _path(self, root: str, name: str) -> str:
        return f"{self.join('')}/{quote(name)}" if name else root

    def _info(self, name: str) -> tuple[str, int] | None:
        def request(files: Any, path: str) -> tuple[str, int]:
            try:
                size = files.info(path)["size"]
            except FileNotFoundError as error:  # fsspec raises this error for every failure; its cause has the status
                if error.__cause__ is None or http_status(error.__cause__) in _NOT_THERE:
                    raise
                raise error.__cause__ from error
            return "file", len(files.cat_file(path)) if size is None else int(size)

        try:
            return self._ask("reading", name, request)
        except FileNotFoundError:
            return None

    def _entries(self) -> dict[str, tuple[str, int]]:
        def request(files: Any, path: str) -> dict[str, tuple[str, int]]:
            try:
                links = files.ls(f"{path.rstrip('/')}/", detail=True)
            except Exception as error:
                if http_status(error) in (HTTPStatus.FORBIDDEN, *_NOT_THERE):
                    return {}
                raise
            names = {unquote(link["name"].removeprefix(f"{path.rstrip('/')}/")): link["type"] for link in links}
            found = {
                name.rstrip("/"): (str(kind), 0) for name, kind in names.items() if not name.startswith(("?", "#"))
            }
            return {name: entry for name, entry in found.items() if name and "/" not in name}

        try:
            return self._ask("listing", "", request)
        except FileNotFoundError:
            return {}
