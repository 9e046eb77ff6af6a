"""Checks a built dataset: descriptor, tars, manifests and their agreement, down to each pixel run and token."""

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from pipelines.manifest import ManifestRow, digest_rows, read_rows
from pipelines.masks import mask_area, target_mask
from pipelines.plan import fingerprint
from pipelines.rejects import REJECTS_NAME, REJECTS_SCHEMA
from pipelines.shards import sample_json
from pipelines.tars import TarMember, read_members
from refseg import tokenizer
from refseg.descriptor import DESCRIPTOR_NAME, Descriptor, ShardEntry, load_descriptor
from refseg.errors import AnnotationError, DatasetError, UsageError
from refseg.schema import DATASETS, MASK_RULES

_REBUILD = "delete the folder and build the dataset again"
_KEY = re.compile(r"\d{12,}(_\d+)?")
_MOST_FAULTS = 20
"""Faults told of one shard; where everything is wrong, the rest adds nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One thing that is not as it must be.

    Attributes:
        file: File name in the dataset's folder.
        sample: The sample, ref or byte it was found at; empty: the file as a whole.
        found: What is there.
        expected: What should be.
        remedy: What to do.
    """

    file: str
    sample: str = ""
    found: str
    expected: str
    remedy: str = _REBUILD

    def __str__(self) -> str:
        place = f"{self.file}, {self.sample}" if self.sample else self.file
        return f"{place}: found {self.found}, expected {self.expected}; {self.remedy}"


def verify_dataset(folder: Path, *, fast: bool = False) -> list[Fault]:
    """Check a dataset.

    Args:
        folder: The dataset's folder.
        fast: Look only at the descriptor, at which files there are, and at their sizes.

    Returns:
        All faults found; at most some of each shard.

    Raises:
        UsageError: If there is no such folder.
    """
    if not folder.is_dir():
        raise UsageError(f"{folder}: no such folder; expected a dataset made by `refseg build-shards`")
    try:
        descriptor = load_descriptor(folder)
    except DatasetError as error:
        return [Fault(file=DESCRIPTOR_NAME, found=str(error), expected="the descriptor of a finished dataset")]
    faults = [*_check_descriptor(descriptor), *_check_files(folder, descriptor)]
    if not fast:
        seen = _Seen(keys={}, ref_ids={})
        for entry in descriptor.shards:
            found = list(_check_shard(folder, descriptor, entry, seen))
            faults += found[:_MOST_FAULTS]
            if len(found) > _MOST_FAULTS:
                more = f"{len(found) - _MOST_FAULTS} more faults"
                faults.append(Fault(file=f"{entry.name}.tar", found=more, expected="none"))
        faults += _check_rejects(folder, descriptor)
    return faults


@dataclass(frozen=True, slots=True, kw_only=True)
class _Seen:
    """What must be unique in the dataset, and the shard that had it first."""

    keys: dict[str, str]
    ref_ids: dict[int, str]


def _check_descriptor(descriptor: Descriptor) -> Iterator[Fault]:
    def fault(found: str, expected: str) -> Fault:
        return Fault(file=DESCRIPTOR_NAME, found=found, expected=expected)

    spec = DATASETS.get(descriptor.dataset)
    if spec is None:
        yield fault(f"dataset {descriptor.dataset!r}", f"one of {', '.join(DATASETS)}")
        return
    if descriptor.mask_rule not in MASK_RULES:
        yield fault(f"mask rule {descriptor.mask_rule!r}", f"one of {', '.join(MASK_RULES)}")
    if descriptor.tokenizer != tokenizer.IDENTITY:
        yield fault(f"tokenizer {descriptor.tokenizer}", f"{tokenizer.IDENTITY}")
    if descriptor.plan_fingerprint != fingerprint(descriptor.plan_keys):
        yield fault(f"plan fingerprint {descriptor.plan_fingerprint:.12}", "the hash of its plan keys")
    for source in descriptor.sources:
        planned = descriptor.plan_keys.get(f"source {source.name}")
        if source.sha256 != planned:
            yield fault(
                f"source {source.name} with sha256 {source.sha256!s:.12}", f"{planned!s:.12} as in its plan keys"
            )
    names = [entry.name for entry in descriptor.shards]
    for entry in descriptor.shards:
        if entry.split not in spec.splits or not re.fullmatch(re.escape(entry.split) + r"-\d{5,}", entry.name):
            yield fault(f"shard {entry.name!r} of split {entry.split!r}", f"<split>-<number>, {', '.join(spec.splits)}")
        if names.count(entry.name) > 1:
            yield fault(f"shard {entry.name} {names.count(entry.name)} times", "each shard once")


