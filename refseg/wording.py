"""Words that messages share: counts with their noun, the known name that is closest to an unknown one, safe text.

Names come from files and people, so whatever reaches a terminal or a log passes through `printable`.
"""

import difflib
import re
from collections.abc import Iterable

_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters but tab and newline, marks that reverse the direction of text, halves of a surrogate pair."""


def counted(number: int, noun: str, plural: str = "") -> str:
    """A number with its noun: `1 fault`, `2 faults`, `1,200 boxes`.

    Args:
        number: How many.
        noun: In the singular.
        plural: Where it is not the singular with an `s`.
    """
    return f"{number:,} {noun if number == 1 else plural or f'{noun}s'}"


def closest(found: str, known: Iterable[str], *, likeness: float = 0.6) -> str | None:
    """The known name that is most like an unknown one, capitals aside; None if none is.

    Args:
        found: The unknown name.
        known: The names there are.
        likeness: Least likeness by `difflib`, 0 to 1.
    """
    by_folded = {name.casefold(): name for name in known}
    close = difflib.get_close_matches(found.casefold(), by_folded, n=1, cutoff=likeness)
    return by_folded[close[0]] if close else None


def did_you_mean(found: str, known: Iterable[str]) -> str:
    """`; did you mean train?`, to be put behind a message; empty if no known name is like the unknown one."""
    close = closest(found, known)
    return "" if close is None else f"; did you mean {close}?"


def printable(text: str) -> str:
    r"""Text in which control characters are shown, such as `\x1b`, so that a terminal does not obey them."""
    return _UNPRINTABLE.sub(lambda match: ascii(match[0])[1:-1], text)
