"""Holds published counts, with which builds are compared, and the bundled sample."""

from pathlib import Path


def sample_folder() -> Path:
    """Return the root folder of the bundled sample `sample/ccby` in REFER's layout.

    Its README credits the photographs.
    """
    return Path(__file__).parent / "sample"
