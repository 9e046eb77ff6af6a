"""A dataset of coloured stripes and a model that segments them, so that every count can be computed by hand."""

import hashlib
import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xxhash
from PIL import Image
from pycocotools import mask as coco

from refseg import tokenizer
from refseg.dataset.descriptor import DESCRIPTOR_NAME, Descriptor, ShardEntry
from refseg.dataset.index_file import write_indexes
from refseg.dataset.schema import MANIFEST_SCHEMA
from refseg.evaluation.protocols import ORIGINAL, Protocol
from refseg.evaluation.rows import COUNTED, SENTENCE_FIELDS, RowFacts, column_name
from refseg.run_lengths import encode_runs
from refseg.storage import open_folder
from tests.colour_model import COLOURS, ColourModel


def make_rows(*sentences: dict[str, Any], protocol: Protocol = ORIGINAL, **facts: Any) -> pa.Table:
    """Make evaluation rows of one protocol; each sentence gives the fields of `SENTENCE_FIELDS` and `COUNTED` it needs.

    Areas that are not given are completed: the target fills the union, and the union follows from the areas.
    """
    schema = pa.schema([*SENTENCE_FIELDS, *((column_name(protocol, name), pa.int64()) for name in COUNTED)])
    records = []
    for number, given in enumerate(sentences):
        filled: dict[str, Any] = {
            "dataset": "toy/refseg", "split": "val", "ref_id": number, "sent_id": number, "image_id": 1,
            "sentence": "it", "height": 10, "width": 10, "num_tokens": 3, "category": "c", "num_distractors": 0,
            "no_target": False, "intersection": 0, **given,
        }  # fmt: skip
        filled.setdefault("target_ref_id", filled["ref_id"])
        filled.setdefault("target_area", filled.get("union", 0))
        filled.setdefault("predicted_area", filled.get("union", 0) + filled["intersection"] - filled["target_area"])
        filled.setdefault("union", filled["predicted_area"] + filled["target_area"] - filled["intersection"])
        records.append({**filled, **{column_name(protocol, name): filled[name] for name in COUNTED}})
    known = {"protocols": (protocol,), "mask_rule": "union", "sentence_order": "own", "num_left_out": 0, **facts}
    return RowFacts(**known).attach(pa.Table.from_pylist(records, schema=schema))


@pytest.fixture
def colour_model() -> ColourModel:
    return ColourModel().train()


