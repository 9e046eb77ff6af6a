"""What a training set shares with evaluation splits, in words."""

from collections.abc import Mapping
from typing import Any

Leaks = Mapping[str, Mapping[str, int]]
"""By training set, how many of its images each `<dataset id> <split>` has too: `refseg.descriptor.Descriptor.leaks`."""


def describe_leaks(leaks: Leaks) -> str:
    """Say what leaked, for example `refcoco/unc has 5 training images in refcocog/umd val, 3 in refcocog/umd test`."""
    if not leaks:
        return "no training image is in an evaluation split of a member"
    return "; ".join(f"{dataset} has {_describe_splits(splits)}" for dataset, splits in leaks.items())


def leak_warning(origin: Mapping[str, Any]) -> str:
    """Say what stands beside every score of a model whose training set was mixed with leaks allowed.

    Args:
        origin: Of evaluation results: `leaks_allowed`, `leaks`, `trained_on`, `dataset`, `split`.

    Returns:
        One sentence; empty where leaks were not allowed (results of earlier releases too).
    """
    if not origin.get("leaks_allowed"):
        return ""
    place = f"{origin['dataset']} {origin['split']}"
    own = {dataset: splits[place] for dataset, splits in origin["leaks"].items() if place in splits}
    here = ", ".join(f"{number:,} by way of {dataset}" for dataset, number in own.items())
    return (
        f"LEAKS ALLOWED: {origin['trained_on']} was mixed with training images that members evaluate on; "
        + (f"images of {place} trained on: {here}; " if here else f"none of {place} is known to be among them; ")
        + f"in all, {describe_leaks(origin['leaks'])}"
    )


def _describe_splits(splits: Mapping[str, int]) -> str:
    first, *others = splits.items()
    images = "training image" if first[1] == 1 else "training images"
    return ", ".join([f"{first[1]:,} {images} in {first[0]}", *(f"{number:,} in {split}" for split, number in others)])
