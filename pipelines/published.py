"""Counts that the datasets' authors and users published, to hold a build against."""

import json
from importlib.resources import files

from refseg.descriptor import SplitCounts


def published_counts(dataset_id: str) -> dict[str, SplitCounts]:
    """Published counts by split; empty for datasets without any (the sample, the toy)."""
    table = json.loads((files("manifests") / "published_counts.json").read_text(encoding="utf-8"))
    return {split: SplitCounts(**counts) for split, counts in table.get(dataset_id, {}).items()}
