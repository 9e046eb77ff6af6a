"""Tells which pictures of a user's own table are not there, where it names them, and what may have been meant."""

import unicodedata
from pathlib import Path

from pipelines.images import ImageFinder
from pipelines.sources.raw import RawSource
from pipelines.survey_tables import Tables


def describe_missing(source: RawSource, tables: Tables, finder: ImageFinder | None, *, images: Path | str) -> str:
    """Name missing pictures, each with the first row that speaks of it and a file of nearly that name.

    Args:
        source: A `custom` dataset.
        tables: With pictures missing.
        finder: Of the pictures; None: there is no folder of them.
        images: Where they were looked for, as the user gave it.
    """
    rows: dict[int, str] = {}
    for ref in source.refs:
        if ref["image_id"] in tables.missing:
            rows.setdefault(ref["image_id"], ref["where"])
    alike = finder.find_alike(tuple(tables.missing.values())) if finder else {}
    lines = [
        f"  {rows[image_id]}: found no file {name}{_hint(name, alike.get(name))}"
        for image_id, name in tables.missing.items()
    ]
    if tables.num_missing > len(lines):
        lines.append(f"  and {tables.num_missing - len(lines)} more")
    return (
        f"{source.spec.dataset_id}: {tables.num_missing} of {tables.num_found + tables.num_missing} pictures are not "
        f"below {images}; names are compared letter by letter, with their folders; correct the table, or give --images"
        "\n" + "\n".join(lines)
    )


def _hint(name: str, alike: str | None) -> str:
    if alike is None:
        return ""
    if unicodedata.normalize("NFC", alike) == unicodedata.normalize("NFC", name):
        return f"; there is {alike}, its letters written otherwise in Unicode ({alike!a} for {name!a})"
    return f"; there is {alike if alike == alike.strip() else repr(alike)}"
