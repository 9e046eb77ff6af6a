"""The corpus of `loader.py` in the form each peer reads: files, LMDB, tars, LitData's chunks, MosaicML's shards.

A sample of a peer is a ref: its picture, its mask, its sentences, of which one is taken at random when it is read.
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
    """A ref of the training split, as its annotations say it.

    Attributes:
        path: Of the JPEG.
        size: `(height, width)`, pixels.
        polygons: Of its target.
        counts: Run lengths of its target, column-major, zeros first.
        sentences: Of any number.
        token_ids: `(sentences, TOKENS)` int64, cut and filled with zeros.
    """

    path: str
    size: tuple[int, int]
    polygons: list[list[float]]
    counts: np.ndarray
    sentences: list[str]
    token_ids: np.ndarray

    def mask(self) -> np.ndarray:
        """`(height, width)`, 1 is object."""
        return coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(self.polygons, *self.size)))

    def mask_png(self) -> bytes:
        """The same, 0 and 1 as grey values."""
        file = io.BytesIO()
        Image.fromarray(self.mask()).save(file, "png")
        return file.getvalue()


def read_refs(root: Path, images: Path) -> list[Ref]:
    """The refs of the training split, shuffled."""
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
    """As CRIS's repository: an entry for each ref, with JPEG, PNG mask and sentences."""
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
    """Two sets of tars: `plain`, as anyone would write them, and `best`, whose members need the least work."""
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
    """What LitData stores of a ref; a JPEG opened from its file stays as it is."""
    return {
        "image": Image.open(ref.path),
        "mask": ref.mask_png(),
        "token_ids": torch.from_numpy(ref.token_ids),
    }


def write_litdata(refs: Sequence[Ref], out: Path) -> None:
    import litdata

    os.environ["DATA_OPTIMIZER_CACHE_FOLDER"] = str(out / "litdata-chunks")  # its scratch, else in the machine's /tmp
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
