"""Exports to the LMDB files that CRIS, ETRIS and DETRIS read, with one record per ref that holds a JPEG and a mask.

    lmdb/<name>/<split>.lmdb    records `0`, `1`, ..., and `__len__`, `__keys__`
    masks/<name>/<ref id>.png   masks of 0 and 255
    anns/<name>/<split>.json    the input of CRIS's `folder2lmdb.py`

Records are pickles of plain values in protocol 4. CRIS's own writer used `pyarrow.serialize`, which pyarrow has
removed. Therefore one line of CRIS's reader must be changed: `loads_pyarrow` must `return pickle.loads(buf)`.
"""

import errno
import io
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pipelines.export.dataset import ExportedDataset
from pipelines.export.run import ExportOptions, Progress
from refseg.compat.refer_records import COCO_CATEGORIES, refer_order
from refseg.dataset.row_images import IMAGE_COLUMNS
from refseg.dataset.schema import DatasetSpec
from refseg.errors import UsageError
from refseg.json_text import canonical_json

NAMES = {"refcocoplus/unc": "refcoco+", "refcocog/umd": "refcocog_u", "refcocog/google": "refcocog_g"}
"""CRIS's dataset names, where they differ from the first part of the dataset id."""
_COLUMNS = (
    *("ref_id", "image_id", "file_name", "height", "width", "box_xywh", "no_target", "mask"),
    *(f"sentences.list.element.{name}" for name in ("sent_id", "sent", "exists")),
    "annotations.list.element.category_id",
    *IMAGE_COLUMNS,
)
_PROTOCOL = 4
_ROOM = 64 << 20
"""Additional bytes of the memory map for LMDB's own pages."""
_NUMBERS = {number: position for position, (number, _, _) in enumerate(COCO_CATEGORIES)}


def write(dataset: ExportedDataset, out: Path, _options: ExportOptions, progress: Progress) -> tuple[str, ...]:
    """Write an LMDB file and a JSON file per split, and all masks.

    Args:
        dataset: The dataset to export.
        out: Folder to write to.
        progress: Called after each shard.

    Returns:
        The differences to the dataset's sources, in sentences.

    Raises:
        UsageError: If `lmdb` is not installed.
        OSError: If a file cannot be written.
    """
    try:
        import lmdb
    except ImportError as error:
        raise UsageError("--to cris-lmdb: the package lmdb is not installed; pip install 'refseg[lmdb]'") from error
    name = NAMES.get(dataset.descriptor.dataset, dataset.spec.dataset)
    folders = {kind: out / kind / name for kind in ("lmdb", "masks", "anns")}
    for folder in folders.values():
        folder.mkdir(parents=True)
    num_absent = 0
    for split in dataset.splits:
        positions, map_bytes = _plan(dataset, split)
        anns: list[Any] = [None] * len(positions)
        path = folders["lmdb"] / f"{split}.lmdb"
        try:
            # Without a lock file, which would remain in the export.
            with lmdb.open(str(path), map_size=map_bytes, subdir=False, lock=False) as base:
                for entry in dataset.built.entries_of(split):
                    with base.begin(write=True) as transaction:
                        for row in dataset.rows(entry, _COLUMNS):
                            record = cris_record(row, dataset.image(row), draw_png(row["mask"]), dataset.spec)
                            num_absent += len(row["sentences"]) - record["num_sents"]
                            if not record["num_sents"]:
                                continue
                            position = positions[row["ref_id"]]
                            transaction.put(str(position).encode("ascii"), pickle.dumps(record, protocol=_PROTOCOL))
                            (folders["masks"] / f"{row['ref_id']}.png").write_bytes(record["mask"])
                            anns[position] = _ann(row, record)
                    progress()
                with base.begin(write=True) as transaction:
                    keys = [str(position).encode("ascii") for position in range(len(positions))]
                    transaction.put(b"__keys__", pickle.dumps(keys, protocol=_PROTOCOL))
                    transaction.put(b"__len__", pickle.dumps(len(keys), protocol=_PROTOCOL))
                base.sync(True)
        except lmdb.Error as error:  # not an OSError, and the same for a full disk as for other failures
            raise OSError(errno.EIO, f"cannot be written ({error}); the disk may be full", str(path)) from error
        (folders["anns"] / f"{split}.json").write_bytes(canonical_json(anns))
    return _differences(num_absent)


