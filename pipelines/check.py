"""The check of one shard: joins, checks, rasterises and tokenises its raw records before any image is read."""

import hashlib
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import orjson
from pydantic import TypeAdapter

from pipelines.convert_images import ImageConversion, convert_to_jpeg
from pipelines.images import SourceImage, describe_alike
from pipelines.jpeg_faults import Convert, JpegFault, read_jpeg_sizes
from pipelines.records import find_annotation_ids, find_integer, make_records, reject_ref
from pipelines.rejects import Reject
from pipelines.sources.raw import RawRef, RawShard, find_split, has_no_size
from pipelines.spill import read_spill
from pipelines.survey import image_order
from refseg.dataset.manifest_writer import ManifestRow
from refseg.dataset.schema import CUSTOM, DatasetSpec, ImageLocation, RefRecord

_NOWHERE = ImageLocation(shard="", image_offset=0, image_bytes=0, image_xxh3="", sample_bytes=0, sample_xxh3="")


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedSample:
    """One image of a shard to build, with its refs.

    Attributes:
        key: Key of the sample in the tar, unique in the dataset.
        image: Location of the image's bytes.
        rows: Rows of the manifest, sorted by `ref_id`, as plain values. The location of the image is still missing.
        size_from: The row or file that gave the annotated size, for messages; empty: the image's own record.
        lines: For a user's table: the line of each row's ref, for messages. Empty for other datasets, whose refs have
            ids.
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
    """The input of the check of one shard.

    Attributes:
        spill: File with the raw records.
        out: File to which the samples are written, one per line (`read_samples`).
        spec: Dataset and partition.
        seed: Seed of the order of images.
        mask_rule: `union` or `legacy`.
        conversion: Conversion of pictures; None: they are read as they are.
        categories: Names as found, by category id.
        box_targets: As in `RawSource`.
        repeated: Positions of refs whose id an earlier ref has.
        repeated_sentences: By position of a ref: one of its `sent_id`s that an earlier sentence of its split has.
        later_splits: By image id: the number of earlier splits that also contain the image.
        alike: By name of a missing picture: the name of a similar file. Only some missing pictures are in it.
    """

    spill: Path
    out: Path
    spec: DatasetSpec
    seed: int
    mask_rule: str
    conversion: ImageConversion | None
    categories: dict[int, Any]
    box_targets: bool
    repeated: frozenset[int]
    repeated_sentences: dict[int, int]
    later_splits: dict[int, int]
    alike: dict[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckedShard:
    """The result of the check of one shard.

    Attributes:
        out: File of the samples; it does not exist if there are none.
        num_samples: Number of samples in the file.
        sha256: SHA-256 of the file.
        rejects: Refs with faults, each with its position in the source.
        pool_tars: Tars of image pools that hold images of the samples, by the `shard` of rows.
    """

    out: Path
    num_samples: int
    sha256: str
    rejects: tuple[tuple[int, Reject], ...]
    pool_tars: frozenset[str]


def check_records(task: CheckTask) -> CheckedShard:
    """Check one shard's records and write its samples in the order of the tar."""
    raw, images, ambiguous = _read_raw(task)
    convert = None if task.conversion is None else partial(convert_to_jpeg, conversion=task.conversion)
    unsized = _read_sizes(raw, images, task.alike, convert)
    records, rejects = make_records(raw, mask_rule=task.mask_rule)
    rejects += ambiguous + unsized
    own_refs = {item.position: item for item in raw.refs} if task.spec.dataset == CUSTOM else {}
    lines = {item.ref["ref_id"]: item.ref["where"] for item in own_refs.values()}
    by_image: dict[int, list[RefRecord]] = defaultdict(list)
    for position, record in records:
        fault = _image_fault(record, images[record.image_id], task.alike)
        if fault is None:
            by_image[record.image_id].append(record)
        elif position in own_refs:  # a ref of a user's table is reported by its line, because the user gave no ids
            rejects.append((position, reject_ref(task.spec, own_refs[position], *fault)))
        else:
            rejects.append((position, reject_image(record, *fault)))
    digest = hashlib.sha256()
    pool_tars = set()
    if by_image:
        with task.out.open("wb") as file:
            for image_id in sorted(by_image, key=lambda image_id: image_order(task.seed, image_id)):
                image = images[image_id]
                assert image is not None, "refs of a missing image are rejected above"
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
    """Read the samples that `check_records` wrote.

    orjson parses them and pydantic builds only the outer objects, because pydantic's parser would check every number of
    a mask.
    """
    return [_SAMPLE.validate_python(orjson.loads(line)) for line in data.splitlines()]


def reject_image(record: RefRecord, reason: str, found: str, line: str = "") -> Reject:
    """Reject a ref because of a fault of its image.

    Args:
        record: The ref.
        reason: A key of `rejects.REASONS`.
        found: What was found, what was expected, and what to do.
        line: For a user's table: the line of the ref, which the message gives instead of ids.
    """
    where = f"{record.dataset}/{record.split_by} {line}" if line else f"{record.where}: image {record.image_id}"
    return Reject(
        ref_id=record.ref_id,
        image_id=record.image_id,
        split=record.split,
        reason=reason,
        message=f"{where}: {found}",
    )


