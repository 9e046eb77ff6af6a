"""Reads pickles of plain values (dict, list, str, numbers) with an unpickler that cannot execute code."""

import io
import pickle
from pathlib import Path
from typing import Any

from pipelines.sources.numpy_pickle import NUMPY_GLOBALS, Maker, NumpyFault, replace_arrays
from refseg.errors import AnnotationError
from refseg.values import one_line

# Errors, besides `PickleError`, that the C unpickler raises for damaged pickles.
_DAMAGED = (
    *(EOFError, ValueError, TypeError, AttributeError, LookupError),
    *(OverflowError, MemoryError, ImportError, RecursionError),
)
_EXPECTED = "expected plain dicts, lists, strings and numbers"
_REMEDY = "save the records as JSON or with plain Python values"
_WINDOWS_LINES = (
    "its line ends were changed to those of Windows (CR LF), which damages a pickle; fetch the file again in binary "
    "mode, with git's autocrlf off"
)

_GLOBALS: dict[tuple[str, str], Maker] = {
    ("collections", "OrderedDict"): Maker(dict),
    ("builtins", "bytes"): Maker(lambda: b""),  # protocols 0 to 2 write empty bytes in this way
    ("__builtin__", "bytes"): Maker(lambda: b""),
    **NUMPY_GLOBALS,
}
"""The globals that a pickle may use, each with a replacement. The replacements make plain values and never call an
argument. The pickle cannot change them.
"""


def load_plain_pickle(data: bytes, path: Path) -> Any:
    """Load a pickle of plain values in any protocol. NumPy numbers and arrays become plain numbers and lists.

    Python 2's `str` is decoded as Latin-1, as in code that uses REFER.

    Args:
        data: Content of the file.
        path: Path of the file, for messages.

    Raises:
        AnnotationError: If the pickle uses any other global (class or function), or is damaged.
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
    """An unpickler that replaces a few globals with functions that make plain values, and refuses all others.

    A pickle can execute code only through a global that it names, so this unpickler never executes code.

    Attributes:
        has_globals: True if the pickle has used one of the allowed globals.
    """

    def __init__(self, file: io.BufferedIOBase, path: Path) -> None:
        super().__init__(file, encoding="latin1")
        self._path = path
        self.has_globals = False

    def find_class(self, module: str, name: str) -> Any:
        """Return the replacement for a global. Raise `AnnotationError` if the global is not allowed."""
        self.has_globals = True
        if (module, name) in _GLOBALS:
            return _GLOBALS[module, name]
        raise AnnotationError(
            f"{self._path}: the pickle uses {module}.{name}, {_EXPECTED}; nothing was executed, but other programs "
            f"that load the file may execute code: if you know who made it, {_REMEDY}"
        )

    def persistent_load(self, _pid: Any) -> Any:
        """Refuse a reference to an object outside the pickle."""
        raise AnnotationError(f"{self._path}: the pickle refers to an object outside it, {_EXPECTED}; {_REMEDY}")


def _is_text_pickle(data: bytes) -> bool:
    """Return True for a pickle of protocol 0, which consists of lines of text."""
    return data[:1] in (b"(", b"]", b"}", b"c", b"I", b"V", b"S") and b"\0" not in data


def _has_windows_lines(data: bytes) -> bool:
    """Return True if every line feed follows a carriage return, which does not occur in an undamaged pickle."""
    return data.count(b"\n") == data.count(b"\r\n") > 0
