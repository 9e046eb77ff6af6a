"""Surveys a source and assigns the images of each split to shards, in the memory of a laptop.

The survey makes two passes over the refs, and `survey_tables.py` makes one pass over the tables. Only a few numbers per
ref and image stay in memory. The records are written to files on disk, one per shard (`Spill`).

Example: split `train` has refs of the images 7, 7, 5 and 9, and a shard holds 2 images. The images are sorted by
hashes, for example to 9, 7, 5, and divided evenly. Image 9 is in shard 0, and images 7 and 5 are in shard 1, so
`shard_of_ref` is [1, 1, 1, 0]. The second pass appends each ref to the shard's file.
"""

import hashlib
from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.records import find_annotation_ids, find_integer
from pipelines.sentences import find_sentence_ids
from pipelines.sources.raw import RawRef, RawSource, find_split
from pipelines.spill import Spill
from refseg.dataset.descriptor import SplitCounts
from refseg.errors import AnnotationError, UsageError
from refseg.wording import did_you_mean

_NO_ID = -(2**63)
_UNKNOWN, _OTHER = -1, -2  # instead of a split's position: an unknown split; a split that was not requested


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """The assignment of images and refs to shards, with the counts of the source.

    Attributes:
        splits: Splits to build, in canonical order.
        shard_splits: The split of each shard; shards of a split are adjacent and in order.
        shard_of_ref: `(refs,)` int32 shard of each ref; -1 for refs that are in no shard.
        unassigned: Refs without a known split or image. Each of them is a fault.
        repeated: Positions of refs with the id of an earlier ref.
        repeated_sentences: For refs that repeat a `sent_id` of an earlier sentence of the same split: this `sent_id`,
            by position of the ref.
        counts: Counts of the source by split.
        later_splits: Number of earlier splits that also contain an image, by `(split, image id)`.
    """

    splits: tuple[str, ...]
    shard_splits: tuple[str, ...]
    shard_of_ref: NDArray[np.int32]
    unassigned: list[RawRef]
    repeated: frozenset[int]
    repeated_sentences: dict[int, int]
    counts: dict[str, SplitCounts]
    later_splits: dict[tuple[str, int], int]
    _image_ids: NDArray[np.int64]
    _image_shards: NDArray[np.int32]
    _ann_ids: NDArray[np.int64]
    _ann_shards: NDArray[np.int32]

    def shards_of_image(self, image_id: int) -> list[int]:
        """Return the shards that have refs of an image."""
        return _look_up(self._image_ids, self._image_shards, image_id)

    def shards_of_annotation(self, ann_id: int) -> list[int]:
        """Return the shards that have refs with this annotation."""
        return _look_up(self._ann_ids, self._ann_shards, ann_id)


