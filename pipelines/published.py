"""Compares the counts of a build with counts that the datasets' authors or users have published."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files

from refseg.dataset.descriptor import SplitCounts

COUNTED = ("images", "refs", "sentences")
"""The counts of a split, which are the fields of `SplitCounts`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CountDifference:
    """A count that differs from the published count.

    Attributes:
        split: Name of the split.
        what: One of `COUNTED`.
        found: Count in the source.
        published: Count that the authors, or users who counted the authors' files, have published.
    """

    split: str
    what: str
    found: int
    published: int

    def __str__(self) -> str:
        return f"split {self.split}: found {self.found} {self.what}, expected {self.published} as published"


def published_counts(dataset_id: str) -> dict[str, SplitCounts]:
    """Return the published counts by split; empty for a dataset without published counts, such as the sample."""
    table = json.loads((files("manifests") / "published_counts.json").read_text(encoding="utf-8"))
    return {split: SplitCounts(**counts) for split, counts in table.get(dataset_id, {}).items()}


def find_differences(dataset_id: str, found: Mapping[str, SplitCounts]) -> list[CountDifference]:
    """Compare counts with the published counts, where both are known.

    Args:
        dataset_id: Dataset id with its partition.
        found: Counts of the source by split, including rejects.
    """
    differences = []
    published = published_counts(dataset_id)
    for split, counts in found.items():
        for what in COUNTED:
            here, there = getattr(counts, what), getattr(published.get(split), what, None)
            if here is not None and there is not None and here != there:
                differences.append(CountDifference(split=split, what=what, found=here, published=there))
    return differences