def _read_raw(
    task: CheckTask,
) -> tuple[RawShard, dict[int, SourceImage | None], list[tuple[int, Reject]]]:
    """Read the raw records of a shard.

    Returns:
        The records, the locations of the images, and the rejects of refs with an id that is not unique.
    """
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
    """Return reason and message if an id of a ref, or an id that it refers to, is not unique."""
    if item.position in task.repeated:
        return "duplicate_ref_id", "an earlier ref has the same id, expected each id once; fetch the file again"
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
    raw: RawShard, images: dict[int, SourceImage | None], alike: Mapping[str, str], convert: Convert | None
) -> list[tuple[int, Reject]]:
    """Read the sizes of pictures that a user's table does not give, and remove refs whose picture has no usable size.

    If only masks or run lengths give an image's size, the picture must confirm it. Otherwise one mask of the wrong size
    would determine the size for all rows of the image.

    Returns:
        The removed refs as rejects.
    """
    if raw.spec.dataset != CUSTOM:
        return []
    other_sizes = _check_drawn_sizes(raw, images, convert)
    unsized = {image_id: images[image_id] for image_id, record in raw.images.items() if has_no_size(record)}
    files = {image_id: found for image_id, found in unsized.items() if found is not None}
    faults = {
        image_id: _missing_fault(raw.spec.dataset, str(raw.images[image_id].get("file_name")), alike)
        for image_id in unsized.keys() - files.keys()
    }
    for (image_id, file), size in zip(
        files.items(), read_jpeg_sizes(list(files.values()), convert=convert), strict=True
    ):
        if isinstance(size, JpegFault):
            faults[image_id] = size.reason, f"{file.name} {size.found}"
        else:
            raw.images[image_id]["height"], raw.images[image_id]["width"] = size
    refs = [(item, faults.get(item.ref["image_id"])) for item in raw.refs]
    raw.refs[:] = [item for item, fault in refs if fault is None]
    unreadable = [(item.position, reject_ref(raw.spec, item, *fault)) for item, fault in refs if fault is not None]
    return other_sizes + unreadable


def _check_drawn_sizes(
    raw: RawShard, images: dict[int, SourceImage | None], convert: Convert | None
) -> list[tuple[int, Reject]]:
    """Replace sizes that masks or run lengths gave by the picture's size, and reject the refs with another size.

    A picture whose size cannot be read, or that EXIF rotates, is not compared here but when the shard is built.
    """
    files = {
        image_id: found
        for image_id, record in raw.images.items()
        if record.get("size_by_target") and (found := images[image_id]) is not None
    }
    pictures: dict[int, tuple[str, tuple[int, int]]] = {}
    for (image_id, file), size in zip(
        files.items(), read_jpeg_sizes(list(files.values()), convert=convert), strict=True
    ):
        record = raw.images[image_id]
        if not isinstance(size, JpegFault) and size != (record["height"], record["width"]):
            record["height"], record["width"] = size
            record.pop("size_from", None)
            pictures[image_id] = file.name, size
    rejects = []
    for item in raw.refs:
        if item.ref["image_id"] in pictures and (drawn := _drawn_size(raw, item)):
            name, (height, width) = pictures[item.ref["image_id"]]
            message = (
                f"{item.ref['target']} is {drawn[1]} x {drawn[0]} pixels, but {name} is {width} x {height}; "
                "correct it, or use the picture for which it was made"
            )
            rejects.append((item.position, reject_ref(raw.spec, item, "size_mismatch", message)))
    out = {position for position, _ in rejects}
    raw.refs[:] = [item for item in raw.refs if item.position not in out]
    return rejects


def _drawn_size(raw: RawShard, item: RawRef) -> tuple[int, int] | None:
    """Return the `(height, width)` of the ref's mask or run lengths; None if its target is of another kind."""
    for ann_id in find_annotation_ids(item.ref) if item.ref["target"] else ():
        segmentation = raw.annotations[ann_id].get("segmentation")
        part = segmentation[0] if isinstance(segmentation, list) else segmentation
        if isinstance(part, dict):
            return part["size"][0], part["size"][1]
    return None


def _missing_fault(dataset: str, file_name: str, alike: Mapping[str, str]) -> tuple[str, str]:
    searched = "with the folders of its name" if dataset == CUSTOM else "or one with COCO's name for it"
    hint = describe_alike(file_name, alike.get(file_name)) or "; give --images"
    return "missing_image", f"found no file {file_name}, {searched}{hint}"


def _image_fault(record: RefRecord, found: SourceImage | None, alike: Mapping[str, str]) -> tuple[str, str] | None:
    """Return reason and message if an image cannot be used; None if it can."""
    if found is None:
        return _missing_fault(record.dataset, record.file_name, alike)
    if found.size is not None and found.size != (record.height, record.width):
        height, width = found.size
        return "size_mismatch", (
            f"is {width} x {height} pixels in the pool, expected {record.width} x {record.height} as annotated; "
            "check that it is the same picture"
        )
    return None
