"""The check of one shard: its manifest, its tar, and what only all shards together can show."""

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

PLACE = np.dtype(
    [
        ("image_id", "<i8"), ("image_offset", "<i8"), ("image_bytes", "<i8"), ("image_xxh3", "<u8"),
        ("sample_bytes", "<i8"), ("sample_xxh3", "<u8"), ("height", "<i4"), ("width", "<i4"),
    ]
)  # fmt: skip
"""What rows say of a sample in an image pool."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyTask:
    """All that a worker needs to check one shard.

    Attributes:
        folder: Path or URL of the dataset.
        entry: What the descriptor says of the shard.
        rules: What its rows must be.
        mask_rule: Of the dataset.
        stored_images: Size of the pictures in its tar; None: they have their rows' size.
    """

    folder: str
    entry: ShardEntry
    rules: RowRules
    mask_rule: str
    stored_images: StoredImages | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardFindings:
    """What the check of a shard brings back: a few numbers per image and ref.

    Attributes:
        name: Of the shard.
        faults: All found, at most some of each file.
        keys: `(samples, 2)` int64: image id and number of each sample in the tar.
        refs: `(rows, 2)` int64: position in the task's datasets and ref id of each row.
        sentences: `(sentences, 2)` int64: position in the task's datasets and `sent_id` of each.
        places: By tar of a pool: what the rows say of the samples there, each sample once.
        tar_sha256: Of the tar as found; empty without one.
    """

    name: str
    faults: tuple[Fault, ...]
    keys: NDArray[np.int64]
    refs: NDArray[np.int64]
    sentences: NDArray[np.int64]
    places: dict[str, NDArray[np.void]]
    tar_sha256: str


def verify_shard(task: VerifyTask) -> ShardFindings:
    """Check one shard. A missing file is no fault here: the files are compared before.

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
        places=_places([row for row in rows or () if row["shard"] != tar]),
        tar_sha256=tar_sha256,
    )


_Image = tuple[list[Row], list[RefRecord | Exception]]


def _images(tar: str, rows: Sequence[Row], records: Sequence[RefRecord | Exception]) -> dict[int, _Image]:
    """By image id, in the order of the tar: the rows of each image that should be there, and their records."""
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
    """Walk the tar beside the manifest's images; without a manifest it is checked by itself. Adds to `keys`."""
    waiting = {} if images is None else dict(images)
    try:
        for sample in walk_samples(data):
            keys.append((sample.image_id, sample.number))
            image = waiting.pop(sample.image_id, None)
            if image is not None:
                yield from check_sample(tar, sample, data, *image, stored_images)
            elif images is not None:
                yield Fault(file=tar, sample=sample.key, found="an image that no row waits for", expected="no sample")
    except DatasetError as error:
        damaged = next(iter(waiting), None)
        where = "" if damaged is None else f"{waiting.pop(damaged)[0][0]['image_id']:012d}"
        yield Fault(file=tar, sample=where, found=f"damage {error}", expected="whole samples up to the end")
        # The walk ends here, but the manifest knows where the others lie.
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


def _places(rows: Sequence[Row]) -> dict[str, NDArray[np.void]]:
    by_tar: dict[str, list[tuple[int, ...]]] = {}
    for row in rows:
        fields = tuple(int(row[name], 16) if name.endswith("xxh3") else row[name] for name in PLACE.names or ())
        by_tar.setdefault(row["shard"], []).append(fields)
    return {tar: np.unique(np.array(places, PLACE)) for tar, places in by_tar.items()}
