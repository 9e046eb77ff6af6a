"""What source readers return: refs, images and annotations as found, whatever files they came from."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from refseg.dataset.descriptor import SourceFile
from refseg.dataset.schema import DatasetSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class RawSource:
    """A dataset as its files have it, record by record: only containers are checked, records are not.

    `records.py` checks the records, so that one wrong record is one reject and not the end of the file. Both iterables
    can be gone through more than once, and hold no more in memory than the reader needs.

    Attributes:
        spec: Which dataset and partition; `splits` are filled in for `custom`.
        refs: REFER's records: `ref_id, image_id, ann_id, split, sentences`; in the order of the file. `ann_id` is an
            id, a list of ids, or -1, `[-1]` or None for no target. A sentence has `sent`, `sent_id`, and may have
            `raw`, `tokens` and `exist` (False: it names nothing, whatever its ref names). Of `custom` they have
            `where` and `target`, too: the place in the table, and what the user knows the target by, for messages.
        tables: COCO's records as `(section, record)`; sections are `images` (`id, file_name, height, width`, maybe
            `license` and, for messages, `size_from`: what gave the size; of `custom` without height and width where the
            picture itself is to tell them, and with `size_by_target` where only masks or run lengths tell them, which
            the picture then confirms), `annotations` (`id, image_id, category_id,
            iscrowd, area, bbox, segmentation`), `categories` (`id, name`) and `licenses` (`id, name, url`), in any
            order and mixed.
        sources: The files read, with their hashes.
        box_targets: True if an annotation without `segmentation` means its box.
    """

    spec: DatasetSpec
    refs: Iterable[Any]
    tables: Iterable[tuple[str, Any]]
    sources: tuple[SourceFile, ...]
    box_targets: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class RawRef:
    """A raw ref and its place in the source, from 0."""

    position: int
    ref: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class RawShard:
    """All that is known of some refs: what one step of the check works on.

    Attributes:
        spec: Which dataset and partition.
        refs: Raw refs with their places in the source.
        images: By image id: COCO's image records.
        annotations: By annotation id: COCO's annotation records.
        categories: By category id: the name as found.
        box_targets: See `RawSource`.
    """

    spec: DatasetSpec
    refs: list[RawRef]
    images: dict[int, dict[str, Any]] = field(default_factory=dict)
    annotations: dict[int, dict[str, Any]] = field(default_factory=dict)
    categories: dict[int, Any] = field(default_factory=dict)
    box_targets: bool = False


def has_no_size(image: dict[str, Any]) -> bool:
    """True for an image's record that leaves its size to the picture: without height and width, or with null or NaN."""
    return all(side is None or side != side for side in (image.get("height"), image.get("width")))
