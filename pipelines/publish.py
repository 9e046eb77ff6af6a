"""Publication of files: whole under their name, or not there at all, also after a power cut."""

import os
from pathlib import Path


def publish(temporary: Path, final: Path) -> None:
    """Give a finished temporary file its name, in one step.

    The content goes to the disk first: a rename that outlives a power cut without it would publish an empty file.
    """
    with temporary.open("rb+") as file:
        os.fsync(file.fileno())
    temporary.replace(final)
    sync_folder(final.parent)


def publish_bytes(data: bytes, final: Path, temporary: Path) -> None:
    """Write a small file and publish it."""
    temporary.write_bytes(data)
    publish(temporary, final)


def sync_folder(folder: Path) -> None:
    """Bring a folder's entries (new names) to the disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