def survey_refs(source: RawSource, *, splits: Sequence[str] | None, images_per_shard: int, seed: int) -> Survey:
    """Read the refs and assign images to shards.

    The images of a split are sorted by seeded hashes and divided evenly.

    Args:
        source: The dataset.
        splits: Splits to build. None means all splits that have refs.
        images_per_shard: Largest number of images in a shard.
        seed: Seed of the order.

    Raises:
        AnnotationError: If the source cannot be read or has no refs of the partition's splits.
        UsageError: If a requested split has no refs.
    """
    codes = {split: position for position, split in enumerate(source.spec.splits)}
    split_of_ref, image_of_ref, id_of_ref = array("b"), array("q"), array("q")
    ann_ids, refs_of_anns = array("q"), array("q")
    num_sentences: Counter[int] = Counter()
    sent_ids, refs_of_sentences = array("q"), array("q")
    unassigned: list[RawRef] = []
    found: set[int] = set()
    for position, ref in enumerate(source.refs):
        image_id, ref_id, split = find_integer(ref, "image_id"), find_integer(ref, "ref_id"), find_split(ref)
        code = codes.get(split, _UNKNOWN) if split is not None else _UNKNOWN
        if code != _UNKNOWN:
            found.add(code)
        if code != _UNKNOWN and splits is not None and split not in splits:
            code = _OTHER
        elif code == _UNKNOWN or image_id is None:
            unassigned.append(RawRef(position=position, ref=ref))
            if code != _UNKNOWN:
                num_sentences[code] += _count_sentences(ref)
        else:
            num_sentences[code] += _count_sentences(ref)
            for sent_id in find_sentence_ids(ref):
                sent_ids.append(_NO_ID if sent_id is None else sent_id)
                refs_of_sentences.append(position)
            for ann_id in find_annotation_ids(ref):
                ann_ids.append(ann_id)
                refs_of_anns.append(position)
        split_of_ref.append(code)
        image_of_ref.append(-1 if image_id is None else image_id)
        id_of_ref.append(_NO_ID if ref_id is None else ref_id)

    code_of_ref = np.frombuffer(split_of_ref, np.int8) if split_of_ref else np.zeros(0, np.int8)
    ref_images = np.frombuffer(image_of_ref, np.int64) if image_of_ref else np.zeros(0, np.int64)
    is_assigned = code_of_ref >= 0
    is_assigned[[item.position for item in unassigned]] = False
    chosen = _choose_splits(source, splits, {source.spec.splits[code] for code in found})

    shard_of_ref = np.full(len(code_of_ref), -1, np.int32)
    shard_splits: list[str] = []
    image_ids: list[NDArray[np.int64]] = []
    image_shards: list[NDArray[np.int32]] = []
    counts: dict[str, SplitCounts] = {}
    times_seen: Counter[int] = Counter()
    later_splits: dict[tuple[str, int], int] = {}
    seen_before = np.zeros(0, np.int64)
    for split in chosen:
        in_split = is_assigned & (code_of_ref == codes[split])
        ids, image_of = np.unique(ref_images[in_split], return_inverse=True)
        counts[split] = SplitCounts(
            images=len(ids),
            refs=int((code_of_ref == codes[split]).sum()),
            sentences=num_sentences[codes[split]],
        )
        again = np.intersect1d(ids, seen_before, assume_unique=True)
        for image_id in again.tolist():
            times_seen[image_id] += 1
            later_splits[split, image_id] = times_seen[image_id]
        seen_before = np.union1d(seen_before, ids)
        order = np.argsort(np.array([image_order(seed, image_id) for image_id in ids.tolist()], "S32"), kind="stable")
        num_shards = -(-len(ids) // images_per_shard)
        edges = [len(ids) * edge // num_shards for edge in range(num_shards + 1)] if num_shards else []
        shard_of_image = np.empty(len(ids), np.int32)
        for number in range(num_shards):
            shard_of_image[order[edges[number] : edges[number + 1]]] = len(shard_splits)
            shard_splits.append(split)
        shard_of_ref[in_split] = shard_of_image[image_of]
        image_ids.append(ids)
        image_shards.append(shard_of_image)

    all_ids, all_shards = _sorted(np.concatenate(image_ids), np.concatenate(image_shards))
    pointed = np.frombuffer(ann_ids, np.int64) if ann_ids else np.zeros(0, np.int64)
    pointing = shard_of_ref[np.frombuffer(refs_of_anns, np.int64)] if refs_of_anns else np.zeros(0, np.int32)
    all_ann_ids, all_ann_shards = _sorted(pointed, pointing)
    return Survey(
        splits=chosen,
        shard_splits=tuple(shard_splits),
        shard_of_ref=shard_of_ref,
        unassigned=unassigned,
        repeated=_find_repeated(np.frombuffer(id_of_ref, np.int64), is_assigned),
        repeated_sentences=_find_repeated_sentences(sent_ids, refs_of_sentences, code_of_ref),
        counts=counts,
        later_splits=later_splits,
        _image_ids=all_ids,
        _image_shards=all_shards,
        _ann_ids=all_ann_ids,
        _ann_shards=all_ann_shards,
    )


def spill_refs(source: RawSource, survey: Survey, spill: Spill) -> None:
    """Read the refs again and append each to the shard's file."""
    for position, ref in enumerate(source.refs):
        shard = int(survey.shard_of_ref[position])
        if shard >= 0:
            spill.add(shard, "ref", position, ref)
    spill.flush()


def image_order(seed: int, image_id: int) -> bytes:
    """Return the key by which the images of a split are sorted."""
    return hashlib.sha256(f"{seed}:{image_id}".encode()).digest()


def _count_sentences(ref: dict[Any, Any]) -> int:
    sentences = ref.get("sentences")
    return len(sentences) if isinstance(sentences, list | tuple) else 0


def _choose_splits(source: RawSource, wanted: Sequence[str] | None, found: set[str]) -> tuple[str, ...]:
    """Return the splits to build, in canonical order.

    Raise an error if there are none or a requested one is missing.
    """
    spec = source.spec
    there = [split for split in spec.splits if split in found]
    if wanted is None and not there:
        raise AnnotationError(
            f"{source.sources[0].name}: found no ref of a split of {spec.dataset_id}, "
            f"expected {', '.join(spec.splits)}; check that the file belongs to this partition"
        )
    for split in wanted or ():
        if split not in there:
            raise UsageError(
                f"--splits {split}: {source.sources[0].name} has no refs of it, expected {', '.join(there)}"
                f"{did_you_mean(split, there)}"
            )
    return tuple(split for split in there if wanted is None or split in wanted)


def _find_repeated(ref_ids: NDArray[np.int64], is_assigned: NDArray[np.bool_]) -> frozenset[int]:
    """Return the positions of refs with the id of an earlier ref.

    Example: for the ids [8, 5, 8] the stable order is [1, 0, 2] with the ids [5, 8, 8]. The last id equals the one
    before, so position 2 is returned.
    """
    positions = np.flatnonzero(is_assigned & (ref_ids != _NO_ID))
    ids = ref_ids[positions]
    order = np.argsort(ids, kind="stable")
    again = np.flatnonzero(ids[order][1:] == ids[order][:-1]) + 1
    return frozenset(positions[order[again]].tolist())


def _find_repeated_sentences(
    sent_ids: "array[int]", refs_of_sentences: "array[int]", code_of_ref: NDArray[np.int8]
) -> dict[int, int]:
    """Return the `sent_id`s that repeat one of an earlier sentence of the same split, by position of the ref."""
    if not sent_ids:
        return {}
    ids, positions = np.frombuffer(sent_ids, np.int64), np.frombuffer(refs_of_sentences, np.int64)
    codes = code_of_ref[positions]
    order = np.lexsort((ids, codes))  # stable, so that the first of equal ids stays first
    same = (ids[order][1:] == ids[order][:-1]) & (codes[order][1:] == codes[order][:-1]) & (ids[order][1:] != _NO_ID)
    again = order[np.flatnonzero(same) + 1]
    return dict(zip(positions[again].tolist(), ids[again].tolist(), strict=True))


def _sorted(keys: NDArray[np.int64], shards: NDArray[np.int32]) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Sort the pairs and remove duplicates."""
    order = np.lexsort((shards, keys))
    keys, shards = keys[order], shards[order]
    is_new = np.ones(len(keys), np.bool_)
    is_new[1:] = (keys[1:] != keys[:-1]) | (shards[1:] != shards[:-1])
    return keys[is_new], shards[is_new]


def _look_up(keys: NDArray[np.int64], shards: NDArray[np.int32], key: int) -> list[int]:
    start = int(np.searchsorted(keys, key))
    end = start
    while end < len(keys) and keys[end] == key:
        end += 1
    return shards[start:end].tolist()
