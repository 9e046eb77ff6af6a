"""Says which pictures are not there and what may have been meant; of a user's own table also where it names them."""

import unicodedata
from collections.abc import Mapping
from pathlib import Path

from pipelines.sources.raw import RawSource
from pipelines.survey_tables import Tables


def describe_missing(source: RawSource, tables: Tables, alike: Mapping[str, str], *, images: Path | str) -> str:
    """Name missing pictures, each with the first row that speaks of it and a file of nearly that name.

    Args:
        source: A `custom` dataset.
        tables: With pictures missing.
        alike: By name, the file that may have been meant (`ImageFinder.find_alike`).
        images: Where they were looked for, as the user gave it.
    """
    rows: dict[int, str] = {}
    for ref in source.refs:
        if ref["image_id"] in tables.missing:
            rows.setdefault(ref["image_id"], ref["where"])
    lines = [
        f"  {rows[image_id]}: found no file {name}{describe_alike(name, alike.get(name))}"
        for image_id, name in tables.missing.items()
    ]
    if tables.num_missing > len(lines):
        lines.append(f"  and {tables.num_missing - len(lines)} more")
    return (
        f"{source.spec.dataset_id}: {tables.num_missing} of {tables.num_found + tables.num_missing} pictures are not "
        f"below {images}; names are compared letter by letter, with their folders; correct the table, or give --images"
        "\n" + "\n".join(lines)
    )


def describe_alike(name: str, alike: str | None) -> str:
    """The end of a message about a missing picture: the file of nearly its name; empty if there is none."""
    if alike is None:
        return ""
    if unicodedata.normalize("NFC", alike) == unicodedata.normalize("NFC", name):
        return f"; there is {alike}, its letters written otherwise in Unicode ({alike!a} for {name!a})"
    return f"; there is {alike if alike == alike.strip() else repr(alike)}"
