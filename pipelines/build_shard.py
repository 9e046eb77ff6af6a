"""Builds one planned shard: a tar, a manifest and a receipt. A shard with a receipt is complete."""

import hashlib
import socket
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import xxhash
from pydantic import TypeAdapter, ValidationError

from pipelines.build_folder import RECEIPTS_FOLDER, hash_file, publish_bytes, scratch_files
from pipelines.build_plan import PlannedShard, differing_keys, installed_tools
from pipelines.check import PlannedSample, read_samples, reject_image
from pipelines.convert_images import ImageConversion, convert_to_jpeg
from pipelines.images import FETCHES
from pipelines.jpeg_faults import JpegFault, find_jpeg_fault
from pipelines.rejects import Reject
from pipelines.resize import shrink_jpeg
from pipelines.tars import TarWriter
from refseg.dataset.descriptor import ShardEntry, StoredImages
from refseg.dataset.manifest_writer import ManifestRow, write_rows
from refseg.dataset.schema import ImageLocation
from refseg.errors import BuildError, StorageError
from refseg.json_text import canonical_json
from refseg.storage import Folder, LocalFolder, is_remote, open_folder, read_file


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildTask:
    """The input for building one shard, on any machine with access to the dataset's folder and the images.

    Attributes:
        folder: The dataset's folder, path or URL.
        shard: The shard to build.
        fingerprint: Fingerprint of the build's plan.
        tools: Versions of the software that made the plan; this machine must have the same.
        skip_bad: True: reject the refs of a bad image and continue. False: raise an error.
        decode: True: decode each image completely. False: check only its header and end marker.
        stored_images: Size to which pictures are reduced; None: the source's bytes are stored.
        conversion: Conversion of pictures; None: files that are not JPEGs are faults.
    """

    folder: str
    shard: PlannedShard
    fingerprint: str
    tools: dict[str, str]
    skip_bad: bool
    decode: bool
    stored_images: StoredImages | None
    conversion: ImageConversion | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """The result of building a shard: its entry in the descriptor, and the refs that were rejected.

    Attributes:
        fingerprint: Fingerprint of the build's plan.
        entry: The shard. If all images were bad, `num_images` is 0 and the shard has no files.
        rejects: Refs of bad images.
    """

    fingerprint: str
    entry: ShardEntry
    rejects: tuple[Reject, ...]


_RECEIPT = TypeAdapter(Receipt)


def build_shard(task: BuildTask) -> Receipt:
    """Build and publish one shard; its bytes depend only on the plan and the images.

    Tar, manifest and receipt are published in this order, so that a shard with a receipt is complete.

    Raises:
        ImageError: If an image is bad, unless `task.skip_bad`.
        BuildError: If an image file changed after the plan was made, the plan's samples are missing, or this machine
            has other versions of the software than the one that made the plan.
        OSError: If the folder cannot be written.
    """
    folder, name = open_folder(task.folder), task.shard.name
    differing = differing_keys(task.tools, installed_tools())
    if differing:
        raise BuildError(
            f"{name}: the library versions on this machine ({socket.gethostname()}) differ from those of the plan "
            f"({'; '.join(differing)}), so the shard would differ; install the same versions on all machines"
        )
    rows: list[dict[str, Any]] = []
    rejects: list[Reject] = []
    num_samples = 0
    with scratch_files(folder, f"{name}.tar", f"{name}.parquet") as (tar_path, parquet_path):
        with tar_path.open("wb", buffering=1 << 20) as file:
            tar = TarWriter(file)
            samples = _read_samples(folder, task.shard)
            images = _read_images([sample for sample in samples if sample.image.location is None], task)
            for sample in samples:
                location = sample.image.location
                if location is None:
                    data, faults = next(images)
                    if faults and not task.skip_bad:
                        raise faults[0].to_error()
                    rejects += faults
                    if faults:
                        continue
                    num_samples += 1
                    if task.stored_images is not None:
                        data = shrink_jpeg(data, task.stored_images)
                    location = _add_sample(tar, name, sample, data)
                location_fields = asdict(location)
                rows += [{**row, **location_fields} for row in sample.rows]
            tar.finish()
        rows_sha256 = write_rows(parquet_path, rows)
        receipt = Receipt(
            fingerprint=task.fingerprint,
            entry=ShardEntry(
                name=name,
                split=task.shard.split,
                num_images=len({row["image_id"] for row in rows}),
                num_samples=num_samples,
                num_refs=len(rows),
                num_sentences=sum(len(row["sentences"]) for row in rows),
                tar_bytes=tar.num_bytes if num_samples else 0,
                tar_sha256=tar.sha256 if num_samples else "",
                parquet_bytes=parquet_path.stat().st_size,
                parquet_sha256=hash_file(parquet_path),
                rows_sha256=rows_sha256,
            ),
            rejects=tuple(rejects),
        )
        if num_samples:
            folder.publish(tar_path, f"{name}.tar")
        if rows:
            folder.publish(parquet_path, f"{name}.parquet")
    publish_bytes(folder, _RECEIPT.dump_json(receipt, indent=1), receipt_name(name))
    return receipt


