"""Compares one tar of an image pool with the recorded hash and with the rows that refer to samples in the tar."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import xxhash
from numpy.typing import NDArray

from pipelines.tars import BLOCK
from pipelines.verify.samples import find_size_fault, hash_span
from refseg.dataset.descriptor import PoolTar, StoredImages
from refseg.dataset.faults import Fault, shorten
from refseg.dataset.file_checks import read_whole
from refseg.storage import open_folder


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolTask:
    """The input of the check of one tar of a pool.

    Attributes:
        folder: Path or URL of the pool.
        tar: Expected size and hash of the tar.
        file: Name of the tar in rows, `<pool>/<tar>`.
        locations: Locations of samples in the tar, as rows state them (`shards.SAMPLE_LOCATION`).
        remedy: Advice to the user in messages about faults.
        stored_images: Size to which the pool's pictures were reduced; None if they have the size that the rows state.
    """

    folder: str
    tar: PoolTar
    file: str
    locations: NDArray[np.void]
    remedy: str
    stored_images: StoredImages | None


def check_pool_tar(task: PoolTask) -> tuple[str, tuple[Fault, ...]]:
    """Check one tar of a pool. A missing tar is not reported, because another check reports it.

    Returns:
        The task's `file`, and the faults of the tar. At most `MOST_FAULTS` faults are listed, with the total number.

    Raises:
        StorageError: If remote storage fails.
    """
    name, sha256 = task.tar.name, task.tar.sha256
    try:
        data, faults = read_whole(open_folder(task.folder), name, sha256, file=task.file, remedy=task.remedy)
    except FileNotFoundError:
        return task.file, ()
    if data is not None:
        faults += _check_locations(task, data)
    return task.file, shorten(faults)


def _check_locations(task: PoolTask, data: bytes) -> Iterator[Fault]:
    for row in task.locations:
        offset, num_bytes, image_id = (int(row[name]) for name in ("image_offset", "image_bytes", "image_id"))
        xxh3 = hash_span(data, offset, int(row["sample_bytes"]))
        jpeg = memoryview(data)[offset : offset + num_bytes]
        key = data[max(0, offset - BLOCK) :][:100].partition(b".")[0]
        wrong = None
        if xxh3 != f"{row['sample_xxh3']:016x}":
            wrong = f"a sample with xxh3 {xxh3}", f"{row['sample_xxh3']:016x} as in the manifest"
        elif xxhash.xxh3_64_intdigest(jpeg) != row["image_xxh3"]:
            wrong = "other image bytes", f"xxh3 {row['image_xxh3']:016x} as in the manifest"
        elif size_fault := find_size_fault(jpeg, (int(row["height"]), int(row["width"])), task.stored_images):
            wrong = size_fault
        elif key.partition(b"_")[0] != b"%012d" % image_id:
            wrong = f"sample {key.decode(errors='replace')}", f"image {image_id} as in the manifest"
        if wrong is not None:
            found, expected = wrong
            yield Fault(file=task.file, sample=f"{image_id:012d}", found=found, expected=expected, remedy=task.remedy)
