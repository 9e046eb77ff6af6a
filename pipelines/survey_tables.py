"""Reads a source's tables, finds images, assigns records to shards, and collects categories and licences."""

import hashlib
import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

from pipelines.images import SourceImage
from pipelines.records import find_integer
from pipelines.sources.raw import RawSource
from pipelines.spill import Spill
from pipelines.survey import Survey
from refseg.values import is_text, short, whole_number

logger = logging.getLogger(__name__)

_MOST_NAMED = 10
"""Largest number of missing images, or of records without an id, that a message names."""

FindImage = Callable[[int, str], SourceImage | None]
"""A function from image id and file name to the location of the image's bytes, or None if it is not found."""


@dataclass(slots=True)
class Tables:
    """The results of the pass that do not belong to a single shard.

    Attributes:
        categories: Category names as found in the source, by category id. If an id has several names, they are a list.
        licences: Names and addresses of the licences of the images in use.
        num_found: Number of images whose bytes were found.
        num_missing: Number of images whose bytes were not found.
        missing: File names of the first ten missing images, by image id.
        images_digest: Hash of the ids, names and sizes of all images that were found. It does not depend on the images'
            order.
    """

    categories: dict[int, Any] = field(default_factory=dict)
    licences: tuple[str, ...] = ()
    num_found: int = 0
    num_missing: int = 0
    missing: dict[int, str] = field(default_factory=dict)
    images_digest: str = ""


def survey_tables(source: RawSource, survey: Survey, find_image: FindImage, spill: Spill | None) -> Tables:
    """Read the tables, find the images, and append each record to the files of the shards that need it.

    Args:
        source: The dataset.
        survey: Survey of the dataset's refs.
        find_image: Finds the location of an image's bytes.
        spill: Files to which records are appended. If None, records are not stored, and only images are found.

    Raises:
        AnnotationError: If the source cannot be read.
    """
    tables = Tables()
    licences: dict[int, str] = {}
    used_licences: set[Any] = set()
    digest = 0
    positions: Counter[str] = Counter()
    nameless = _Nameless()
    for section, record in source.tables:
        key = find_integer(record, "id")
        positions[section] += 1
        if key is None:  # no ref can refer to it
            nameless.add(f"{section}[{positions[section] - 1}]", record)
            continue
        if section == "images":
            if shards := survey.shards_of_image(key):
                file_name = record.get("file_name")
                found = find_image(key, file_name) if isinstance(file_name, str) else None
                if found is None:
                    tables.num_missing += 1
                    if len(tables.missing) < _MOST_NAMED:
                        tables.missing[key] = str(file_name)
                else:
                    tables.num_found += 1
                    fact = f"{key} {found.name} {found.num_bytes}"
                    digest += int.from_bytes(hashlib.sha256(fact.encode(errors="replace")).digest())
                licence = record.get("license")
                used_licences.add(whole_number(licence))
                if spill is not None:
                    location = None if found is None else asdict(found)
                    for shard in shards:
                        spill.add(shard, "image", location, record)
        elif section == "annotations":
            if spill is not None:
                for shard in survey.shards_of_annotation(key):
                    spill.add(shard, "annotation", None, record)
        elif section == "categories":
            name = record.get("name")
            is_other = key in tables.categories and tables.categories[key] != name
            tables.categories[key] = [tables.categories[key], name] if is_other else name
        elif section == "licenses":
            texts = (record.get(name) for name in ("name", "url"))
            licences[key] = " ".join(text for text in texts if is_text(text) and text)
    nameless.warn(source.spec.dataset_id)
    tables.images_digest = f"{digest % 2**256:064x}"
    tables.licences = tuple(f"images: {licences[key]}" for key in sorted(licences) if key in used_licences)
    return tables


@dataclass(slots=True)
class _Nameless:
    """Records that no ref can refer to, because the record's id is not an integer."""

    named: list[str] = field(default_factory=list)
    number: int = 0

    def add(self, where: str, record: Any) -> None:
        self.number += 1
        if len(self.named) < _MOST_NAMED:
            found = f"id {short(record.get('id'))}" if isinstance(record, dict) else f"found {short(record)}"
            self.named.append(f"{where}: {found}")

    def warn(self, dataset_id: str) -> None:
        if self.number:
            more = f"; and {self.number - len(self.named)} more" if self.number > len(self.named) else ""
            logger.warning(
                "%s: %d records of instances.json are ignored, because their id is not a whole number: %s%s",
                *(dataset_id, self.number, "; ".join(self.named), more),
            )
