"""What a training set shares with evaluation splits, in words."""

from collections.abc import Mapping
from typing import Any

Leaks = Mapping[str, Mapping[str, int]]
"""By training set, how many of its images each `<dataset id> <split>` has too: `Descriptor.leaks`."""


def describe_leaks(leaks: Leaks) -> str:
    """Say what leaked, for example `refcoco/unc has 5 training images in refcocog/umd val, 3 in refcocog/umd test`."""
    if not leaks:
        return "no training image is in an evaluation split of a member"
    return "; ".join(f"{dataset} has {_describe_splits(splits)}" for dataset, splits in leaks.items())


def leak_warning(origin: Mapping[str, Any]) -> str:
    """Say what stands beside every score of a model that was, or may have been, trained on images of the split.

    That is one scored with `--allow-leak`, one of a leaky mix, and one whose training images nobody could look at.

    Args:
        origin: Of evaluation results: `leaks_allowed`, `leaks`, `leak_check`, `trained_on`, `dataset`, `split`, and
            the same of each of the `ancestors` that the model's weights come from.

    Returns:
        One sentence; empty where nothing leaked (or nobody looked: results of earlier releases, other projects' masks).
    """
    check = origin.get("leak_check") or {}
    said = []
    if check.get("num_shared"):
        said.append(f"{check['num_shared']:,} of {check['num_images']:,} images were trained on ({check['says']})")
    place = f"{origin['dataset']} {origin['split']}"
    if origin.get("leaks_allowed"):
        said.append(_describe_mix(origin["trained_on"], origin["leaks"], place))
    for ancestor in origin.get("ancestors", ()):
        if ancestor["leaks_allowed"]:
            said.append(_describe_mix(ancestor["dataset"], ancestor["leaks"], place))
    if said:
        return f"LEAKS ALLOWED: {'; '.join(said)}"
    return f"LEAKS NOT RULED OUT: {check['says']}" if check and check["num_shared"] is None else ""


def _describe_mix(mix: str, leaks: Leaks, place: str) -> str:
    own = {dataset: splits[place] for dataset, splits in leaks.items() if place in splits}
    here = ", ".join(f"{number:,} by way of {dataset}" for dataset, number in own.items())
    return (
        f"{mix} was mixed with training images that members evaluate on; "
        + (f"images of {place} trained on: {here}; " if here else f"none of {place} is known to be among them; ")
        + f"in all, {describe_leaks(leaks)}"
    )


def leak_statement(origin: Mapping[str, Any]) -> str:
    """Say what was looked at for leaks, where nothing was found; empty where `leak_warning` speaks or nobody looked."""
    check = origin.get("leak_check")
    if not check or leak_warning(origin):
        return ""
    return f"trained on none of these images: {check['says']}"


def _describe_splits(splits: Mapping[str, int]) -> str:
    first, *others = splits.items()
    images = "training image" if first[1] == 1 else "training images"
    return ", ".join([f"{first[1]:,} {images} in {first[0]}", *(f"{number:,} in {split}" for split, number in others)])
