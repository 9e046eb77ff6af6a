"""What a caller asks of the loader is one of the words, and a number of the size, that there can be."""

from numbers import Integral
from typing import Any, get_args

from refseg.errors import UsageError


def check_word(name: str, found: object, words: Any) -> None:
    """Refuse what is none of a `Literal`'s words.

    Args:
        name: Of the argument.
        found: Its value.
        words: The `Literal` type.

    Raises:
        UsageError: With the argument's name, what was found, and the words.
    """
    if found not in get_args(words):
        raise UsageError(f"{name} is {found!r}; expected {' or '.join(map(repr, get_args(words)))}")


def check_number(name: str, found: object, *, least: int, more: str = "") -> None:
    """Refuse what is no whole number, or below one.

    Args:
        name: Of the argument.
        found: Its value.
        least: Lowest value there can be.
        more: Said after that.

    Raises:
        UsageError: With the argument's name, what was found, and what was expected.
    """
    if not isinstance(found, Integral) or int(found) < least:
        raise UsageError(f"{name} is {found!r}; expected a whole number, at least {least}{more}")