def find_receipt(task: BuildTask) -> Receipt | None:
    """Read a shard's receipt and compare its files with it; None if the shard must be built (again).

    Hashes of local files are compared. For remote files only the size is, because uploads are checked when they are
    made.
    """
    folder = open_folder(task.folder)
    try:
        receipt = _RECEIPT.validate_json(folder.read(receipt_name(task.shard.name)))
        if receipt.fingerprint != task.fingerprint:
            return None
        entry = receipt.entry
        for suffix, num_bytes, sha256 in (
            ("tar", entry.tar_bytes, entry.tar_sha256),
            ("parquet", entry.parquet_bytes, entry.parquet_sha256),
        ):
            is_there = entry.num_samples if suffix == "tar" else entry.num_images
            if is_there and folder.size(f"{entry.name}.{suffix}") != num_bytes:
                return None
            is_local = is_there and isinstance(folder, LocalFolder)
            if is_local and hash_file(Path(folder.join(f"{entry.name}.{suffix}"))) != sha256:
                return None
    except StorageError:
        raise
    except (OSError, ValidationError):
        return None
    return receipt


def receipt_name(shard: str) -> str:
    """Return the path of a shard's receipt, relative to the dataset's folder."""
    return f"{RECEIPTS_FOLDER}/{shard}.json"


def sample_json(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """Return the `.json` member of a sample, which holds the image's refs for readers without the manifest."""
    fields = {
        **{name: rows[0][name] for name in ("image_id", "file_name", "height", "width")},
        "refs": [
            {
                "ref_id": row["ref_id"],
                "ann_ids": [annotation["ann_id"] for annotation in row["annotations"]],
                **{name: row[name] for name in ("category", "box_xywh", "no_target", "box_only", "mask")},
                "sentences": [
                    {name: sentence[name] for name in ("sent_id", "raw", "sent", "token_ids", "exists")}
                    for sentence in row["sentences"]
                ],
            }
            for row in rows
        ],
    }
    return canonical_json(fields)


def _read_samples(folder: Folder, shard: PlannedShard) -> list[PlannedSample]:
    """Read the samples of a shard that the planning stage wrote, and compare their hash."""
    name = shard.samples_name
    try:
        data = folder.read(name)
    except FileNotFoundError as error:
        raise BuildError(
            f"{folder.join(name)}: no such file, so the plan is incomplete; run the planning stage again"
        ) from error
    found = hashlib.sha256(data).hexdigest()
    if found != shard.samples_sha256:
        raise BuildError(
            f"{folder.join(name)}: found sha256 {found:.12}, expected {shard.samples_sha256:.12} as planned; "
            "delete the folder and build again"
        )
    return read_samples(data)


def _read_images(samples: Sequence[PlannedSample], task: BuildTask) -> Iterator[tuple[bytes, list[Reject]]]:
    """Yield the result of `_read_image` for each sample; remote images are fetched several at a time."""
    read = partial(_read_image, task=task)
    if any(is_remote(sample.image.address) for sample in samples):
        with ThreadPoolExecutor(FETCHES) as pool:
            yield from pool.map(read, samples)
    else:
        yield from map(read, samples)


def _read_image(sample: PlannedSample, *, task: BuildTask) -> tuple[bytes, list[Reject]]:
    """Return the image's bytes, converted if that is requested, and a reject for each of its refs if it is bad."""
    image = sample.image

    def reject(reason: str, found: str) -> list[Reject]:
        lines = sample.lines or [""] * len(sample.rows)
        return [
            reject_image(ManifestRow.from_dict(row).record, reason, found, line)
            for row, line in zip(sample.rows, lines, strict=True)
        ]

    try:
        data = read_file(image.address)
    except StorageError:
        raise  # a fault of the storage, not of the image
    except OSError as error:
        return b"", reject(
            "missing_image", f"{image.name} cannot be read ({error.strerror or error}); fetch the file again"
        )
    if len(data) != image.num_bytes:
        raise BuildError(
            f"{image.address}: found {len(data)} bytes, expected {image.num_bytes} as at the start of the build; "
            "wait until the file is complete and build again"
        )
    first = sample.rows[0]
    converted = data if task.conversion is None else convert_to_jpeg(data, task.conversion)
    if isinstance(converted, JpegFault):
        return data, reject(converted.reason, f"{image.name} {converted.found}")
    data = converted
    fault = find_jpeg_fault(data, first["height"], first["width"], decode=task.decode, size_from=sample.size_from)
    if fault is None:
        return data, []
    reason, found = fault
    return data, reject(reason, f"{image.name} {found}")


def _add_sample(tar: TarWriter, name: str, sample: PlannedSample, data: bytes) -> ImageLocation:
    """Write the sample of one image and return its location."""
    tar.begin_sample()
    offset = tar.add(f"{sample.key}.jpg", data)
    tar.add(f"{sample.key}.json", sample_json(sample.rows))
    sample_bytes, sample_xxh3 = tar.end_sample()
    return ImageLocation(
        shard=f"{name}.tar",
        image_offset=offset,
        image_bytes=len(data),
        image_xxh3=xxhash.xxh3_64_hexdigest(data),
        sample_bytes=sample_bytes,
        sample_xxh3=sample_xxh3,
    )
