"""A fault of a built dataset: where it is, what was found, what was expected, what to do.

A reader stops at the first one, as a `DamageError`; `refseg verify` lists all of them. Both take them from the same
functions, so that one damage has one wording.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from refseg.errors import DatasetError
from refseg.storage import Folder

MOST_FAULTS = 20
"""Faults listed of one file; where everything is wrong, the rest adds nothing."""

REBUILD = "copy it again from where it is whole, or delete the folder and build the dataset again"
CHANGED = f"the dataset was changed after it was built; {REBUILD}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One thing in a dataset that is not as it must be.

    Attributes:
        file: File name in the dataset's folder, or `<pool>/<file name>`.
        sample: The sample, ref or byte at which it was found; empty: the file as a whole.
        found: What is there.
        expected: What should be there.
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

    def error(self, folder: Folder) -> "DamageError":
        """The error with which a reader refuses the dataset.

        Args:
            folder: The folder that holds the file: the dataset's, or the pool's for a file of an image pool.
        """
        place = folder.join(self.file.rpartition("/")[2]) + (f": {self.sample}" if self.sample else "")
        error = DamageError(
            f"{place}: found {self.found}, expected {self.expected}; {self.remedy} (`refseg verify` lists every fault)"
        )
        error.fault = self
        return error


class DamageError(DatasetError):
    """A dataset's files are not those that its descriptor names, or hold rows that the format forbids."""

    fault: Fault


def shorten(faults: Sequence[Fault]) -> tuple[Fault, ...]:
    """Sum up all but the first of many faults of one file."""
    if len(faults) <= MOST_FAULTS:
        return tuple(faults)
    more = Fault(file=faults[0].file, found=f"{len(faults) - MOST_FAULTS} more faults", expected="none")
    return (*faults[:MOST_FAULTS], more)