def _check_files(folder: Path, descriptor: Descriptor) -> Iterator[Fault]:
    """Which files there are, and their sizes."""
    sizes = {}
    for entry in descriptor.shards:
        sizes[f"{entry.name}.tar"] = entry.tar_bytes
        sizes[f"{entry.name}.parquet"] = entry.parquet_bytes
    for name, num_bytes in sizes.items():
        path = folder / name
        if not path.is_file():
            yield Fault(file=name, found="no such file", expected=f"{num_bytes} bytes")
        elif path.stat().st_size != num_bytes:
            yield Fault(file=name, found=f"{path.stat().st_size} bytes", expected=f"{num_bytes} bytes")
    if descriptor.num_rejects:
        sizes[REJECTS_NAME] = 0
        if not (folder / REJECTS_NAME).is_file():
            yield Fault(file=REJECTS_NAME, found="no such file", expected=f"{descriptor.num_rejects} rejects")
    for path in sorted([*folder.glob("*.tar"), *folder.glob("*.parquet")]):
        if path.name not in sizes:
            yield Fault(
                file=path.name,
                found="a file that the descriptor does not name",
                expected="only the dataset's own shards",
                remedy="remove it: a reader that takes all tars would read its samples twice",
            )


def _check_rejects(folder: Path, descriptor: Descriptor) -> Iterator[Fault]:
    path = folder / REJECTS_NAME
    if not descriptor.num_rejects or not path.is_file():
        return
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowException):
        yield Fault(file=path.name, found="a file that is not Parquet", expected=f"{descriptor.num_rejects} rejects")
        return
    if not table.schema.equals(REJECTS_SCHEMA) or table.num_rows != descriptor.num_rejects:
        yield Fault(file=path.name, found=f"{table.num_rows} rows", expected=f"{descriptor.num_rejects} rejects")


def _check_shard(folder: Path, descriptor: Descriptor, entry: ShardEntry, seen: _Seen) -> Iterator[Fault]:
    tar, parquet = folder / f"{entry.name}.tar", folder / f"{entry.name}.parquet"
    for path, expected in ((tar, entry.tar_sha256), (parquet, entry.parquet_sha256)):
        if path.is_file():
            found = _hash_file(path)
            if found != expected:
                yield Fault(file=path.name, found=f"sha256 {found:.12}", expected=f"{expected:.12} as built")
    rows: list[dict[str, Any]] | None = None
    if parquet.is_file():
        try:
            rows = read_rows(parquet)
        except DatasetError as error:
            yield Fault(file=parquet.name, found=str(error), expected="a manifest")
    if rows is not None:
        yield from _check_rows(parquet.name, descriptor, entry, rows, seen)
    if tar.is_file():
        yield from _check_tar(tar, entry, rows, seen)


def _check_rows(
    file: str, descriptor: Descriptor, entry: ShardEntry, rows: Sequence[dict[str, Any]], seen: _Seen
) -> Iterator[Fault]:
    if digest_rows(rows) != entry.rows_sha256:
        yield Fault(file=file, found="rows of another build", expected=f"rows with digest {entry.rows_sha256:.12}")
    num_sentences = sum(len(row["sentences"]) for row in rows)
    for what, found, expected in (
        ("refs", len(rows), entry.num_refs),
        ("sentences", num_sentences, entry.num_sentences),
        ("images", len({row["image_id"] for row in rows}), entry.num_images),
    ):
        if found != expected:
            yield Fault(file=file, found=f"{found} {what}", expected=f"{expected}")
    for row in rows:
        sample = f"ref {row['ref_id']}"
        for name, expected_value in (
            ("dataset", f"{descriptor.dataset}"),
            ("split", entry.split),
            ("shard", f"{entry.name}.tar"),
        ):
            value = f"{row['dataset']}/{row['split_by']}" if name == "dataset" else row[name]
            if value != expected_value:
                yield Fault(file=file, sample=sample, found=f"{name} {value}", expected=expected_value)
        if row["ref_id"] in seen.ref_ids:
            first = f"the same ref_id as in {seen.ref_ids[row['ref_id']]}"
            yield Fault(file=file, sample=sample, found=first, expected="each ref once")
        seen.ref_ids.setdefault(row["ref_id"], entry.name)
        yield from (
            Fault(file=file, sample=sample, found=found, expected=expected)
            for found, expected in _row_faults(row, descriptor.mask_rule)
        )


