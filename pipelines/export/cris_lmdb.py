"""CRIS's LMDB: a record per ref with its JPEG and mask, and loose masks, as CRIS, ETRIS and DETRIS read them.

    lmdb/<name>/<split>.lmdb    records `0`, `1`, ..., and `__len__`, `__keys__`
    masks/<name>/<ref id>.png   masks of 0 and 255
    anns/<name>/<split>.json    what CRIS's `folder2lmdb.py` takes

Values are pickles of plain values, protocol 4. CRIS's own writer used `pyarrow.serialize`, which pyarrow has dropped,
so its reader needs one line: in `loads_pyarrow`, `return pickle.loads(buf)`.
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
"""CRIS's names of datasets, where they are not the first half of ours."""
_COLUMNS = (
    *("ref_id", "image_id", "file_name", "height", "width", "box_xywh", "no_target", "mask"),
    *(f"sentences.list.element.{name}" for name in ("sent_id", "sent", "exists")),
    "annotations.list.element.category_id",
    *IMAGE_COLUMNS,
)
_PROTOCOL = 4
_ROOM = 64 << 20
"""Of the map, for LMDB's own pages."""
_NUMBERS = {number: place for place, (number, _, _) in enumerate(COCO_CATEGORIES)}


def write(dataset: ExportedDataset, out: Path, _options: ExportOptions, progress: Progress) -> tuple[str, ...]:
    """Write an LMDB and a JSON per split, and all masks; see `pipelines.export.run`.

    Raises:
        UsageError: If `lmdb` is not installed.
        OSError: If a file cannot be written.
    """
    try:
        import lmdb
    except ImportError as error:
        raise UsageError("--to cris-lmdb needs the package lmdb: install refseg[lmdb]") from error
    name = NAMES.get(dataset.descriptor.dataset, dataset.spec.dataset)
    folders = {kind: out / kind / name for kind in ("lmdb", "masks", "anns")}
    for folder in folders.values():
        folder.mkdir(parents=True)
    num_absent = 0
    for split in dataset.splits:
        places, map_bytes = _plan(dataset, split)
        anns: list[Any] = [None] * len(places)
        path = folders["lmdb"] / f"{split}.lmdb"
        try:
            # No lock file: it would lie beside the records in the export.
            with lmdb.open(str(path), map_size=map_bytes, subdir=False, lock=False) as base:
                for entry in dataset.built.entries_of(split):
                    with base.begin(write=True) as transaction:
                        for row in dataset.rows(entry, _COLUMNS):
                            record = cris_record(row, dataset.image(row), draw_png(row["mask"]), dataset.spec)
                            num_absent += len(row["sentences"]) - record["num_sents"]
                            if not record["num_sents"]:
                                continue
                            place = places[row["ref_id"]]
                            transaction.put(str(place).encode("ascii"), pickle.dumps(record, protocol=_PROTOCOL))
                            (folders["masks"] / f"{row['ref_id']}.png").write_bytes(record["mask"])
                            anns[place] = _ann(row, record)
                    progress()
                with base.begin(write=True) as transaction:
                    keys = [str(place).encode("ascii") for place in range(len(places))]
                    transaction.put(b"__keys__", pickle.dumps(keys, protocol=_PROTOCOL))
                    transaction.put(b"__len__", pickle.dumps(len(keys), protocol=_PROTOCOL))
                base.sync(True)
        except lmdb.Error as error:  # no OSError, and of a full disk it tells no more than of a broken one
            raise OSError(errno.EIO, f"cannot be written ({error}), as where the disk is full", str(path)) from error
        (folders["anns"] / f"{split}.json").write_bytes(canonical_json(anns))
    return _differences(num_absent)


def cris_record(row: Mapping[str, Any], image: bytes, mask: bytes, spec: DatasetSpec) -> dict[str, Any]:
    """A value of the LMDB.

    Args:
        row: Of the manifest.
        image: Its JPEG.
        mask: PNG of its mask.
        spec: Of the dataset.
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
    """A mask as a grey PNG of 0 and 255."""
    height, width = mask["size"]
    runs = np.repeat(np.arange(len(mask["counts"])) % 2 * 255, mask["counts"]).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(runs.reshape(width, height).T)).save(file, "png")
    return file.getvalue()


def _plan(dataset: ExportedDataset, split: str) -> tuple[dict[int, int], int]:
    """The place of each ref in its split, in REFER's order, and bytes that hold all records."""
    columns = ("ref_id", "image_id", "height", "width", "image_bytes", "no_target", "sentences.list.element.exists")
    rows = [row for entry in dataset.built.entries_of(split) for row in dataset.rows(entry, columns)]
    # A grey PNG of two values takes at most an eighth of its pixels and some more; pages are of 4,096 bytes.
    num_bytes = sum(row["image_bytes"] + row["height"] * row["width"] // 4 + (16 << 10) for row in rows)
    kept = sorted((row for row in rows if _kept(row)), key=lambda row: refer_order(row["image_id"], row["ref_id"]))
    return {row["ref_id"]: place for place, row in enumerate(kept)}, num_bytes + _ROOM


def _kept(row: Mapping[str, Any]) -> list[Any]:
    """Sentences of the ref's one mask: of a ref that has a target those that name it."""
    return [sentence for sentence in row["sentences"] if sentence["exists"] or row["no_target"]]


def _category(row: Mapping[str, Any], spec: DatasetSpec) -> int:
    """CRIS's number of a category: COCO's 80 without gaps, from 0; -1 for no target."""
    if not row["annotations"]:
        return -1
    number = int(row["annotations"][0]["category_id"])
    return _NUMBERS.get(number, number) if spec.is_coco else number


def _ann(row: Mapping[str, Any], record: Mapping[str, Any]) -> dict[str, Any]:
    """An entry of CRIS's `anns/<name>/<split>.json`: the box is left, top, right, bottom, cut to whole pixels."""
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
        "values are pickles; CRIS's loads_pyarrow has to return pickle.loads(buf), since pyarrow dropped what it calls",
        "masks are the dataset's, of 0 and 255, where CRIS's own writer gives pixels of two overlapping parts 254",
        "boxes are only in anns/, cut to whole pixels; raw sentences, words, polygons and annotation ids are left out",
        "of several annotations the first one's category is told, and -1 for no target, which CRIS does not know",
    )
    absent = (
        f"{num_absent} sentences that name nothing, of refs that have a target, are left out: a record has one mask"
    )
    return (*found, absent) if num_absent else found
