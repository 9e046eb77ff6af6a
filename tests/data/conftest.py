"""A second writer of the folder format, independent of `pipelines`; it writes small datasets for tests of reading."""

import hashlib
import io
import json
import tarfile
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xxhash
from PIL import Image

from refseg import tokenizer
from refseg.data.index import ManifestIndex
from refseg.dataset.descriptor import (
    DESCRIPTOR_NAME,
    Descriptor,
    ImagePool,
    MixMember,
    PoolTar,
    ShardEntry,
    load_descriptor,
)
from refseg.dataset.index_file import IndexWriter
from refseg.dataset.index_rows import flatten
from refseg.dataset.manifest_reader import dataset_ids
from refseg.dataset.schema import MANIFEST_SCHEMA


@dataclass(frozen=True)
class Ref:
    """A ref to write. Its mask is the rectangle `(top, left, bottom, right)`; some sentences may name nothing."""

    ref_id: int
    rectangle: tuple[int, int, int, int]
    sentences: tuple[str, ...]
    names_nothing: tuple[int, ...] = ()


@dataclass(frozen=True)
class Picture:
    """An image to write. Its JPEG is drawn from its id unless it is given."""

    image_id: int
    size: tuple[int, int]
    refs: tuple[Ref, ...]
    jpeg: bytes | None = None


def draw_jpeg(image_id: int, size: tuple[int, int], mode: str = "RGB") -> bytes:
    """Draw a smooth picture, which is another one for each id."""
    rng = np.random.default_rng(image_id)
    picture = Image.fromarray(rng.integers(0, 256, (4, 4, 3), np.uint8)).resize(size[::-1], Image.Resampling.BICUBIC)
    data = io.BytesIO()
    picture.convert(mode).save(data, "JPEG", quality=95)
    return data.getvalue()


def draw_mask(picture: Picture, ref: Ref) -> np.ndarray:
    mask = np.zeros(picture.size, np.uint8)
    top, left, bottom, right = ref.rectangle
    mask[top:bottom, left:right] = 1
    return mask


def run_lengths(mask: np.ndarray) -> list[int]:
    flat = mask.flatten(order="F")
    ends = [*(np.flatnonzero(np.diff(flat)) + 1).tolist(), flat.size]
    counts = np.diff([0, *ends]).tolist()
    return [0, *counts] if flat[0] else counts


def write_dataset(folder: Path, shards: dict[str, list[Picture]], *, vocab_sha256: str | None = None) -> Path:
    """Write a dataset; `shards` maps names such as `train-00000` to the images of each shard."""
    folder.mkdir(parents=True)
    entries = []
    for name, pictures in shards.items():
        split = name.split("-")[0]
        rows: list[dict[str, Any]] = []
        tar_bytes = io.BytesIO()
        with tarfile.open(fileobj=tar_bytes, mode="w", format=tarfile.USTAR_FORMAT) as tar:
            for picture in pictures:
                jpeg = picture.jpeg or draw_jpeg(picture.image_id, picture.size)
                header = tarfile.TarInfo(f"{picture.image_id:012d}.jpg")
                header.size = len(jpeg)
                offset = tar.offset + 512
                tar.addfile(header, io.BytesIO(jpeg))
                refs = [_ref_fields(picture, ref) for ref in picture.refs]
                facts = {
                    "image_id": picture.image_id,
                    "file_name": f"COCO_train2014_{picture.image_id:012d}.jpg",
                    "height": picture.size[0],
                    "width": picture.size[1],
                }
                sample = json.dumps({**facts, "refs": refs}).encode()
                header = tarfile.TarInfo(f"{picture.image_id:012d}.json")
                header.size = len(sample)
                tar.addfile(header, io.BytesIO(sample))
                whole = tar_bytes.getvalue()[offset - 512 : tar.offset]
                for ref in refs:
                    rows.append(
                        {
                            "dataset": "toy",
                            "split_by": "refseg",
                            "split": split,
                            **facts,
                            **{key: value for key, value in ref.items() if key != "ann_ids"},
                            "area": 0,
                            "annotations": [],
                            "shard": f"{name}.tar",
                            "image_offset": offset,
                            "image_bytes": len(jpeg),
                            "image_xxh3": xxhash.xxh3_64_hexdigest(jpeg),
                            "sample_bytes": len(whole),
                            "sample_xxh3": xxhash.xxh3_64_hexdigest(whole),
                            "source_rank": len(rows),
                            "image_kind": "jpg",
                        }
                    )
        (folder / f"{name}.tar").write_bytes(tar_bytes.getvalue())
        parquet = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(rows, schema=MANIFEST_SCHEMA), parquet)
        (folder / f"{name}.parquet").write_bytes(parquet.getvalue())
        entries.append(
            ShardEntry(
                name=name,
                split=split,
                num_images=len(pictures),
                num_samples=len(pictures),
                num_refs=len(rows),
                num_sentences=sum(len(row["sentences"]) for row in rows),
                tar_bytes=len(tar_bytes.getvalue()),
                tar_sha256=hashlib.sha256(tar_bytes.getvalue()).hexdigest(),
                parquet_bytes=len(parquet.getvalue()),
                parquet_sha256=hashlib.sha256(parquet.getvalue()).hexdigest(),
                rows_sha256=hashlib.sha256(json.dumps(rows).encode()).hexdigest(),
            )
        )
    descriptor = Descriptor(
        dataset="toy/refseg",
        refseg_version="0",
        plan_fingerprint="0" * 64,
        mask_rule="union",
        tokenizer={**tokenizer.IDENTITY, **({"vocab_sha256": vocab_sha256} if vocab_sha256 else {})},
        num_rejects=0,
        shards=tuple(entries),
        sources=(),
        licences=(),
    )
    write_descriptor(folder, descriptor)
    return folder


