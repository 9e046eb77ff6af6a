"""One shard task to tar, manifest and receipt, published whole or not at all."""

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import xxhash

from pipelines.images import find_jpeg_fault
from pipelines.manifest import ManifestRow, write_manifest
from pipelines.plan import SampleTask, ShardTask
from pipelines.publish import publish, publish_bytes
from pipelines.rejects import Reject
from pipelines.tars import TarWriter
from refseg.descriptor import ShardEntry
from refseg.errors import BuildError
from refseg.schema import ImageLocation, RefRecord

BUILD_FOLDER = ".build"
"""Holds plan, receipts and temporary files inside the dataset's folder while it is built."""
RECEIPTS_FOLDER = "receipts"
"""Within `BUILD_FOLDER`: one file per finished shard."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """What a finished shard task says: the shard as it stands in the descriptor, and the refs it had to reject.

    `entry.num_images` is 0 where every image was bad; then there are no files.
    """

    entry: ShardEntry
    rejects: tuple[Reject, ...]

    def to_json(self, fingerprint: str) -> str:
        """Text of the receipt's file."""
        return json.dumps({"fingerprint": fingerprint, **asdict(self)}, indent=1) + "\n"


def build_shard(task: ShardTask) -> Receipt:
    """Build and publish one shard; the bytes depend on the task alone.

    Tar, manifest and receipt are renamed in this order: a shard with a receipt is whole.

    Raises:
        ImageError: If an image is bad, unless `task.skip_bad`.
        BuildError: If an image file changed since the plan was made.
        OSError: If the folder cannot be written.
    """
    folder = task.folder
    # The process id keeps a worker whose parent was killed, and that has not noticed yet, off our files.
    tar_temporary, parquet_temporary, receipt_temporary = (
        folder / BUILD_FOLDER / f"tmp-{os.getpid()}-{task.name}.{kind}" for kind in ("tar", "parquet", "json")
    )
    rows: list[ManifestRow] = []
    rejects: list[Reject] = []
    num_images = 0
    with tar_temporary.open("wb", buffering=1 << 20) as file:
        tar = TarWriter(file)
        for sample in task.samples:
            data, faults = _read_image(sample)
            if faults and not task.skip_bad:
                raise faults[0].to_error()
            rejects += faults
            if not faults:
                num_images += 1
                tar.begin_sample()
                offset = tar.add(f"{sample.key}.jpg", data)
                tar.add(f"{sample.key}.json", sample_json(sample.records))
                sample_bytes, sample_xxh3 = tar.end_sample()
                location = ImageLocation(
                    shard=f"{task.name}.tar",
                    image_offset=offset,
                    image_bytes=len(data),
                    image_xxh3=xxhash.xxh3_64_hexdigest(data),
                    sample_bytes=sample_bytes,
                    sample_xxh3=sample_xxh3,
                )
                rows += [ManifestRow(record=record, location=location) for record in sample.records]
        tar.finish()
    rows_sha256 = write_manifest(parquet_temporary, rows)
    receipt = Receipt(
        entry=ShardEntry(
            name=task.name,
            split=task.split,
            num_images=num_images,
            num_samples=num_images,
            num_refs=len(rows),
            num_sentences=sum(len(row.record.sentences) for row in rows),
            tar_bytes=tar.num_bytes,
            tar_sha256=tar.sha256,
            parquet_bytes=parquet_temporary.stat().st_size,
            parquet_sha256=_hash_file(parquet_temporary),
            rows_sha256=rows_sha256,
        ),
        rejects=tuple(rejects),
    )
    if rows:
        publish(tar_temporary, folder / f"{task.name}.tar")
        publish(parquet_temporary, folder / f"{task.name}.parquet")
    else:
        tar_temporary.unlink()
        parquet_temporary.unlink()
    publish_bytes(receipt.to_json(task.fingerprint).encode(), receipt_path(folder, task.name), receipt_temporary)
    return receipt


def find_receipt(task: ShardTask) -> Receipt | None:
    """Read a task's receipt and hash its files; None if the shard has to be built (again)."""
    try:
        fields = json.loads(receipt_path(task.folder, task.name).read_text(encoding="utf-8"))
        if fields["fingerprint"] != task.fingerprint:
            return None
        receipt = Receipt(
            entry=ShardEntry(**fields["entry"]),
            rejects=tuple(Reject(**reject) for reject in fields["rejects"]),
        )
        entry = receipt.entry
        if entry.num_images and (
            _hash_file(task.folder / f"{task.name}.tar") != entry.tar_sha256
            or _hash_file(task.folder / f"{task.name}.parquet") != entry.parquet_sha256
        ):
            return None
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return receipt


def receipt_path(folder: Path, name: str) -> Path:
    """Where a shard's receipt lies."""
    return folder / BUILD_FOLDER / RECEIPTS_FOLDER / f"{name}.json"


def sample_json(records: Sequence[RefRecord]) -> bytes:
    """The `.json` member of an image: what readers without the manifest need."""
    first = records[0]
    fields = {
        "image_id": first.image_id,
        "file_name": first.file_name,
        "height": first.height,
        "width": first.width,
        "refs": [
            {
                "ref_id": record.ref_id,
                "ann_ids": [annotation.ann_id for annotation in record.annotations],
                "category": record.category,
                "box_xywh": record.box_xywh,
                "no_target": record.no_target,
                "box_only": record.box_only,
                "mask": {"size": record.mask.size, "counts": record.mask.counts},
                "sentences": [
                    {
                        "sent_id": sentence.sent_id,
                        "raw": sentence.raw,
                        "sent": sentence.sent,
                        "token_ids": sentence.token_ids,
                        "exists": sentence.exists,
                    }
                    for sentence in record.sentences
                ],
            }
            for record in records
        ],
    }
    return json.dumps(fields, ensure_ascii=False, separators=(",", ":")).encode()


def _read_image(sample: SampleTask) -> tuple[bytes, list[Reject]]:
    """The image's bytes, and a reject for each of its refs if it is bad."""
    first, path = sample.records[0], sample.image.path
    try:
        data = path.read_bytes()
    except OSError as error:
        return b"", reject_image(
            sample.records, "missing_image", f"{path.name} cannot be read ({error.strerror}); fetch the file again"
        )
    if len(data) != sample.image.num_bytes:
        raise BuildError(
            f"{path}: has {len(data)} bytes, {sample.image.num_bytes} when the build began; "
            "wait until the file is complete and build again"
        )
    fault = find_jpeg_fault(data, first.height, first.width)
    if fault is None:
        return data, []
    reason, found = fault
    return data, reject_image(sample.records, reason, f"{path.name} {found}")


def reject_image(records: Sequence[RefRecord], reason: str, found: str) -> list[Reject]:
    """Reject all refs of an image for what is wrong with it."""
    return [
        Reject(
            ref_id=record.ref_id,
            image_id=record.image_id,
            split=record.split,
            reason=reason,
            message=f"{record.where}: image {record.image_id}: {found}",
        )
        for record in records
    ]


def _hash_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
