"""One shard's raw records to checked ones: what is joined, rasterised and tokenised before any image is read."""

import hashlib
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
from pydantic import TypeAdapter

from pipelines.images import SourceImage, describe_alike
from pipelines.jpeg_faults import JpegFault, read_jpeg_sizes
from pipelines.records import find_annotation_ids, find_integer, find_split, make_records, reject_ref
from pipelines.rejects import Reject
from pipelines.sources.raw import RawRef, RawShard, has_no_size
from pipelines.spill import read_spill
from pipelines.survey import image_order
from refseg.dataset.manifest_writer import ManifestRow
from refseg.dataset.schema import CUSTOM, DatasetSpec, ImageLocation, RefRecord

_NOWHERE = ImageLocation(shard="", image_offset=0, image_bytes=0, image_xxh3="", sample_bytes=0, sample_xxh3="")


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedSample:
    """One image of a shard to build, and its refs.

    Attributes:
        key: Of the sample in the tar, unique in the dataset.
        image: Where its bytes are.
        rows: Of the manifest, by `ref_id`, as plain values; only where the image lies is not in them yet.
        size_from: What gave the annotated size, for messages; empty: annotations that belong to the image.
        lines: Of a user's table, where the ref of each row stands, for messages; empty: refs have ids that people know.
    """

    key: str
    image: SourceImage
    rows: list[dict[str, Any]]
    size_from: str = ""
    lines: tuple[str, ...] = ()


