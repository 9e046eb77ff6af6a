"""JSON files record by record: memory holds one record, whatever the size of the file.

`ijson` (3.6, yajl2_c) was measured in the place of this file. One pass over COCO's tables takes 2.4 times as long. It
refuses a file for one `NaN` or one number above 64 bits, of which here a single record is rejected, and a file of
100,000 opening brackets exhausts memory.
"""

import codecs
import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from pipelines.sources.source_file import open_source
from refseg.errors import AnnotationError
from refseg.values import one_line

_CHUNK = 1 << 20
_LARGEST_VALUE = 256 << 20
"""Characters of one record: where a file is not JSON, this much of it is read to see that."""
_SPACES = re.compile(r"[ \t\n\r]*")


class JsonList:
    """The items of a file that is one list; each iteration reads the file anew.

    Args:
        path: Of the file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def __iter__(self) -> Iterator[Any]:
        """Yield the items.

        Raises:
            AnnotationError: If the file is not JSON, or holds something else than a list.
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
            AnnotationError: If the file is not JSON or not an object, or a required list is missing, empty or something
                else.
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


def read_json(path: Path) -> Any:
    """The one value of a file, whole.

    Raises:
        AnnotationError: If the file cannot be read, or is not JSON.
    """
    with _values(path) as values:
        return values.read()


def _items(path: Path, lists: Sequence[str] | None) -> Iterator[tuple[str, Any]]:
    """Items of a file that is one list (`lists` is None), or of those lists in a file that is an object."""
    with _values(path) as values:
        mark = values.peek()
        if lists is None:
            if mark != "[":
                raise AnnotationError(f"{path}: {_describe_misfit(values)}")
            for item in values.items():
                yield "", item
            return
        if mark != "{":
            if mark != "[":
                values.read()  # raises where the file is not JSON
            raise AnnotationError(
                f"{path}: found {_kind(mark)}, expected an object with COCO's lists images, annotations and categories"
            )
        for name in values.names():
            mark = values.peek()
            if mark == "[":
                for item in values.items():
                    if name in lists:
                        yield name, item
            elif values.read() is not None and name in lists:
                raise AnnotationError(f"{path}: found {name!r} that is {_kind(mark)}, expected a list of records")


@contextmanager
def _values(path: Path) -> Iterator["_Values"]:
    """The values of a file; checks at the end that nothing follows, and names the file in every error."""
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


def _describe_misfit(values: "_Values") -> str:
    """Say what a file holds that should be a list of refs: of an object, the list in it that may have been meant."""
    mark = values.peek()
    if mark == "{":
        for name in values.names():
            if values.peek() == "[":
                return (
                    f"found an object in which {name[:40]!r} is a list, expected a list of refs; if it is that list, "
                    "save it alone as the file"
                )
            values.read()
    else:
        values.read()
    return f"found {_kind(mark)}, expected a list of refs"


def _kind(mark: str) -> str:
    """What a value is, by its first character."""
    kinds = {"{": "an object", "[": "a list", '"': "a text", "t": "true", "f": "false", "n": "null"}
    return kinds.get(mark, "a number")


class _Values:
    """JSON values one after the other, by Python's own parser.

    Args:
        file: UTF-8; read in chunks.

    Raises:
        ValueError: From every method, where the file is not JSON.
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
            except RecursionError as error:
                raise ValueError(f"brackets too deep from character {self._num_passed + self._at} on") from error
            except ValueError as error:  # of `int`, which refuses numbers of thousands of digits
                place = self._num_passed + self._at
                raise ValueError(f"a number of too many digits from character {place} on") from error
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


_PARSER = json.JSONDecoder()
"""Reads the `NaN` and `Infinity` that Python writes: a record in which they matter is refused where it is checked."""