@pytest.fixture(scope="session")
def write_stripes(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Writes pictures as a dataset with the split `val`; image ids are 1, 2, ..., ref ids 10, 11, 20, ...

    A picture is grey with stripes of full height. `size` is `(height, width)` in pixels; `stripes` maps a colour to the
    columns `(first, end)` that it fills. `refs` is a list of (columns of the target, sentences), where the columns
    `(0, 0)` are an empty target, and a sentence that begins with "no " refers to nothing. A third entry of a ref gives
    the target's annotations instead of one polygon around the columns. The mask is then their union, or with another
    `mask_rule` the pixels of exactly one part.
    """

    def write(*pictures: dict[str, Any], mask_rule: str = "union", dataset: str = "toy/refseg") -> Path:
        folder = tmp_path_factory.mktemp("stripes")
        tar, rows = b"", []
        for image_id, picture in enumerate(pictures, 1):
            jpeg = _jpeg(picture)
            for r, ref in enumerate(picture["refs"]):
                row = _row(image_id, picture, jpeg, len(tar) + 512, 10 * image_id + r, mask_rule, *ref)
                facts = {"dataset": dataset.split("/")[0], "source_rank": len(rows), "image_kind": "jpg"}
                rows.append({**row, **facts})
            tar += _sample(jpeg)
        parquet = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(rows, schema=MANIFEST_SCHEMA), parquet)
        (folder / "val-00000.tar").write_bytes(tar)
        (folder / "val-00000.parquet").write_bytes(parquet.getvalue())
        entry = ShardEntry(
            name="val-00000",
            split="val",
            num_images=len(pictures),
            num_samples=len(pictures),
            num_refs=len(rows),
            num_sentences=sum(len(row["sentences"]) for row in rows),
            tar_bytes=len(tar),
            tar_sha256=hashlib.sha256(tar).hexdigest(),
            parquet_bytes=len(parquet.getvalue()),
            parquet_sha256=hashlib.sha256(parquet.getvalue()).hexdigest(),
            rows_sha256=hashlib.sha256(repr(rows).encode()).hexdigest(),
        )
        descriptor = Descriptor(
            dataset=dataset,
            refseg_version="0",
            plan_fingerprint="0" * 64,
            mask_rule=mask_rule,
            tokenizer=tokenizer.IDENTITY,
            num_rejects=0,
            shards=(entry,),
            sources=(),
            licences=("drawn",),
        )
        indexes = write_indexes(open_folder(folder), descriptor, folder)
        (folder / DESCRIPTOR_NAME).write_text(replace(descriptor, indexes=indexes).to_json(), encoding="utf-8")
        return folder

    return write


def annotation(**fields: Any) -> dict[str, Any]:
    """Return a COCO annotation as stored in the manifest: `polygons`, `rles`, `iscrowd`, `box_xywh`."""
    return {
        "ann_id": 1,
        "category_id": 1,
        "iscrowd": fields.get("iscrowd", False),
        "area": 1.0,
        "box_xywh": fields.get("box_xywh", [0.0, 0.0, 1.0, 1.0]),
        "segmentation": {"polygons": fields.get("polygons", []), "rles": fields.get("rles", [])},
    }


def _jpeg(picture: dict[str, Any]) -> bytes:
    pixels = np.full((*picture["size"], 3), 128, np.uint8)
    for colour, (first, end) in picture["stripes"].items():
        pixels[:, first:end] = COLOURS[colour]
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, "JPEG", quality=100, subsampling=0)
    return data.getvalue()


def _sample(jpeg: bytes) -> bytes:
    """Return a sample's blocks in a tar, of which readers use the picture and the hash of all blocks."""
    return bytes(512) + jpeg + bytes(-len(jpeg) % 512) + bytes(1024)


def _row(
    image_id: int,
    picture: dict[str, Any],
    jpeg: bytes,
    offset: int,
    ref_id: int,
    mask_rule: str,
    columns: tuple[int, int],
    sentences: list[str],
    annotations: list[dict[str, Any]] | None = None,
) -> dict[str, Any]:
    height, width = picture["size"]
    first, end = columns
    area = height * (end - first)
    after = [height * (width - end)] if end < width else []  # only the first run may be empty
    counts = [height * first, area, *after] if area else [height * width]
    if annotations is None:
        polygon = [float(value) for value in (first, 0, end, 0, end, height, first, height)]
        annotations = [annotation(polygons=[polygon])] if area else []
    else:
        covered = np.zeros((height, width), int)
        for found in annotations:
            shape, (x, y, w, h) = found["segmentation"], found["box_xywh"]
            for part in [*([polygon] for polygon in shape["polygons"]), *shape["rles"]]:
                covered += coco.decode(coco.frPyObjects(part, height, width)).reshape(height, width)
            if not (shape["polygons"] or shape["rles"]):
                covered[int(y) : int(y + h), int(x) : int(x + w)] += 1
        counts = encode_runs(covered == 1 if mask_rule == "legacy" else covered > 0).tolist()
        area = sum(counts[1::2])
    return {
        "dataset": "toy",
        "split_by": "refseg",
        "split": "val",
        "ref_id": ref_id,
        "image_id": image_id,
        "file_name": f"{image_id}.jpg",
        "height": height,
        "width": width,
        "category": "stripe" if area else "",
        "box_xywh": [float(first), 0.0, float(end - first), float(height)],
        "area": area,
        "no_target": not area,
        "box_only": False,
        "mask": {"size": [height, width], "counts": counts},
        "sentences": [
            {
                "sent_id": 100 * ref_id + s,
                "raw": sentence,
                "sent": sentence,
                "words": sentence.split(),
                "token_ids": list(tokenizer.encode(sentence)),
                "exists": area > 0 and not sentence.startswith("no "),
            }
            for s, sentence in enumerate(sentences)
        ],
        "annotations": annotations,
        "shard": "val-00000.tar",
        "image_offset": offset,
        "image_bytes": len(jpeg),
        "image_xxh3": xxhash.xxh3_64_hexdigest(jpeg),
        "sample_bytes": len(_sample(jpeg)),
        "sample_xxh3": xxhash.xxh3_64_hexdigest(_sample(jpeg)),
    }