def cris_record(row: Mapping[str, Any], image: bytes, mask: bytes, spec: DatasetSpec) -> dict[str, Any]:
    """Return the LMDB record of a ref.

    Args:
        row: Row of the manifest.
        image: JPEG of the row's image.
        mask: PNG of the row's mask.
        spec: Specification of the dataset.
    """
    sents = [sentence["sent"].strip() for sentence in _kept(row)]
    return {
        "img": image,
        "mask": mask,
        "cat": _category(row, spec),
        "seg_id": row["ref_id"],
        "img_name": row["file_name"],
        "num_sents": len(sents),
        "sents": sents,
    }


def draw_png(mask: Mapping[str, Any]) -> bytes:
    """Encode a mask as a grey PNG of 0 and 255."""
    height, width = mask["size"]
    runs = np.repeat(np.arange(len(mask["counts"])) % 2 * 255, mask["counts"]).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(runs.reshape(width, height).T)).save(file, "png")
    return file.getvalue()


def _plan(dataset: ExportedDataset, split: str) -> tuple[dict[int, int], int]:
    """Return each ref's position within its split, in REFER's order, and a size in bytes that holds all records."""
    columns = ("ref_id", "image_id", "height", "width", "image_bytes", "no_target", "sentences.list.element.exists")
    rows = [row for entry in dataset.built.entries_of(split) for row in dataset.rows(entry, columns)]
    # A grey PNG of two values takes little more than an eighth of a byte per pixel; LMDB's pages have 4,096 bytes.
    num_bytes = sum(row["image_bytes"] + row["height"] * row["width"] // 4 + (16 << 10) for row in rows)
    kept = sorted((row for row in rows if _kept(row)), key=lambda row: refer_order(row["image_id"], row["ref_id"]))
    return {row["ref_id"]: position for position, row in enumerate(kept)}, num_bytes + _ROOM


def _kept(row: Mapping[str, Any]) -> list[Any]:
    """Return the sentences whose target is the ref's mask.

    In a ref with a target, these are the sentences that exist.
    """
    return [sentence for sentence in row["sentences"] if sentence["exists"] or row["no_target"]]


def _category(row: Mapping[str, Any], spec: DatasetSpec) -> int:
    """Return CRIS's number of a category; -1 if there is no target. CRIS numbers COCO's 80 categories from 0 to 79."""
    if not row["annotations"]:
        return -1
    number = int(row["annotations"][0]["category_id"])
    return _NUMBERS.get(number, number) if spec.is_coco else number


def _ann(row: Mapping[str, Any], record: Mapping[str, Any]) -> dict[str, Any]:
    """Return an entry of CRIS's `anns/<name>/<split>.json`. The box is left, top, right, bottom in whole pixels."""
    left, top, width, height = map(int, row["box_xywh"])
    return {
        "bbox": [left, top, left + width, top + height],
        "cat": record["cat"],
        "segment_id": row["ref_id"],
        "img_name": row["file_name"],
        "sentences": [
            {"idx": number, "sent_id": sentence["sent_id"], "sent": sentence["sent"].strip()}
            for number, sentence in enumerate(_kept(row))
        ],
        "sentences_num": record["num_sents"],
    }


def _differences(num_absent: int) -> tuple[str, ...]:
    found = (
        "values are pickles; CRIS's loads_pyarrow must return pickle.loads(buf), because pyarrow removed the function "
        "that it calls",
        "masks have the values 0 and 255; CRIS's own writer gives pixels of two overlapping parts the value 254",
        "boxes are only in anns/, in whole pixels; raw sentences, words, polygons and annotation ids are left out",
        "a ref of several annotations has the category of the first; no target is -1, which CRIS does not use",
    )
    absent = (
        f"{num_absent} sentences that name nothing, but belong to refs with a target, are left out, because a record "
        "has one mask"
    )
    return (*found, absent) if num_absent else found
