"""Formats parts of messages: a count with its noun, a suggestion for a misspelt name, and text without control codes.

Names come from files and users, so all text that reaches a terminal or a log passes through `printable`.
"""

import difflib
import re
from collections.abc import Iterable

_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters except tab and newline, marks that reverse the direction of text, halves of surrogate pairs."""


def counted(number: int, noun: str, plural: str = "") -> str:
    """Return a number with its noun: `1 fault`, `2 faults`, `1,200 boxes`.

    Args:
        number: The number of things.
        noun: Singular of the noun.
        plural: Plural of the noun; empty: the singular with an `s`.
    """
    return f"{number:,} {noun if number == 1 else plural or f'{noun}s'}"


def closest(found: str, known: Iterable[str], *, likeness: float = 0.6) -> str | None:
    """Return the known name that is most similar to an unknown one, regardless of case; None if none is similar.

    Args:
        found: The unknown name.
        known: The known names.
        likeness: Smallest similarity by `difflib`, 0 to 1.
    """
    by_folded = {name.casefold(): name for name in known}
    close = difflib.get_close_matches(found.casefold(), by_folded, n=1, cutoff=likeness)
    return by_folded[close[0]] if close else None


def did_you_mean(found: str, known: Iterable[str]) -> str:
    """Return a text such as `; did you mean train?` to append to a message; empty if no known name is similar."""
    close = closest(found, known)
    return "" if close is None else f"; did you mean {close}?"


def printable(text: str) -> str:
    r"""Return the text with control characters escaped, such as `\x1b`, so that a terminal does not interpret them."""
    return _UNPRINTABLE.sub(lambda match: ascii(match[0])[1:-1], text)
