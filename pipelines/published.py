"""Counts that the datasets' authors and users published, to hold a build against."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files

from refseg.dataset.descriptor import SplitCounts

COUNTED = ("images", "refs", "sentences")
"""What is counted of a split: the fields of `SplitCounts`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CountDifference:
    """A count that is not the published one.

    Attributes:
        split: Of the dataset.
        what: One of `COUNTED`.
        found: In the source.
        published: By the authors, or by those who counted their files.
    """

    split: str
    what: str
    found: int
    published: int

    def __str__(self) -> str:
        return f"split {self.split}: found {self.found} {self.what}, expected {self.published} as published"


def published_counts(dataset_id: str) -> dict[str, SplitCounts]:
    """Published counts by split; empty for datasets without any (the sample, the toy)."""
    table = json.loads((files("manifests") / "published_counts.json").read_text(encoding="utf-8"))
    return {split: SplitCounts(**counts) for split, counts in table.get(dataset_id, {}).items()}


def find_differences(dataset_id: str, found: Mapping[str, SplitCounts]) -> list[CountDifference]:
    """Compare counts with the published ones, as far as both are known.

    Args:
        dataset_id: With its partition.
        found: By split, those that were looked at: what the sources hold, rejects included.
    """
    differences = []
    published = published_counts(dataset_id)
    for split, counts in found.items():
        for what in COUNTED:
            here, there = getattr(counts, what), getattr(published.get(split), what, None)
            if here is not None and there is not None and here != there:
                differences.append(CountDifference(split=split, what=what, found=here, published=there))
    return differences
