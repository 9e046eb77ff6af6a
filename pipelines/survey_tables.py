"""The one pass over a source's tables: images found, records brought to their shards, names and licences kept."""

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
"""Missing images, and records without an id, that a message names."""

FindImage = Callable[[int, str], SourceImage | None]
"""Image id and file name to where the bytes are, or None."""


@dataclass(slots=True)
class Tables:
    """What the tables say besides the records of single shards.

    Attributes:
        categories: By category id: the name as found; of an id with several names, all of them.
        licences: Name and address of each licence of the images in use.
        num_found: Images whose bytes were found.
        num_missing: Images whose bytes were not found.
        missing: By id, the names of the first ten of them.
        images_digest: Hash of ids, names and sizes of all images found; their order does not matter.
    """

    categories: dict[int, Any] = field(default_factory=dict)
    licences: tuple[str, ...] = ()
    num_found: int = 0
    num_missing: int = 0
    missing: dict[int, str] = field(default_factory=dict)
    images_digest: str = ""


def survey_tables(source: RawSource, survey: Survey, find_image: FindImage, spill: Spill | None) -> Tables:
    """Go through the tables: find the images, and bring every record to the shards that need it.

    Args:
        source: The dataset.
        survey: Survey of its refs.
        find_image: See there.
        spill: Where records go; None: nowhere, for a look at the names and sizes of images alone.

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
        if key is None:  # nothing can point to it
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
                    place = None if found is None else asdict(found)
                    for shard in shards:
                        spill.add(shard, "image", place, record)
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
    """Records to which nothing can point, as their id is not a whole number."""

    named: list[str] = field(default_factory=list)
    number: int = 0

    def add(self, place: str, record: Any) -> None:
        self.number += 1
        if len(self.named) < _MOST_NAMED:
            found = f"id {short(record.get('id'))}" if isinstance(record, dict) else f"found {short(record)}"
            self.named.append(f"{place}: {found}")

    def warn(self, dataset_id: str) -> None:
        if self.number:
            more = f"; and {self.number - len(self.named)} more" if self.number > len(self.named) else ""
            logger.warning(
                "%s: %d records of instances.json are passed over, whose id is not a whole number: %s%s",
                *(dataset_id, self.number, "; ".join(self.named), more),
            )