_SAMPLE = TypeAdapter(PlannedSample)
_IMAGE = TypeAdapter(SourceImage)


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckTask:
    """All that the check of one shard needs.

    Attributes:
        spill: File with the raw records.
        out: File to write the samples to, a line each (`read_samples`).
        spec: Which dataset and partition.
        seed: Of the order of images.
        mask_rule: `union` or `legacy`.
        categories: By category id: the name as found.
        box_targets: See `RawSource`.
        repeated: Places of refs whose id an earlier ref has.
        repeated_sentences: By position of a ref, one of its `sent_id`s that an earlier sentence of its split has.
        later_splits: By image id, how many earlier splits have the image, too.
        alike: By name of a missing picture, the file that may have been meant; of some of them.
    """

    spill: Path
    out: Path
    spec: DatasetSpec
    seed: int
    mask_rule: str
    categories: dict[int, Any]
    box_targets: bool
    repeated: frozenset[int]
    repeated_sentences: dict[int, int]
    later_splits: dict[int, int]
    alike: dict[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckedShard:
    """What the check of a shard found.

    Attributes:
        out: The file of samples; not there if there are none.
        num_samples: Lines in it.
        sha256: Of it.
        rejects: Refs with faults, with their places in the source.
        pool_tars: Tars of pools that its samples lie in, as rows name them.
    """

    out: Path
    num_samples: int
    sha256: str
    rejects: tuple[tuple[int, Reject], ...]
    pool_tars: frozenset[str]


def check_records(task: CheckTask) -> CheckedShard:
    """Check one shard's records and write its samples, in the order of the tar."""
    raw, images, ambiguous = _read_raw(task)
    unsized = _read_sizes(raw, images, task.alike)
    records, rejects = make_records(raw, mask_rule=task.mask_rule)
    rejects += ambiguous + unsized
    places = {item.position: item for item in raw.refs} if task.spec.dataset == CUSTOM else {}
    lines = {item.ref["ref_id"]: item.ref["where"] for item in places.values()}
    by_image: dict[int, list[RefRecord]] = defaultdict(list)
    for position, record in records:
        fault = _image_fault(record, images[record.image_id], task.alike)
        if fault is None:
            by_image[record.image_id].append(record)
        elif position in places:  # named by its line, which is what its owner knows
            rejects.append((position, reject_ref(task.spec, places[position], *fault)))
        else:
            rejects.append((position, reject_image(record, *fault)))
    digest = hashlib.sha256()
    pool_tars = set()
    if by_image:
        with task.out.open("wb") as file:
            for image_id in sorted(by_image, key=lambda image_id: image_order(task.seed, image_id)):
                image = images[image_id]
                assert image is not None  # else its refs are rejected
                sample = _plan_sample(task, image, raw.images[image_id], by_image[image_id], lines)
                line = _SAMPLE.dump_json(sample) + b"\n"
                digest.update(line)
                file.write(line)
                if image.location is not None:
                    pool_tars.add(image.location.shard)
    task.spill.unlink()
    return CheckedShard(
        out=task.out,
        num_samples=len(by_image),
        sha256=digest.hexdigest(),
        rejects=tuple(rejects),
        pool_tars=frozenset(pool_tars),
    )


def _plan_sample(
    task: CheckTask,
    image: SourceImage,
    image_record: dict[str, Any],
    records: list[RefRecord],
    lines: Mapping[int, str],
) -> PlannedSample:
    image_id = records[0].image_id
    suffix = f"_{task.later_splits[image_id]}" if image_id in task.later_splits else ""
    ordered = sorted(records, key=lambda record: record.ref_id)
    return PlannedSample(
        key=f"{image_id:012d}{suffix}",
        image=image,
        rows=[ManifestRow(record=record, location=_NOWHERE).to_dict() for record in ordered],
        size_from=image_record.get("size_from", ""),
        lines=tuple(lines[record.ref_id] for record in ordered) if lines else (),
    )


def read_samples(data: bytes) -> list[PlannedSample]:
    """Read back what `check_records` wrote.

    orjson parses and pydantic only builds the outer objects: its own parser would visit every number of a mask.
    """
    return [_SAMPLE.validate_python(orjson.loads(line)) for line in data.splitlines()]


def reject_image(record: RefRecord, reason: str, found: str, line: str = "") -> Reject:
    """Reject a ref for what is wrong with its image; the line of a user's table stands for ids they never gave."""
    place = f"{record.dataset}/{record.split_by} {line}" if line else f"{record.where}: image {record.image_id}"
    return Reject(
        ref_id=record.ref_id,
        image_id=record.image_id,
        split=record.split,
        reason=reason,
        message=f"{place}: {found}",
    )


def _read_raw(
    task: CheckTask,
) -> tuple[RawShard, dict[int, SourceImage | None], list[tuple[int, Reject]]]:
    """The raw records of a shard, where its images are, and the refs that are taken out because an id is not unique."""
    raw = RawShard(spec=task.spec, refs=[], categories=task.categories, box_targets=task.box_targets)
    images: dict[int, SourceImage | None] = {}
    ambiguous: set[tuple[str, int]] = set()
    for kind, value, record in read_spill(task.spill):
        if kind == "ref":
            raw.refs.append(RawRef(position=value, ref=record))
            continue
        table = raw.images if kind == "image" else raw.annotations
        if table.setdefault(record["id"], record) != record:
            ambiguous.add((kind, record["id"]))
        if kind == "image":
            images.setdefault(record["id"], None if value is None else _IMAGE.validate_python(value))
    faults = [(item, _find_ambiguity(task, item, ambiguous)) for item in raw.refs]
    raw.refs[:] = [item for item, fault in faults if fault is None]
    rejects = [(item.position, reject_ref(task.spec, item, *fault)) for item, fault in faults if fault is not None]
    return raw, images, rejects


def _find_ambiguity(task: CheckTask, item: RawRef, ambiguous: set[tuple[str, int]]) -> tuple[str, str] | None:
    """Reason and message, if an id of a ref, or one that it points to, stands for more than one thing."""
    if item.position in task.repeated:
        return "duplicate_ref_id", "an earlier ref has the same id; take the file from its release"
    if item.position in task.repeated_sentences:
        sent_id = task.repeated_sentences[item.position]
        found = f"sent_id {sent_id} occurs more than once in split {find_split(item.ref)}"
        return (
            "duplicate_sent_id",
            f"{found}, expected it once, because predictions are matched by it; renumber the sentences",
        )
    pointed = [("image", find_integer(item.ref, "image_id"))]
    pointed += [("annotation", ann_id) for ann_id in find_annotation_ids(item.ref)]
    for kind, key in pointed:
        if (kind, key) in ambiguous:
            found = f"{kind} {key} is in instances.json twice with different contents; fetch the file again"
            return f"malformed_{kind}", found
    return None


def _read_sizes(
    raw: RawShard, images: dict[int, SourceImage | None], alike: Mapping[str, str]
) -> list[tuple[int, Reject]]:
    """Fill in the sizes that a user's table leaves to the pictures; take out refs that no size can be had for.

    Where only masks or run lengths tell a size, one drawn for another picture would speak for all rows of the image:
    there, too, the picture has the last word.
    """
    if raw.spec.dataset != CUSTOM:
        return []
    misdrawn = _check_drawn_sizes(raw, images)
    unsized = {image_id: images[image_id] for image_id, record in raw.images.items() if has_no_size(record)}
    files = {image_id: found for image_id, found in unsized.items() if found is not None}
    faults = {
        image_id: _missing_fault(raw.spec.dataset, str(raw.images[image_id].get("file_name")), alike)
        for image_id in unsized.keys() - files.keys()
    }
    for (image_id, file), size in zip(files.items(), read_jpeg_sizes(list(files.values())), strict=True):
        if isinstance(size, JpegFault):
            faults[image_id] = size.reason, f"{file.name} {size.found}"
        else:
            raw.images[image_id]["height"], raw.images[image_id]["width"] = size
    refs = [(item, faults.get(item.ref["image_id"])) for item in raw.refs]
    raw.refs[:] = [item for item, fault in refs if fault is None]
    return misdrawn + [(item.position, reject_ref(raw.spec, item, *fault)) for item, fault in refs if fault is not None]


def _check_drawn_sizes(raw: RawShard, images: dict[int, SourceImage | None]) -> list[tuple[int, Reject]]:
    """Take the picture's size where that of a mask or of run lengths is another one, and their refs out.

    A picture that tells no size, or one that EXIF lays on its side, is left to be compared as a whole.
    """
    files = {
        image_id: found
        for image_id, record in raw.images.items()
        if record.get("size_by_target") and (found := images[image_id]) is not None
    }
    pictures: dict[int, tuple[str, tuple[int, int]]] = {}
    for (image_id, file), size in zip(files.items(), read_jpeg_sizes(list(files.values())), strict=True):
        record = raw.images[image_id]
        if not isinstance(size, JpegFault) and size != (record["height"], record["width"]):
            record["height"], record["width"] = size
            record.pop("size_from", None)
            pictures[image_id] = file.name, size
    rejects = []
    for item in raw.refs:
        if item.ref["image_id"] in pictures and (drawn := _drawn_size(raw, item)):
            name, (height, width) = pictures[item.ref["image_id"]]
            said = (
                f"{item.ref['target']} is {drawn[1]} x {drawn[0]} pixels, but {name} is {width} x {height}; "
                "correct it, or take the picture it was made for"
            )
            rejects.append((item.position, reject_ref(raw.spec, item, "size_mismatch", said)))
    out = {position for position, _ in rejects}
    raw.refs[:] = [item for item in raw.refs if item.position not in out]
    return rejects


def _drawn_size(raw: RawShard, item: RawRef) -> tuple[int, int] | None:
    """`(height, width)` of a mask or of run lengths of the table; None: the target is of another kind."""
    for ann_id in find_annotation_ids(item.ref) if item.ref["target"] else ():
        segmentation = raw.annotations[ann_id].get("segmentation")
        if segmentation is not None:
            return segmentation["size"][0], segmentation["size"][1]
    return None


def _missing_fault(dataset: str, file_name: str, alike: Mapping[str, str]) -> tuple[str, str]:
    looked = "with the folders of its name" if dataset == CUSTOM else "also under COCO's names"
    hint = describe_alike(file_name, alike.get(file_name)) or "; give --images"
    return "missing_image", f"found no file {file_name}, {looked}{hint}"


def _image_fault(record: RefRecord, found: SourceImage | None, alike: Mapping[str, str]) -> tuple[str, str] | None:
    """Reason and what was found, if an image cannot be used."""
    if found is None:
        return _missing_fault(record.dataset, record.file_name, alike)
    if found.size is not None and found.size != (record.height, record.width):
        height, width = found.size
        return "size_mismatch", (
            f"is {width} x {height} pixels in the pool, expected {record.width} x {record.height} as annotated; "
            "is it the same picture?"
        )
    return None
