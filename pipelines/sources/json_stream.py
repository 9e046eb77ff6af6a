"""JSON files record by record: memory holds one record, whatever the size of the file."""

import hashlib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import ijson

from refseg.descriptor import SourceFile
from refseg.errors import AnnotationError

_CHUNK = 1 << 20
# Half of a surrogate pair is no text; the parser would turn it into a question mark without a word.
_HIGH, _LOW = rb"(?<!\\)\\u[dD][89abAB][0-9a-fA-F]{2}", rb"\\u[dD][c-fC-F][0-9a-fA-F]{2}"
_LONE_SURROGATE = re.compile(rb"%b(?!%b)|(?<!\\u[dD][89abAB][0-9a-fA-F]{2})(?<!\\)%b" % (_HIGH, _LOW, _LOW))
_PAIR = 12  # bytes of an escaped pair


class JsonList:
    """The items of a file that is one list; each iteration reads the file anew.

    Args:
        path: Of the file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def __iter__(self) -> Iterator[Any]:
        """Yield the items; nothing if the file holds something else than a list.

        Raises:
            AnnotationError: If the file is no JSON.
        """
        return _items(self._path, "item")


class JsonTables:
    """The records of COCO's lists, each with the name of its list; each iteration reads the file anew.

    Args:
        path: Of the file.
        required: Lists that must hold something.
        optional: Lists that may be there.
    """

    def __init__(self, path: Path, *, required: Sequence[str], optional: Sequence[str]) -> None:
        self._path = path
        self._required = tuple(required)
        self._optional = tuple(optional)

    def __iter__(self) -> Iterator[tuple[str, Any]]:
        """Yield `(name of the list, record)`.

        Raises:
            AnnotationError: If the file is no JSON, or a required list is missing or empty.
        """
        for name in (*self._required, *self._optional):
            is_there = False
            for record in _items(self._path, f"{name}.item"):
                is_there = True
                yield name, record
            if name in self._required and not is_there:
                raise AnnotationError(
                    f"{self._path}: found no list {name!r}, expected COCO's images, annotations and categories"
                )


def describe_file(path: Path, name: str) -> SourceFile:
    """Hash an annotation file.

    Args:
        path: Of the file.
        name: What the descriptor calls it.

    Raises:
        AnnotationError: If it cannot be read, or is JSON that holds half of a surrogate pair.
    """
    digest = hashlib.sha256()
    num_bytes = 0
    tail = b""
    is_text = path.suffix in (".json", ".jsonl")
    try:
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
                if is_text:
                    _refuse_lone_surrogates(path, tail + chunk, start=num_bytes - len(tail))
                    tail = (tail + chunk)[-2 * _PAIR :]
                num_bytes += len(chunk)
            if is_text:
                _refuse_lone_surrogates(path, tail + b" " * _PAIR, start=num_bytes - len(tail))
    except OSError as error:
        raise AnnotationError(f"{path}: cannot be read ({error.strerror})") from error
    return SourceFile(name=name, num_bytes=num_bytes, sha256=digest.hexdigest())


def _items(path: Path, prefix: str) -> Iterator[Any]:
    try:
        with path.open("rb") as file:
            yield from ijson.items(file, prefix, use_float=True, buf_size=_CHUNK)
    except OSError as error:
        raise AnnotationError(f"{path}: cannot be read ({error.strerror})") from error
    except (ijson.JSONError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise AnnotationError(f"{path}: cannot be read as JSON ({reason}); fetch the file again") from error


def _refuse_lone_surrogates(path: Path, text: bytes, start: int) -> None:
    """Look through a piece of a file; pieces share two pairs of bytes, so that each place is seen with its context."""
    if b"\\ud" not in text and b"\\uD" not in text:  # as good as always, and ten times faster
        return
    for found in _LONE_SURROGATE.finditer(text):
        if found.start() <= len(text) - _PAIR and (found.start() >= _PAIR or not start):
            raise AnnotationError(
                f"{path}: at byte {start + found.start()}: {found.group().decode()} is half of a surrogate pair, "
                "which no text holds; mend or leave out that record"
            )
