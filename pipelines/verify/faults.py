"""What a check finds: one fault with its file, sample and remedy."""

from collections.abc import Sequence
from dataclasses import dataclass

MOST_FAULTS = 20
"""Faults told of one file; where everything is wrong, the rest adds nothing."""

REBUILD = "copy it again from where it is whole, or delete the folder and build the dataset again"


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One thing that is not as it must be.

    Attributes:
        file: File name in the dataset's folder, or `<pool>/<file name>`.
        sample: The sample, ref or byte it was found at; empty: the file as a whole.
        found: What is there.
        expected: What should be.
        remedy: What to do.
    """

    file: str
    sample: str = ""
    found: str
    expected: str
    remedy: str = REBUILD

    def __str__(self) -> str:
        place = f"{self.file}, {self.sample}" if self.sample else self.file
        return f"{place}: found {self.found}, expected {self.expected}; {self.remedy}"


def shorten(faults: Sequence[Fault]) -> tuple[Fault, ...]:
    """Sum up all but the first of many faults of one file."""
    if len(faults) <= MOST_FAULTS:
        return tuple(faults)
    more = Fault(file=faults[0].file, found=f"{len(faults) - MOST_FAULTS} more faults", expected="none")
    return (*faults[:MOST_FAULTS], more)