def _row_faults(fields: dict[str, Any], mask_rule: str) -> Iterator[tuple[str, str]]:
    """What is found and expected wherever a row contradicts itself."""
    try:
        record = ManifestRow.from_dict(fields).record
    except (AnnotationError, TypeError, ValueError) as error:
        yield f"no record ({error})", "a record"
        return
    size = (record.height, record.width)
    if record.mask.size != size or sum(record.mask.counts) != record.height * record.width:
        yield f"a mask of {sum(record.mask.counts)} pixels, size {record.mask.size}", f"size {size}"
    elif record.mask != target_mask(record.annotations, size, mask_rule):
        yield "a mask that differs from its annotations", f"their {mask_rule}"
    if record.area != mask_area(record.mask):
        yield f"area {record.area}", f"{mask_area(record.mask)} pixels as in the mask"
    if record.no_target != (record.area == 0):
        yield f"no_target {record.no_target} with area {record.area}", "a target with pixels, or none"
    for sentence in record.sentences:
        if sentence.token_ids != tokenizer.encode(sentence.sent):
            yield f"other token_ids in sentence {sentence.sent_id}", f"those of {tokenizer.IDENTITY['name']}"


def _check_tar(path: Path, entry: ShardEntry, rows: Sequence[dict[str, Any]] | None, seen: _Seen) -> Iterator[Fault]:
    """Walk the tar beside the manifest's images, in order."""
    # Rows of one image are adjacent; without a manifest the tar is checked by itself.
    images = [list(group) for _, group in groupby(rows or (), key=lambda row: row["image_id"])]
    members = read_members(path)
    num_samples = 0
    try:
        for member in members:
            key, _, suffix = member.name.partition(".")
            text = next(members, None)
            if suffix != "jpg" or text is None or text.name != f"{key}.json":
                found = f"{member.name} followed by {text.name if text else 'the end'}"
                yield Fault(file=path.name, sample=key, found=found, expected="<key>.jpg followed by <key>.json")
                return
            if not _KEY.fullmatch(key):
                yield Fault(file=path.name, sample=key, found="a key of another form", expected="<image id>[_<number>]")
            if key in seen.keys:
                found = f"the same key as in {seen.keys[key]}"
                yield Fault(file=path.name, sample=key, found=found, expected="each key once")
            seen.keys.setdefault(key, entry.name)
            if rows is not None and num_samples < len(images):
                yield from _check_sample(path.name, key, member, text, images[num_samples])
            num_samples += 1
    except DatasetError as error:
        yield Fault(file=path.name, found=f"damage {error}", expected="whole members up to the end")
        return
    if num_samples != entry.num_images or (rows is not None and num_samples != len(images)):
        yield Fault(file=path.name, found=f"{num_samples} samples", expected=f"{entry.num_images}")


def _check_sample(
    file: str, key: str, image: TarMember, text: TarMember, rows: Sequence[dict[str, Any]]
) -> Iterator[Fault]:
    row = rows[0]
    if int(key.partition("_")[0]) != row["image_id"]:
        yield Fault(file=file, sample=key, found="this image", expected=f"image {row['image_id']} as in the manifest")
        return
    for other in rows:
        if (other["image_offset"], other["image_bytes"]) != (image.offset, len(image.payload)):
            found = f"{len(image.payload)} bytes at {image.offset}"
            expected = f"{other['image_bytes']} at {other['image_offset']} as in the manifest"
            yield Fault(file=file, sample=key, found=found, expected=expected)
            break
        if other["image_xxh3"] != xxhash.xxh3_64_hexdigest(image.payload):
            yield Fault(file=file, sample=key, found="other image bytes", expected=f"xxh3 {other['image_xxh3']}")
            break
    try:
        expected_text = sample_json([ManifestRow.from_dict(other).record for other in rows])
    except (AnnotationError, TypeError, ValueError):
        return  # told with the row
    if text.payload != expected_text:
        yield Fault(
            file=file,
            sample=key,
            found=f"a .json that differs from the manifest{_difference(text.payload, expected_text)}",
            expected="the same refs",
        )


def _difference(found: bytes, expected: bytes) -> str:
    """Where two samples' JSON differ, in words; empty if the text cannot be read."""
    try:
        ours, theirs = json.loads(found), json.loads(expected)
        for name, value in theirs.items():
            if name != "refs" and ours[name] != value:
                return f" in {name}"
        for mine, other in zip(ours["refs"], theirs["refs"], strict=True):
            for name, value in other.items():
                if mine[name] != value:
                    return f" in {name} of ref {other['ref_id']}"
    except (ValueError, KeyError, TypeError, AttributeError):
        return ""
    return ""


def _hash_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
