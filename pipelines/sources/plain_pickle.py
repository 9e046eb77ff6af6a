"""Pickles of plain values (dict, list, str, numbers), read by an unpickler in which nothing can run."""

import io
import pickle
from pathlib import Path
from typing import Any

from pipelines.sources.numpy_pickle import NUMPY_GLOBALS, Maker, NumpyFault, replace_arrays
from refseg.errors import AnnotationError
from refseg.values import one_line

# What a damaged pickle can make the C unpickler raise, as far as it is no `PickleError`.
_DAMAGED = (
    *(EOFError, ValueError, TypeError, AttributeError, LookupError),
    *(OverflowError, MemoryError, ImportError, RecursionError),
)
_EXPECTED = "expected plain dicts, lists, strings and numbers"
_REMEDY = "save the records as JSON or with plain Python values"
_WINDOWS_LINES = (
    "its line ends were changed to Windows' (CR LF), which spoils a pickle; fetch the file again in binary mode, with "
    "git's autocrlf off"
)

_GLOBALS: dict[tuple[str, str], Maker] = {
    ("collections", "OrderedDict"): Maker(dict),
    ("builtins", "bytes"): Maker(lambda: b""),  # protocols 0 to 2 write bytes without content so
    ("__builtin__", "bytes"): Maker(lambda: b""),
    **NUMPY_GLOBALS,
}
"""What a pickle may name, and what it gets in its place: makers of plain values, which call nothing that they are given
and which the pickle cannot change."""


def load_plain_pickle(data: bytes, path: Path) -> Any:
    """Load a pickle of plain values, of any protocol; NumPy's numbers and arrays of numbers become plain ones.

    Python 2's `str` is read as Latin-1, as REFER's users do.

    Args:
        data: Content of the file.
        path: Of the file, for messages.

    Raises:
        AnnotationError: If the pickle asks for any other global (class or function), or is damaged.
    """
    if data.lstrip()[:1] in (b"[", b"{"):
        raise AnnotationError(f"{path}: is JSON or text, expected a pickle; give it the suffix .json")
    if _is_text_pickle(data) and _has_windows_lines(data):
        raise AnnotationError(f"{path}: {_WINDOWS_LINES}")
    try:
        unpickler = PlainUnpickler(io.BytesIO(data), path)
        value = unpickler.load()
        return replace_arrays(value) if unpickler.has_globals else value
    except NumpyFault as fault:
        raise AnnotationError(f"{path}: the pickle {fault}, {_EXPECTED}; {_REMEDY}") from fault
    except (pickle.PickleError, *_DAMAGED) as error:
        if _has_windows_lines(data):
            raise AnnotationError(f"{path}: {_WINDOWS_LINES}") from error
        raise AnnotationError(
            f"{path}: cannot be read as a pickle of refs ({one_line(error)}); fetch the file again"
        ) from error


class PlainUnpickler(pickle.Unpickler):
    """An unpickler that gives no globals but makers of plain values: a pickle runs code only through a global it names.

    Attributes:
        has_globals: True once the pickle has named one of them.
    """

    def __init__(self, file: io.BufferedIOBase, path: Path) -> None:
        super().__init__(file, encoding="latin1")
        self._path = path
        self.has_globals = False

    def find_class(self, module: str, name: str) -> Any:
        """Return the maker of a plain value, or refuse."""
        self.has_globals = True
        if (module, name) in _GLOBALS:
            return _GLOBALS[module, name]
        raise AnnotationError(
            f"{self._path}: the pickle asks for {module}.{name}, {_EXPECTED}; nothing was run, but it may run code "
            f"when loaded elsewhere: if you know who made it, {_REMEDY}"
        )

    def persistent_load(self, _pid: Any) -> Any:
        """Refuse."""
        raise AnnotationError(f"{self._path}: the pickle asks for an outside object, {_EXPECTED}; {_REMEDY}")


def _is_text_pickle(data: bytes) -> bool:
    """True for protocol 0, which is lines of text."""
    return data[:1] in (b"(", b"]", b"}", b"c", b"I", b"V", b"S") and b"\0" not in data


def _has_windows_lines(data: bytes) -> bool:
    """True if every line feed follows a carriage return, which a whole pickle does not have by chance."""
    return data.count(b"\n") == data.count(b"\r\n") > 0
