"""JSON files record by record: memory holds one record, whatever the size of the file."""

import codecs
import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from refseg.descriptor import SourceFile
from refseg.errors import AnnotationError

_CHUNK = 1 << 20
_LARGEST_VALUE = 256 << 20
"""Characters of one record: where a file is no JSON, this much of it is read to see that."""
_SPACES = re.compile(r"[ \t\n\r]*")


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
        for _, item in _items(self._path, lists=None):
            yield item


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
        wanted = (*self._required, *self._optional)
        missing = set(self._required)
        for name, record in _items(self._path, lists=wanted):
            missing.discard(name)
            yield name, record
        if missing:
            name = next(name for name in wanted if name in missing)
            raise AnnotationError(
                f"{self._path}: found no list {name!r}, expected COCO's images, annotations and categories"
            )


def describe_file(path: Path, name: str) -> SourceFile:
    """Hash an annotation file.

    Args:
        path: Of the file.
        name: What the descriptor calls it.

    Raises:
        AnnotationError: If it cannot be read.
    """
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            num_bytes = file.tell()
    except OSError as error:
        raise AnnotationError(f"{path}: cannot be read ({error.strerror})") from error
    return SourceFile(name=name, num_bytes=num_bytes, sha256=digest)


def _items(path: Path, lists: Sequence[str] | None) -> Iterator[tuple[str, Any]]:
    """Items of a file that is one list (`lists` is None), or of those lists in a file that is an object."""
    try:
        with path.open("rb") as file:
            values = _Values(file)
            if values.peek() == "[" and lists is None:
                for item in values.items():
                    yield "", item
            elif values.peek() == "{" and lists is not None:
                for name in values.names():
                    if values.peek() == "[":
                        for item in values.items():
                            if name in lists:
                                yield name, item
                    else:
                        values.read()
            else:
                values.read()
            values.end()
    except OSError as error:
        raise AnnotationError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())[:200]
        raise AnnotationError(f"{path}: cannot be read as JSON ({reason}); fetch the file again") from error


class _Values:
    """JSON values one after the other, by Python's own parser: three times as many a second as by a parser of events.

    Args:
        file: UTF-8; read in chunks.

    Raises:
        ValueError: From every method, where the file is no JSON.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._text = ""
        self._at = 0
        self._num_passed = 0  # characters before `_text`
        self._is_whole = False

    def peek(self) -> str:
        """The next character that is no space, empty at the end of the file."""
        while True:
            self._at = _SPACES.match(self._text, self._at).end()  # type: ignore[union-attr]
            if self._at < len(self._text):
                return self._text[self._at]
            if self._is_whole:
                return ""
            self._fill(_CHUNK)

    def read(self) -> Any:
        """The next value."""
        self.peek()
        size = _CHUNK
        while True:
            try:
                value, end = _PARSER.raw_decode(self._text, self._at)
            except json.JSONDecodeError as error:
                # Wrong, or not yet there as a whole.
                if self._is_whole or len(self._text) - self._at > _LARGEST_VALUE:
                    raise ValueError(f"{error.msg} at character {self._num_passed + error.pos}") from error
            else:
                if end < len(self._text) or self._is_whole:  # a number may go on
                    self._at = end
                    return value
            self._fill(size)
            size *= 2

    def items(self) -> Iterator[Any]:
        """The items of the list that comes next."""
        self._expect("[")
        if self.peek() != "]":
            yield self.read()
            while self.peek() == ",":
                self._at += 1
                yield self.read()
        self._expect("]")

    def names(self) -> Iterator[str]:
        """The names in the object that comes next; the caller reads the value behind each."""
        self._expect("{")
        if self.peek() != "}":
            yield self._name()
            while self.peek() == ",":
                self._at += 1
                yield self._name()
        self._expect("}")

    def end(self) -> None:
        """Check that nothing follows."""
        if self.peek():
            raise ValueError(f"more than one value, at character {self._num_passed + self._at}")

    def _name(self) -> str:
        if self.peek() != '"':
            self._expect('"')
        name = self.read()
        self._expect(":")
        return str(name)

    def _expect(self, mark: str) -> None:
        if self.peek() != mark:
            found = self.peek() or "the end"
            raise ValueError(f"found {found!r}, expected {mark!r} at character {self._num_passed + self._at}")
        self._at += 1

    def _fill(self, size: int) -> None:
        chunk = self._file.read(size)
        self._num_passed += self._at
        self._text = self._text[self._at :] + self._decoder.decode(chunk, final=not chunk)
        self._at = 0
        self._is_whole = not chunk


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


_PARSER = json.JSONDecoder(parse_constant=_refuse_constant)
