"""What a training set shares with evaluation splits, in words."""

from collections.abc import Mapping

Leaks = Mapping[str, Mapping[str, int]]
"""By training set, how many of its images each `<dataset id> <split>` has too (`Descriptor.leaks`)."""


def describe_leaks(leaks: Leaks) -> str:
    """Say what leaked, for example `refcoco/unc has 5 training images in refcocog/umd val, 3 in refcocog/umd test`."""
    if not leaks:
        return "no training image is in an evaluation split of a member"
    return "; ".join(
        f"{dataset} has " + ", ".join(_count(number, split, first=i == 0) for i, (split, number) in enumerate(found))
        for dataset, found in ((dataset, list(splits.items())) for dataset, splits in leaks.items())
    )


def describe_split_leak(leaks: Leaks, dataset: str, split: str) -> str:
    """Say how much of one split was trained on; empty if nothing is known to be."""
    found = {name: splits[f"{dataset} {split}"] for name, splits in leaks.items() if f"{dataset} {split}" in splits}
    if not found:
        return ""
    return (
        "images of this split were trained on: "
        + ", ".join(f"{number:,} by way of {name}" for name, number in found.items())
        + "; its scores are no measure of new images"
    )


def _count(number: int, split: str, *, first: bool) -> str:
    images = f" training image{'s' * (number > 1)}" if first else ""
    return f"{number:,}{images} in {split}"
