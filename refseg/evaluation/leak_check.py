"""Whether a model was trained on the images of the split that it is to be scored on."""

from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from refseg.data.index import ManifestIndex
from refseg.dataset.built import BuiltDataset
from refseg.dataset.descriptor import Descriptor, load_descriptor
from refseg.dataset.same_images import IDENTITY_COLUMNS, find_same_images, image_identities, unique_images
from refseg.errors import DatasetError, StorageError, UsageError
from refseg.lineage import Ancestor, Lineage, TrainingSet, describe_leaks
from refseg.storage import open_folder


@dataclass(frozen=True, slots=True, kw_only=True)
class LeakCheck:
    """What was found.

    Attributes:
        num_shared: Images of the split that were trained on, at the least; None: could not all be looked at, and none
            was found.
        num_images: Images of the split.
        says: What was compared with what, or why nothing was.
    """

    num_shared: int | None
    num_images: int
    says: str


def check_leaks(trained: Sequence[TrainingSet], index: ManifestIndex) -> LeakCheck:
    """Compare the images that a model was trained on with those of a split.

    Two images are the same if their bytes are, or if both datasets have COCO's ids and these are equal: the rule of
    `refseg mix`, since copies that were resized or saved again have other bytes. Of training data that are not at
    hand, only their names are known and what a mix said of itself: a split of the same dataset and name counts as
    trained on.

    Args:
        trained: All that the weights were trained on (`Lineage.training_sets`).
        index: The split or splits to score.

    Raises:
        DatasetError: If a manifest is another than was built.
    """
    mine = _read_images(index.folder, index.descriptor, index.splits)
    num_images = _count(mine)
    shared = pc.is_null(mine["image_id"])  # none so far
    most, numbers, says = 0, [], []
    for each in trained:
        found, said = _compare(each, index, mine)
        if isinstance(found, pa.ChunkedArray):
            shared = pc.or_(shared, found)
            found = _count(mine.filter(found))
        most = max(most, found or 0)
        numbers.append(found)
        says.append(f"{said} (by {each.path}, whose weights it started from)" if isinstance(each, Ancestor) else said)
    if most:  # what found nothing would only hide what did
        says = [said for said, number in zip(says, numbers, strict=True) if number]
    num_shared = max(most, _count(mine.filter(shared))) if most or None not in numbers else None
    return LeakCheck(num_shared=num_shared, num_images=num_images, says="; ".join(says))


def _compare(trained: TrainingSet, index: ManifestIndex, mine: pa.Table) -> tuple[pa.ChunkedArray | int | None, str]:
    """Which rows of `mine` were trained on (or how many images a mix told of, or None: not known), and in words."""
    place = f"{index.descriptor.dataset} {'+'.join(index.splits)}"
    if index.descriptor.digest == trained.dataset_digest and trained.split in index.splits:
        return pc.is_valid(mine["image_id"]), f"{place} is what was trained on"
    at_hand = _find(trained, index)
    if isinstance(at_hand, str):
        if trained.dataset == index.descriptor.dataset and trained.split in index.splits:
            says = f"{trained.dataset} {trained.split} is what was trained on, by its name; not compared: {at_hand}"
            return pc.is_valid(mine["image_id"]), says
        known = max((splits[place] for splits in trained.leaks.values() if place in splits), default=None)
        says = f"not compared with the training images of {trained.dataset}: {at_hand}"
        if known is not None:
            says = f"as {trained.dataset} said when it was mixed ({at_hand})"
        return known, says
    theirs = _read_images(*at_hand, [trained.split])
    return find_same_images(mine, theirs), (
        f"the {_count(mine):,} images of {place} against the {_count(theirs):,} of {trained.dataset} "
        f"{trained.split}, by bytes and COCO's ids"
    )


def refuse_leaks(check: LeakCheck, *, where: str) -> None:
    """Refuse to score a model on images that it was trained on.

    Args:
        check: Of the model and the split.
        where: The split, for the message.

    Raises:
        UsageError: If there are any.
    """
    if check.num_shared:
        raise UsageError(
            f"{where}: {check.num_shared:,} of its {check.num_images:,} images were trained on ({check.says}); score "
            "another split, or say --allow-leak, and the report says so in red"
        )


def leak_warning(lineage: Lineage, check: LeakCheck | None, *, scored: str) -> str:
    """Say what stands beside every score of a model that was, or may have been, trained on images of the split.

    That is one scored with `--allow-leak`, one of a leaky mix, and one whose training images could not be compared.

    Args:
        lineage: What the model was trained on.
        check: Result of comparing the model with the split; None: nothing was compared, as in
            results of earlier releases.
        scored: The split, as `<dataset id> <split>`.

    Returns:
        One sentence; empty where nothing leaked.
    """
    said = []
    if check is not None and check.num_shared:
        said.append(f"{check.num_shared:,} of {check.num_images:,} images were trained on ({check.says})")
    said += [_describe_mix(trained, scored) for trained in lineage.training_sets if trained.leaks_allowed]
    if said:
        return f"LEAKS ALLOWED: {'; '.join(said)}"
    return f"LEAKS NOT RULED OUT: {check.says}" if check is not None and check.num_shared is None else ""


def leak_statement(lineage: Lineage, check: LeakCheck | None, *, scored: str) -> str:
    """Say what was compared where nothing was found; empty where `leak_warning` speaks or there was no check."""
    if check is None or leak_warning(lineage, check, scored=scored):
        return ""
    return f"trained on none of these images: {check.says}"


def _describe_mix(mix: TrainingSet, scored: str) -> str:
    own = {dataset: splits[scored] for dataset, splits in mix.leaks.items() if scored in splits}
    here = ", ".join(f"{number:,} by way of {dataset}" for dataset, number in own.items())
    return (
        f"{mix.dataset} was mixed with training images that members evaluate on; "
        + (f"images of {scored} trained on: {here}; " if here else f"none of {scored} is known to be among them; ")
        + f"in all, {describe_leaks(mix.leaks)}"
    )


def _find(trained: TrainingSet, index: ManifestIndex) -> tuple[str, Descriptor] | str:
    """Folder and descriptor of the training data, or why they cannot be had."""
    if index.descriptor.digest == trained.dataset_digest:
        return index.folder, index.descriptor
    why_not = []
    for root in trained.roots:
        try:
            descriptor = load_descriptor(root)
        except (DatasetError, StorageError):
            why_not.append(f"{root} is not at hand")
            continue
        if descriptor.digest == trained.dataset_digest:
            return root, descriptor
        why_not.append(f"{root} holds another dataset now")
    return ", ".join(why_not) or "a published model names no folder"


def _read_images(folder: str, descriptor: Descriptor, splits: Sequence[str]) -> pa.Table:
    """The images of the rows of some splits, whose manifests suffice."""
    built = BuiltDataset(place=open_folder(folder), descriptor=descriptor, splits=tuple(splits), with_tars=False)
    return image_identities(built.read(IDENTITY_COLUMNS))


def _count(rows: pa.Table) -> int:
    """Distinct images; ids are unique within a dataset, and within a mix together with the bytes."""
    return unique_images(rows).num_rows
