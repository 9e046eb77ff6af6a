"""Defines the common result of all source readers: refs, images and annotations as found in the files."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from refseg.dataset.descriptor import SourceFile
from refseg.dataset.schema import DatasetSpec
from refseg.values import is_text


@dataclass(frozen=True, slots=True, kw_only=True)
class RawSource:
    """A dataset as found in the annotation files, record by record. Readers check only containers, not records.

    `records.py` checks the records. Therefore an invalid record becomes one reject and does not end the reading of the
    file. `refs` and `tables` can be iterated more than once, and hold no more in memory than the reader needs.

    Attributes:
        spec: Dataset and partition. For `custom`, the splits are those in the files.
        refs: REFER's records in the order of the file, with `ref_id, image_id, ann_id, split, sentences`. `ann_id` is
            an id, a list of ids, or -1, `[-1]` or None for no target. A sentence has `sent` and `sent_id`, and may have
            `raw`, `tokens` and `exist`. `exist` is False if the sentence names nothing, even if the ref has a target.
            For messages, records of `custom` also have `where` (the row of the table) and `target` (a description).
        tables: COCO's records as `(section, record)`. Records of different sections may alternate.
            `images`: `id, file_name, height, width`, optionally `license` and, for messages, `size_from` (the row or
            file that gave the size). For `custom`, height and width may be missing and are then read from the picture.
            `size_by_target` means that only masks or run lengths gave the size, which the picture must confirm.
            `annotations`: `id, image_id, category_id, iscrowd, area, bbox, segmentation`.
            `categories`: `id, name`. `licenses`: `id, name, url`.
        sources: The files that were read, with their hashes.
        box_targets: True if the target of an annotation without `segmentation` is its box.
    """

    spec: DatasetSpec
    refs: Iterable[Any]
    tables: Iterable[tuple[str, Any]]
    sources: tuple[SourceFile, ...]
    box_targets: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class RawRef:
    """A raw ref and its position in the source, from 0."""

    position: int
    ref: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class RawShard:
    """Some refs with all records that they refer to, which one task of the check reads.

    Attributes:
        spec: Dataset and partition.
        refs: Raw refs with their positions in the source.
        images: COCO's image records by image id.
        annotations: COCO's annotation records by annotation id.
        categories: Category names as found in the source, by category id.
        box_targets: As in `RawSource`.
    """

    spec: DatasetSpec
    refs: list[RawRef]
    images: dict[int, dict[str, Any]] = field(default_factory=dict)
    annotations: dict[int, dict[str, Any]] = field(default_factory=dict)
    categories: dict[int, Any] = field(default_factory=dict)
    box_targets: bool = False


def has_no_size(image: dict[str, Any]) -> bool:
    """Return True if height and width of an image's record are missing, null or NaN."""
    return all(side is None or side != side for side in (image.get("height"), image.get("width")))


def find_split(ref: Any) -> str | None:
    """Return the split of a raw ref; None if it has no split."""
    split = ref.get("split") if isinstance(ref, dict) else None
    return split if is_text(split) else None
