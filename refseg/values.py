"""Single values of files that people bring: whole numbers, text that can be kept, and how messages show the rest."""

import reprlib
from typing import Any, TypeGuard

_INT64 = 2**63
_EXACT = 2**53
"""From here on floats skip whole numbers: which id was meant cannot be told."""


def whole_number(value: Any, bound: int = _INT64) -> int | None:
    """Return a whole number as an int: `100`, and `100.0` or `9.001002844e+11` where a tool kept ids as floats.

    Args:
        value: As found.
        bound: The number must be at least `-bound` and less than `bound`.

    Returns:
        None for everything else, booleans and text included.
    """
    if type(value) is float and value.is_integer() and abs(value) < _EXACT:
        value = int(value)
    return value if type(value) is int and -bound <= value < bound else None


def is_text(value: Any) -> TypeGuard[str]:
    """True for text without halves of surrogate pairs, which no file can hold as UTF-8."""
    if not isinstance(value, str):
        return False
    return value.isascii() or not any("\ud800" <= letter <= "\udfff" for letter in value)


def short(value: Any) -> str:
    """A value as found, short and on one line."""
    return reprlib.repr(value).replace("\n", " ")


def one_line(error: BaseException) -> str:
    """What a library's error says, on one line and without control characters; its type if it says nothing."""
    text = getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)
