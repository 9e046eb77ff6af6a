"""Writes the corpus of `loader.py` in each peer's format: files, LMDB, tars, LitData's chunks, MosaicML's shards.

A peer's sample is a ref with its picture, its mask and its sentences, one of which is chosen at random when it is read.
"""

import contextlib
import io
import json
import os
import pickle
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from pycocotools import mask as coco_mask

from refseg import tokenizer

TOKENS = 17
_IMAGES_IN_A_TAR = 128


@dataclass(frozen=True, slots=True)
class Ref:
    """A ref of the training split.

    Attributes:
        path: Path of the JPEG.
        size: `(height, width)` of the picture in pixels.
        polygons: Polygons of the target.
        counts: Run lengths of the target, by columns, beginning with zeros.
        sentences: Sentences of the ref.
        token_ids: `(sentences, TOKENS)` int64, truncated or padded with zeros.
    """

    path: str
    size: tuple[int, int]
    polygons: list[list[float]]
    counts: np.ndarray
    sentences: list[str]
    token_ids: np.ndarray

    def mask(self) -> np.ndarray:
        """Draw the target, shape `(height, width)`, 1 on the object."""
        return coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(self.polygons, *self.size)))

    def mask_png(self) -> bytes:
        """Encode the target as a PNG with the grey values 0 and 1."""
        file = io.BytesIO()
        Image.fromarray(self.mask()).save(file, "png")
        return file.getvalue()


def read_refs(root: Path, images: Path) -> list[Ref]:
    """Read the refs of the training split and shuffle them."""
    instances = json.loads((root / "toy" / "instances.json").read_text(encoding="utf-8"))
    annotations = {record["id"]: record for record in instances["annotations"]}
    sizes = {record["id"]: (record["height"], record["width"]) for record in instances["images"]}
    refs = []
    for record in json.loads((root / "toy" / "refs(refseg).json").read_text(encoding="utf-8")):
        if record["split"] != "train":
            continue
        size, polygons = sizes[record["image_id"]], annotations[record["ann_id"]]["segmentation"]
        pixels = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(polygons, *size))).reshape(-1, order="F")
        edges = np.flatnonzero(np.diff(pixels, prepend=0, append=1 - pixels[-1]))
        token_ids = np.zeros((len(record["sentences"]), TOKENS), np.int64)
        for row, sentence in zip(token_ids, record["sentences"], strict=True):
            ids = tokenizer.truncate(tokenizer.encode(sentence["sent"]), TOKENS)
            row[: len(ids)] = ids
        refs.append(
            Ref(
                path=str(images / record["file_name"]),
                size=size,
                polygons=polygons,
                counts=np.diff(edges, prepend=0).astype(np.uint32),
                sentences=[sentence["sent"] for sentence in record["sentences"]],
                token_ids=token_ids,
            )
        )
    random.Random(0).shuffle(refs)
    return refs


def save_refs(refs: Sequence[Ref], out: Path) -> None:
    (out / "refs.pickle").write_bytes(pickle.dumps(refs))


def load_refs(out: Path) -> list[Ref]:
    return pickle.loads((out / "refs.pickle").read_bytes())


def write_lmdb(refs: Sequence[Ref], out: Path) -> None:
    """Write an LMDB as CRIS's repository does: an entry for each ref, with JPEG, PNG mask and sentences."""
    import lmdb

    store = lmdb.open(str(out / "train.lmdb"), map_size=1 << 40, subdir=False, meminit=False, map_async=True)
    with store.begin(write=True) as transaction:
        for number, ref in enumerate(refs):
            entry = {
                "img": Path(ref.path).read_bytes(),
                "mask": ref.mask_png(),
                "num_sents": len(ref.sentences),
                "sents": ref.sentences,
            }
            transaction.put(str(number).encode(), pickle.dumps(entry))
    store.close()


def write_webdataset(refs: Sequence[Ref], out: Path) -> None:
    """Write two sets of tars: `plain` in the usual form, and `best`, whose members need the least work to read."""
    import webdataset

    for kind in ("plain", "best"):
        (out / kind).mkdir()
        with webdataset.ShardWriter(str(out / kind / "%05d.tar"), maxcount=_IMAGES_IN_A_TAR, verbose=0) as writer:
            for number, ref in enumerate(refs):
                sample: dict[str, Any] = {"__key__": f"{number:09d}", "jpg": Path(ref.path).read_bytes()}
                if kind == "plain":
                    sample["png"] = ref.mask_png()
                    sample["json"] = {"sentences": ref.sentences, "token_ids": ref.token_ids.tolist()}
                else:
                    sample["runs"] = np.array([*ref.size, *ref.counts], np.uint32).tobytes()
                    sample["tokens"] = ref.token_ids.tobytes()
                writer.write(sample)


def litdata_sample(ref: Ref) -> dict[str, Any]:
    """Return the sample that LitData stores for a ref; LitData keeps a JPEG that is opened from a file unchanged."""
    return {
        "image": Image.open(ref.path),
        "mask": ref.mask_png(),
        "token_ids": torch.from_numpy(ref.token_ids),
    }


def write_litdata(refs: Sequence[Ref], out: Path) -> None:
    import litdata

    os.environ["DATA_OPTIMIZER_CACHE_FOLDER"] = str(out / "litdata-chunks")  # temporary files, by default in /tmp
    os.environ["DATA_OPTIMIZER_DATA_CACHE_FOLDER"] = str(out / "litdata-data")
    with contextlib.redirect_stdout(io.StringIO()):
        litdata.optimize(
            litdata_sample,
            list(refs),
            output_dir=str(out / "litdata"),
            num_workers=1,
            chunk_bytes="64MB",
            start_method="fork",
            verbose=False,
        )


def write_mosaicml(refs: Sequence[Ref], out: Path) -> None:
    import streaming

    columns = {"image": "bytes", "mask": "bytes", "token_ids": "ndarray:int64"}
    with streaming.MDSWriter(out=str(out / "mds"), columns=columns) as writer:
        for ref in refs:
            writer.write({"image": Path(ref.path).read_bytes(), "mask": ref.mask_png(), "token_ids": ref.token_ids})