def write_descriptor(folder: Path, descriptor: Descriptor) -> None:
    """Write the indexes and `refseg.json` for the manifests in a folder, without a check of their rows."""
    indexes = []
    for split in descriptor.splits:
        with tempfile.TemporaryDirectory() as scratch, IndexWriter(Path(scratch)) as writer:
            for entry in descriptor.shards:
                if entry.split == split:
                    data = (folder / f"{entry.name}.parquet").read_bytes()
                    table = pq.read_table(io.BytesIO(data))
                    writer.add(flatten(table, dataset_ids(descriptor), xxhash.xxh3_64_intdigest(data)))
            indexes.append(writer.finish(folder / f"{split}.index.safetensors", split))
    changed = replace(descriptor, indexes=tuple(indexes))
    (folder / DESCRIPTOR_NAME).write_text(changed.to_json(), encoding="utf-8")


def write_overlay(folder: Path, built: Path, *, pool_path: str = "../built", mix: tuple[str, ...] = ()) -> Path:
    """Write the rows of a built dataset again, with its tars as an image pool.

    In a mix, the rows of each shard belong to another member.
    """
    folder.mkdir(parents=True)
    descriptor = load_descriptor(built)
    entries = []
    for number, entry in enumerate(descriptor.shards):
        table = pq.read_table(built / f"{entry.name}.parquet")
        columns = {name: table.column(name) for name in table.column_names}
        columns["shard"] = pa.array([f"toy/{name}" for name in table.column("shard").to_pylist()])
        if mix:
            dataset, split_by = mix[number % len(mix)].split("/")
            columns["dataset"] = pa.array([dataset] * table.num_rows)
            columns["split_by"] = pa.array([split_by] * table.num_rows)
        pq.write_table(pa.table(columns, schema=MANIFEST_SCHEMA), folder / f"{entry.name}.parquet")
        data = (folder / f"{entry.name}.parquet").read_bytes()
        sha256 = hashlib.sha256(data).hexdigest()
        none = {"num_samples": 0, "tar_bytes": 0, "tar_sha256": ""}
        entries.append(replace(entry, parquet_bytes=len(data), parquet_sha256=sha256, rows_sha256=sha256, **none))
    tars = tuple(
        PoolTar(name=f"{entry.name}.tar", num_bytes=entry.tar_bytes, sha256=entry.tar_sha256)
        for entry in descriptor.shards
    )
    pool = ImagePool(name="toy", path=pool_path, dataset=descriptor.dataset, digest=descriptor.digest, tars=tars)
    counts = {"num_refs": 1, "dropped_refs": 0, "dropped_images": 0, "leaked_images": 0}
    members = tuple(MixMember(dataset=dataset, digest="0" * 64, weight=1.0, **counts) for dataset in mix)
    changed = replace(descriptor, shards=tuple(entries), image_pools=(pool,), mix=members)
    write_descriptor(folder, changed)
    return folder


def _ref_fields(picture: Picture, ref: Ref) -> dict[str, Any]:
    mask = draw_mask(picture, ref)
    return {
        "ref_id": ref.ref_id,
        "ann_ids": [ref.ref_id],
        "category": "thing",
        "box_xywh": [0.0, 0.0, 1.0, 1.0],
        "no_target": not mask.any(),
        "box_only": False,
        "mask": {"size": list(picture.size), "counts": run_lengths(mask)},
        "sentences": [
            {
                "sent_id": 10 * ref.ref_id + i,
                "raw": sentence.upper(),
                "sent": sentence,
                "words": sentence.split(),
                "token_ids": list(tokenizer.encode(sentence)),
                "exists": bool(mask.any()) and i not in ref.names_nothing,
            }
            for i, sentence in enumerate(ref.sentences)
        ],
    }


def grid_pictures(first: int, number: int) -> list[Picture]:
    """Images of different shapes with 1, 2, 3, 1, ... refs, which have 1, 2, 3, 1, ... sentences."""
    pictures = []
    for image_id in range(first, first + number):
        size = ((24, 32), (40, 30), (32, 32))[image_id % 3]
        refs = tuple(
            Ref(
                ref_id=100 * image_id + r,
                rectangle=(r, 2 * r, 10 + image_id % 7, 20),
                sentences=tuple(f"thing {r} of {image_id} said {s}" for s in range(1 + (image_id + r) % 3)),
            )
            for r in range(1 + image_id % 3)
        )
        pictures.append(Picture(image_id, size, refs))
    return pictures


@pytest.fixture(scope="session")
def write() -> Callable[..., Path]:
    """The writer, for tests that make their own datasets."""
    return write_dataset


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset with two splits: `train` has 11 images in two shards, 22 refs and 43 sentences; `val` has 4 images."""
    return write_dataset(
        tmp_path_factory.mktemp("data") / "toy",
        {
            "train-00000": grid_pictures(0, 6),
            "train-00001": grid_pictures(6, 5),
            "val-00000": grid_pictures(50, 4),
        },
    )


@pytest.fixture(scope="session")
def train_index(dataset: Path) -> ManifestIndex:
    return ManifestIndex.open(dataset, ["train"])
