"""Checks whether a model was trained on images of the split on which it will be scored."""

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
    """The result of comparing a model's training images with a split.

    Attributes:
        num_shared: Lower bound on the number of images of the split that the model was trained on. None if not all
            training images could be compared and no shared image was found.
        num_images: Number of images of the split.
        says: Text that describes what was compared, or why nothing was compared.
    """

    num_shared: int | None
    num_images: int
    says: str


def check_leaks(trained: Sequence[TrainingSet], index: ManifestIndex) -> LeakCheck:
    """Compare the images that a model was trained on with those of a split.

    Two images are the same if their bytes are equal, or if both datasets have COCO's ids and the ids are equal. This
    is the rule of `refseg mix`; it uses ids because resized or re-encoded copies have other bytes. If the training
    data are not available, only their recorded names and the recorded leaks of a mix can be used. A split of the same
    dataset and name then counts as trained on.

    Args:
        trained: All training sets of the weights (`Lineage.training_sets`).
        index: Index of the split or splits to score.

    Raises:
        DatasetError: If a manifest differs from the one that was built.
    """
    mine = _read_images(index.folder, index.descriptor, index.splits)
    num_images = _count(mine)
    shared = pc.is_null(mine["image_id"])  # at first False for every row
    most, numbers, says = 0, [], []
    for each in trained:
        found, said = _compare(each, index, mine)
        if isinstance(found, pa.ChunkedArray):
            shared = pc.or_(shared, found)
            found = _count(mine.filter(found))
        most = max(most, found or 0)
        numbers.append(found)
        says.append(f"{said} (by {each.path}, whose weights it started from)" if isinstance(each, Ancestor) else said)
    if most:  # of several comparisons, only those that found shared images are reported
        says = [said for said, number in zip(says, numbers, strict=True) if number]
    num_shared = max(most, _count(mine.filter(shared))) if most or None not in numbers else None
    return LeakCheck(num_shared=num_shared, num_images=num_images, says="; ".join(says))


def _compare(trained: TrainingSet, index: ManifestIndex, mine: pa.Table) -> tuple[pa.ChunkedArray | int | None, str]:
    """Find the rows of `mine` on which the model was trained, and describe the comparison.

    If the training data are not available, the first value is the number of shared images that a mix recorded. It is
    None if this number is unknown.
    """
    scored = f"{index.descriptor.dataset} {'+'.join(index.splits)}"
    if index.descriptor.digest == trained.dataset_digest and trained.split in index.splits:
        return pc.is_valid(mine["image_id"]), f"{scored} is the training set"
    available = _find(trained, index)
    if isinstance(available, str):
        if trained.dataset == index.descriptor.dataset and trained.split in index.splits:
            says = f"{trained.dataset} {trained.split} is the training set by its name; not compared: {available}"
            return pc.is_valid(mine["image_id"]), says
        known = max((splits[scored] for splits in trained.leaks.values() if scored in splits), default=None)
        says = f"not compared with the training images of {trained.dataset}: {available}"
        if known is not None:
            says = f"as {trained.dataset} recorded when it was mixed ({available})"
        return known, says
    theirs = _read_images(*available, [trained.split])
    return find_same_images(mine, theirs), (
        f"the {_count(mine):,} images of {scored} against the {_count(theirs):,} of {trained.dataset} "
        f"{trained.split}, by bytes and COCO's ids"
    )


def refuse_leaks(check: LeakCheck, *, where: str) -> None:
    """Refuse to score a model on images that it was trained on.

    Args:
        check: Result of `check_leaks` for the model and the split.
        where: Name of the split, for the message.

    Raises:
        UsageError: If the model was trained on at least one image of the split.
    """
    if check.num_shared:
        raise UsageError(
            f"{where}: {check.num_shared:,} of its {check.num_images:,} images were trained on ({check.says}); score "
            "another split, or add --allow-leak, with which the report shows a warning in red"
        )


def leak_warning(lineage: Lineage, check: LeakCheck | None, *, scored: str) -> str:
    """Return the warning for the scores of a model that was or may have been trained on images of the split.

    A warning is returned in three cases. The model was scored with `--allow-leak`. It was trained on a mix with leaks.
    Its training images could not be compared.

    Args:
        lineage: What the model was trained on.
        check: Result of comparing the model with the split. None if nothing was compared, as in results of earlier
            releases.
        scored: The split, as `<dataset id> <split>`.

    Returns:
        One sentence, or an empty text if there are no leaks.
    """
    leaks = []
    if check is not None and check.num_shared:
        leaks.append(f"{check.num_shared:,} of {check.num_images:,} images were trained on ({check.says})")
    leaks += [_describe_mix(trained, scored) for trained in lineage.training_sets if trained.leaks_allowed]
    if leaks:
        return f"LEAKS ALLOWED: {'; '.join(leaks)}"
    return f"LEAKS NOT RULED OUT: {check.says}" if check is not None and check.num_shared is None else ""


def leak_statement(lineage: Lineage, check: LeakCheck | None, *, scored: str) -> str:
    """Return a statement of what was compared if no leak was found.

    The text is empty if there is a warning or if no check was made.
    """
    if check is None or leak_warning(lineage, check, scored=scored):
        return ""
    return f"trained on none of these images: {check.says}"


def _describe_mix(mix: TrainingSet, scored: str) -> str:
    own = {dataset: splits[scored] for dataset, splits in mix.leaks.items() if scored in splits}
    here = ", ".join(f"{number:,} by way of {dataset}" for dataset, number in own.items())
    return (
        f"{mix.dataset} was mixed with training images that are in evaluation splits of its members; "
        + (f"images of {scored} trained on: {here}; " if here else f"none of {scored} is known to be among them; ")
        + f"in all, {describe_leaks(mix.leaks)}"
    )


def _find(trained: TrainingSet, index: ManifestIndex) -> tuple[str, Descriptor] | str:
    """Return folder and descriptor of the training data, or the reason why they are not available."""
    if index.descriptor.digest == trained.dataset_digest:
        return index.folder, index.descriptor
    why_not = []
    for root in trained.roots:
        try:
            descriptor = load_descriptor(root)
        except (DatasetError, StorageError):
            why_not.append(f"{root} is not available")
            continue
        if descriptor.digest == trained.dataset_digest:
            return root, descriptor
        why_not.append(f"{root} now holds another dataset")
    return ", ".join(why_not) or "a published model does not name the folder of its training data"


def _read_images(folder: str, descriptor: Descriptor, splits: Sequence[str]) -> pa.Table:
    """Read the images of the rows of some splits from their manifests. The tars are not needed."""
    built = BuiltDataset(place=open_folder(folder), descriptor=descriptor, splits=tuple(splits), with_tars=False)
    return image_identities(built.read(IDENTITY_COLUMNS))


def _count(rows: pa.Table) -> int:
    """Count distinct images. Within a dataset, images are identified by id. Within a mix, by id and bytes."""
    return unique_images(rows).num_rows
