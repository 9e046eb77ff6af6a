"""Checks the manifest and tar of one shard, and returns the ids that are compared between all shards."""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipelines.verify.rows import Row, check_rows
from pipelines.verify.samples import check_sample, hash_span, walk_samples
from refseg.dataset.descriptor import ShardEntry, StoredImages
from refseg.dataset.faults import Fault, shorten
from refseg.dataset.file_checks import read_whole, tar_name
from refseg.dataset.manifest_reader import read_all_columns
from refseg.dataset.row_checks import RowRules
from refseg.dataset.schema import RefRecord
from refseg.errors import DatasetError
from refseg.storage import open_folder
from refseg.wording import counted

SAMPLE_LOCATION = np.dtype(
    [
        ("image_id", "<i8"), ("image_offset", "<i8"), ("image_bytes", "<i8"), ("image_xxh3", "<u8"),
        ("sample_bytes", "<i8"), ("sample_xxh3", "<u8"), ("height", "<i4"), ("width", "<i4"),
    ]
)  # fmt: skip
"""The location, hashes and size of a sample in an image pool, as rows state them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyTask:
    """The input of the check of one shard.

    Attributes:
        folder: Path or URL of the dataset.
        entry: The descriptor's entry for the shard.
        rules: The values that the descriptor allows in rows.
        mask_rule: Mask rule of the dataset.
        stored_images: Size to which the tar's pictures were reduced; None if they have the size that the rows state.
    """

    folder: str
    entry: ShardEntry
    rules: RowRules
    mask_rule: str
    stored_images: StoredImages | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardFindings:
    """The result of the check of a shard, with a few numbers per image and ref.

    Attributes:
        name: Name of the shard.
        faults: The faults. For each file, at most `MOST_FAULTS` faults are listed, with the total number.
        keys: Image id and number of each sample in the tar, `(samples, 2)` int64.
        refs: Position of the dataset in the task's datasets and ref id of each row, `(rows, 2)` int64.
        sentences: Position of the dataset in the task's datasets and `sent_id` of each sentence, `(sentences, 2)`
            int64.
        locations: Locations of samples, each once, by tar of a pool (`SAMPLE_LOCATION`).
        tar_sha256: SHA-256 of the tar; empty if the shard has no tar.
    """

    name: str
    faults: tuple[Fault, ...]
    keys: NDArray[np.int64]
    refs: NDArray[np.int64]
    sentences: NDArray[np.int64]
    locations: dict[str, NDArray[np.void]]
    tar_sha256: str


def verify_shard(task: VerifyTask) -> ShardFindings:
    """Check one shard. A missing file is not reported, because another check reports it.

    Raises:
        StorageError: If remote storage fails.
    """
    entry = task.entry
    folder, tar = open_folder(task.folder), tar_name(entry)
    positions = {dataset_id: position for position, dataset_id in enumerate(task.rules.datasets)}
    rows: list[Row] | None = None
    records: list[RefRecord | Exception] = []
    table, row_faults = read_all_columns(folder, entry)
    if table is not None:
        found_rows = table.to_pylist()
        faults, records = check_rows(entry, table, found_rows, rules=task.rules, mask_rule=task.mask_rule)
        row_faults += faults
        rows = found_rows if records else None

    keys: list[tuple[int, int]] = []
    data, tar_faults, tar_sha256 = None, list[Fault](), ""
    if entry.num_samples:
        with suppress(FileNotFoundError):
            data, tar_faults = read_whole(folder, tar, entry.tar_sha256)
    if data is not None:
        tar_sha256 = hashlib.sha256(data).hexdigest() if tar_faults else entry.tar_sha256
        images = None if rows is None else _images(tar, rows, records)
        tar_faults += _check_tar(tar, data, entry, images, keys, task.stored_images)
    return ShardFindings(
        name=entry.name,
        faults=(*shorten(row_faults), *shorten(tar_faults)),
        keys=np.array(keys, np.int64).reshape(-1, 2),
        refs=np.array(
            [(positions.get(f"{row['dataset']}/{row['split_by']}", -1), row["ref_id"]) for row in rows or ()], np.int64
        ).reshape(-1, 2),
        sentences=np.array(
            [
                (positions.get(f"{record.dataset}/{record.split_by}", -1), sentence.sent_id)
                for record in records
                if not isinstance(record, Exception)
                for sentence in record.sentences
            ],
            np.int64,
        ).reshape(-1, 2),
        locations=_pool_locations([row for row in rows or () if row["shard"] != tar]),
        tar_sha256=tar_sha256,
    )


_Image = tuple[list[Row], list[RefRecord | Exception]]


def _images(tar: str, rows: Sequence[Row], records: Sequence[RefRecord | Exception]) -> dict[int, _Image]:
    """Return the rows and records of each image that should be in the tar, by image id and in the tar's order."""
    images: dict[int, _Image] = {}
    for row, record in zip(rows, records, strict=True):
        if row["shard"] == tar:
            of_image = images.setdefault(row["image_id"], ([], []))
            of_image[0].append(row)
            of_image[1].append(record)
    return images


def _check_tar(
    tar: str,
    data: bytes,
    entry: ShardEntry,
    images: dict[int, _Image] | None,
    keys: list[tuple[int, int]],
    stored_images: StoredImages | None,
) -> Iterator[Fault]:
    """Compare the tar's samples with the manifest's images, and append the keys of the samples to `keys`.

    `waiting` holds the images whose samples have not been found yet. Example: the manifest has the images 7, 5 and 9. A
    sample of 5 is compared with the rows of 5, which are removed from `waiting`. The images that remain at the end are
    missing in the tar. Without a manifest (`images` is None) only the tar itself is checked.
    """
    waiting = {} if images is None else dict(images)
    try:
        for sample in walk_samples(data):
            keys.append((sample.image_id, sample.number))
            image = waiting.pop(sample.image_id, None)
            if image is not None:
                yield from check_sample(tar, sample, data, *image, stored_images)
            elif images is not None:
                yield Fault(file=tar, sample=sample.key, found="an image that no row refers to", expected="no sample")
    except DatasetError as error:
        damaged = next(iter(waiting), None)
        where = "" if damaged is None else f"{waiting.pop(damaged)[0][0]['image_id']:012d}"
        yield Fault(file=tar, sample=where, found=f"damage {error}", expected="whole samples up to the end")
        # The tar cannot be read further in order, but the manifest states the offsets of the remaining samples.
        waiting = {
            image_id: (rows, records)
            for image_id, (rows, records) in waiting.items()
            if hash_span(data, rows[0]["image_offset"], rows[0]["sample_bytes"]) != rows[0]["sample_xxh3"]
        }
    else:
        if len(keys) != entry.num_samples:
            yield Fault(file=tar, found=counted(len(keys), "sample"), expected=f"{entry.num_samples}")
    for image_id, (rows, _) in waiting.items():
        refs = ", ".join(str(row["ref_id"]) for row in rows)
        yield Fault(file=tar, sample=f"{image_id:012d}", found="no such sample", expected=f"the image of refs {refs}")


def _pool_locations(rows: Sequence[Row]) -> dict[str, NDArray[np.void]]:
    by_tar: dict[str, list[tuple[int, ...]]] = {}
    names = SAMPLE_LOCATION.names or ()
    for row in rows:
        fields = tuple(int(row[name], 16) if name.endswith("xxh3") else row[name] for name in names)
        by_tar.setdefault(row["shard"], []).append(fields)
    return {tar: np.unique(np.array(found, SAMPLE_LOCATION)) for tar, found in by_tar.items()}
