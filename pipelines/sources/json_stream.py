"""Reads JSON files record by record, so that memory holds only one record.

`ijson` (3.6, yajl2_c) was measured as an alternative. It needs 2.4 times as long for a pass over COCO's tables. A
single `NaN` or number above 64 bits makes it refuse the whole file, whereas here only one record is rejected. A file of
100,000 opening brackets exhausts its memory.
"""

import codecs
import json
import re
from collections.abc import Container, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from pipelines.sources.source_file import open_source
from refseg.errors import AnnotationError
from refseg.values import one_line

_CHUNK = 1 << 20
_LARGEST_VALUE = 256 << 20
"""Largest number of characters of one record. A file that is not JSON is refused after this many characters."""


class _Every(Container[str]):
    """A container of all names."""

    def __contains__(self, name: object) -> bool:
        return True


_EVERY = _Every()
_SPACES = re.compile(r"[ \t\n\r]*")


class JsonList:
    """The items of a file that is one list. Each iteration reads the file again.

    Args:
        path: Path of the file.
        items: Name of the expected items, for messages.
    """

    def __init__(self, path: Path, *, items: str = "refs") -> None:
        self._path = path
        self._wanted = items

    def __iter__(self) -> Iterator[Any]:
        """Yield the items.

        Raises:
            AnnotationError: If the file is not JSON, or is not a list.
        """
        for _, item in _items(self._path, lists=None, wanted=self._wanted):
            yield item


class JsonTables:
    """The records of COCO's lists, each with the name of the list. Each iteration reads the file again.

    Args:
        path: Path of the file.
        required: Names of lists that must exist and must not be empty.
        optional: Names of lists that are read if they exist.
    """

    def __init__(self, path: Path, *, required: Sequence[str], optional: Sequence[str]) -> None:
        self._path = path
        self._required = tuple(required)
        self._optional = tuple(optional)

    def __iter__(self) -> Iterator[tuple[str, Any]]:
        """Yield `(name of the list, record)`.

        Raises:
            AnnotationError: If the file is not JSON or not an object, or if a required list is missing, empty or not a
                list.
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


class JsonLists:
    """The records of all lists in a file that is an object, each with the name of the list.

    Each iteration reads the file again.

    Args:
        path: Path of the file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def __iter__(self) -> Iterator[tuple[str, Any]]:
        """Yield `(name of the list, record)`.

        Raises:
            AnnotationError: If the file is not JSON, not an object, or has values that are not lists.
        """
        yield from _items(self._path, lists=_EVERY)


def read_json(path: Path) -> Any:
    """Read a whole file as one JSON value.

    Raises:
        AnnotationError: If the file cannot be read, or is not JSON.
    """
    with _values(path) as values:
        return values.read()


def _items(path: Path, lists: Container[str] | None, wanted: str = "refs") -> Iterator[tuple[str, Any]]:
    """Yield the items of a file that is one list (`lists` is None), or the items of the named lists of an object."""
    with _values(path) as values:
        mark = values.peek()
        if lists is None:
            if mark != "[":
                raise AnnotationError(f"{path}: {_describe_misfit(values, wanted)}")
            for item in values.items():
                yield "", item
            return
        if mark != "{":
            if mark != "[":
                values.read()  # raises an error if the file is not JSON
            coco = " with COCO's lists images, annotations and categories"
            expected = f"an object{' of lists' if lists is _EVERY else coco}"
            raise AnnotationError(f"{path}: found {_kind(mark)}, expected {expected}")
        for name in values.names():
            mark = values.peek()
            if mark == "[":
                for item in values.items():
                    if name in lists:
                        yield name, item
            elif values.read() is not None and name in lists:
                raise AnnotationError(f"{path}: found {_kind(mark)} as {name!r}, expected a list of records")


@contextmanager
def _values(path: Path) -> Iterator["_Values"]:
    """Yield the values of a file. At the end, check that nothing follows. Errors state the path."""
    try:
        with open_source(path) as file:
            values = _Values(file)
            yield values
            values.end()
    except UnicodeDecodeError as error:
        raise AnnotationError(f"{path}: is not UTF-8 ({error.reason}); save it as UTF-8") from error
    except ValueError as error:
        raise AnnotationError(
            f"{path}: cannot be read as JSON ({one_line(error):.200}); fetch the file again"
        ) from error


def _describe_misfit(values: "_Values", wanted: str) -> str:
    """Describe a file that should be a list. For an object, name a list in it that was probably meant."""
    mark = values.peek()
    if mark == "{":
        for name in values.names():
            if values.peek() == "[":
                return (
                    f"found an object in which {name[:40]!r} is a list, expected a list of {wanted}; if that is the "
                    f"list of {wanted}, save it alone as the file"
                )
            values.read()
    else:
        values.read()
    return f"found {_kind(mark)}, expected a list of {wanted}"


def _kind(mark: str) -> str:
    """Return the kind of a JSON value, which the first character determines."""
    kinds = {"{": "an object", "[": "a list", '"': "a string", "t": "true", "f": "false", "n": "null"}
    return kinds.get(mark, "a number")


class _Values:
    """Reads JSON values one after the other, with Python's own parser.

    Example: in `[{"id": 1}, {"id": 2}]`, `peek` returns `[`, and `items` yields the two objects. Only the text of the
    current object and the rest of the chunk are in memory.

    Args:
        file: A UTF-8 file, which is read in chunks.

    Raises:
        ValueError: From every method, if the file is not JSON.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._text = ""
        self._at = 0
        self._num_passed = 0  # characters before `_text`
        self._is_whole = False

    def peek(self) -> str:
        """Return the next character that is not white space; empty at the end of the file."""
        while True:
            self._at = _SPACES.match(self._text, self._at).end()  # type: ignore[union-attr]
            if self._at < len(self._text):
                return self._text[self._at]
            if self._is_whole:
                return ""
            self._fill(_CHUNK)

    def read(self) -> Any:
        """Read the next value."""
        self.peek()
        size = _CHUNK
        while True:
            try:
                value, end = _PARSER.raw_decode(self._text, self._at)
            except json.JSONDecodeError as error:
                # The value is either wrong or not yet completely read.
                if self._is_whole or len(self._text) - self._at > _LARGEST_VALUE:
                    raise ValueError(f"{error.msg} at character {self._num_passed + error.pos}") from error
            except RecursionError as error:
                start = self._num_passed + self._at
                raise ValueError(f"brackets are nested too deep in the value at character {start}") from error
            except ValueError as error:  # from `int`, which refuses numbers of thousands of digits
                start = self._num_passed + self._at
                raise ValueError(f"a number has too many digits in the value at character {start}") from error
            else:
                if end < len(self._text) or self._is_whole:  # otherwise more digits of a number may follow
                    self._at = end
                    return value
            self._fill(size)
            size *= 2

    def items(self) -> Iterator[Any]:
        """Yield the items of the next value, which must be a list."""
        self._expect("[")
        if self.peek() != "]":
            yield self.read()
            while self.peek() == ",":
                self._at += 1
                yield self.read()
        self._expect("]")

    def names(self) -> Iterator[str]:
        """Yield the names in the next value, which must be an object.

        The caller must read the value after each name.
        """
        self._expect("{")
        if self.peek() != "}":
            yield self._name()
            while self.peek() == ",":
                self._at += 1
                yield self._name()
        self._expect("}")

    def end(self) -> None:
        """Check that the file has ended."""
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


_PARSER = json.JSONDecoder()
"""A decoder that accepts `NaN` and `Infinity`, which Python writes. The check of records rejects them where they
matter.
"""
