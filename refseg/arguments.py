"""Checks of arguments: a value is one of the words of a `Literal`, or a whole number that is large enough."""

from numbers import Integral
from typing import Any, get_args

from refseg.errors import UsageError


def check_word(name: str, found: object, words: Any) -> None:
    """Refuse a value that is not among the words of a `Literal`.

    Args:
        name: Name of the argument, for the message.
        found: Value of the argument.
        words: The `Literal` type.

    Raises:
        UsageError: If the value is none of the words. The message holds the name, the value and the allowed words.
    """
    if found not in get_args(words):
        raise UsageError(f"{name} is {found!r}; expected {' or '.join(map(repr, get_args(words)))}")


def check_number(name: str, found: object, *, least: int, more: str = "") -> None:
    """Refuse a value that is not a whole number, or is below a minimum.

    Args:
        name: Name of the argument, for the message.
        found: Value of the argument.
        least: Smallest allowed value.
        more: Text that the message appends to the minimum.

    Raises:
        UsageError: If the value is refused. The message holds the name, the value and the expected range.
    """
    if not isinstance(found, Integral) or int(found) < least:
        raise UsageError(f"{name} is {found!r}; expected a whole number, at least {least}{more}")
