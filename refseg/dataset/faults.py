"""Describes a fault of a built dataset, with location, found and expected value, and advice for the user.

A reader raises the first fault as a `DamageError`. `refseg verify` lists all faults. Both use the same functions, so
that the same damage gives the same message.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from refseg.errors import DatasetError
from refseg.storage import Folder

MOST_FAULTS = 20
"""Largest number of faults listed for one file; the rest is only counted."""

REBUILD = "copy the file again from an undamaged copy, or delete the folder and build the dataset again"
CHANGED = f"the dataset was changed after it was built; {REBUILD}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One violation of the format in a dataset.

    Attributes:
        file: File name in the dataset's folder, or `<pool>/<file name>`.
        sample: The sample, ref or byte at which the fault was found. Empty if the fault concerns the whole file.
        found: What was found.
        expected: What was expected.
        remedy: What the user can do.
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
        """Return the error that a reader raises for this fault.

        Args:
            folder: The folder that contains the file. It is the folder of the dataset or of an image pool.
        """
        place = folder.join(self.file.rpartition("/")[2]) + (f": {self.sample}" if self.sample else "")
        error = DamageError(
            f"{place}: found {self.found}, expected {self.expected}; {self.remedy} (`refseg verify` lists every fault)"
        )
        error.fault = self
        return error


class DamageError(DatasetError):
    """A file of a dataset is missing, differs from the descriptor, or holds rows that the format forbids.

    Attributes:
        fault: The fault that the error reports.
    """

    fault: Fault


def shorten(faults: Sequence[Fault]) -> tuple[Fault, ...]:
    """Replace the faults of one file after the first `MOST_FAULTS` by one fault that counts them."""
    if len(faults) <= MOST_FAULTS:
        return tuple(faults)
    more = Fault(file=faults[0].file, found=f"{len(faults) - MOST_FAULTS} more faults", expected="none")
    return (*faults[:MOST_FAULTS], more)
