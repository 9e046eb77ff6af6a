"""Checks single values of users' files (whole numbers, text), and shortens values and errors for messages."""

import reprlib
from typing import Any, TypeGuard

_INT64 = 2**63
_EXACT = 2**53
"""From 2**53 on, a float cannot represent every whole number, so that an id stored as a float is ambiguous."""


def whole_number(value: Any, bound: int = _INT64) -> int | None:
    """Return a whole number as an int, also one that a tool stored as a float, such as `100.0` or `9.001002844e+11`.

    Args:
        value: The value in the file.
        bound: The number must be at least `-bound` and less than `bound`.

    Returns:
        The number; None for every other value, booleans and text included.
    """
    if type(value) is float and value.is_integer() and abs(value) < _EXACT:
        value = int(value)
    return value if type(value) is int and -bound <= value < bound else None


def is_text(value: Any) -> TypeGuard[str]:
    """Return True for text that can be written as UTF-8, which excludes halves of surrogate pairs."""
    if not isinstance(value, str):
        return False
    return value.isascii() or not any("\ud800" <= letter <= "\udfff" for letter in value)


def short(value: Any) -> str:
    """Return a value's representation, shortened and on one line."""
    return reprlib.repr(value).replace("\n", " ")


def one_line(error: BaseException) -> str:
    """Return a library error's message on one line and without control characters, or its type if it has no message."""
    text = getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)
