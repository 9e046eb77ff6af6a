"""Pickles of plain values (dict, list, str, numbers), read by an unpickler in which nothing can run."""

import io
import pickle
from pathlib import Path
from typing import Any

from refseg.errors import AnnotationError

# What a damaged pickle can make the C unpickler raise, as far as it is no `PickleError`.
_DAMAGED = (EOFError, ValueError, TypeError, AttributeError, LookupError, OverflowError, MemoryError, ImportError)


def load_plain_pickle(data: bytes, path: Path) -> Any:
    """Load a pickle of plain values, of any protocol.

    Python 2's `str` is read as Latin-1, as REFER's users do.

    Args:
        data: Content of the file.
        path: Of the file, for messages.

    Raises:
        AnnotationError: If the pickle asks for any global (class or function), or is damaged.
    """
    try:
        return PlainUnpickler(io.BytesIO(data), path).load()
    except (pickle.PickleError, *_DAMAGED) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise AnnotationError(f"{path}: cannot be read as a pickle of refs ({reason}); fetch the file again") from error


class PlainUnpickler(pickle.Unpickler):
    """An unpickler without globals: a pickle runs code only through a global it names."""

    def __init__(self, file: io.BufferedIOBase, path: Path) -> None:
        super().__init__(file, encoding="latin1")
        self._path = path

    def find_class(self, module: str, name: str) -> Any:
        """Refuse."""
        raise AnnotationError(
            f"{self._path}: the pickle asks for {module}.{name}, expected plain dicts, lists, strings and numbers; "
            "it may run code when loaded elsewhere, do not use it"
        )

    def persistent_load(self, _pid: Any) -> Any:
        """Refuse."""
        raise AnnotationError(
            f"{self._path}: the pickle asks for an outside object, expected plain dicts, lists, strings and numbers"
        )
