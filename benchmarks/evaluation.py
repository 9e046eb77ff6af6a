"""Scoring: one image for all its sentences beside one for each, and masks that another project predicted.

    python benchmarks/evaluation.py [--images 8] [--masks 21586] [--shared FOLDER]

The first part runs FCNet-R50 with random weights at 480 x 480 on the CPU over pictures with RefCOCO's 7.1 sentences
each (see `corpus.py`), once as `refseg evaluate` does and once with the image encoded anew for each sentence. Random
weights leave every probability near one half, where the last bit of a sum decides on a pixel: the counts of both may
differ by a few. The second part writes a predicted mask for each of as many sentences as RefCOCO's val and test splits
have, the target moved by some pixels, and times `refseg score` over them.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from accelerate import Accelerator
from corpus import DATASET, IMAGES, SENTENCES, copy_images, find_material, write_annotations
from pycocotools import mask as coco
from torch import Tensor, nn

from pipelines.build import build_dataset
from pipelines.options import BuildOptions
from refseg.data.index import ManifestIndex
from refseg.data.transforms import Geometry
from refseg.evaluation.evaluate import evaluate_model
from refseg.evaluation.protocols import ORIGINAL, PROTOCOLS
from refseg.evaluation.rows import counts
from refseg.model_config import FCNetConfig
from refseg.models import build_model
from refseg.run_lengths import draw_runs

SIZE = (480, 480)
TRAIN_SHARE = 17 / 20


class OneByOne(nn.Module):
    """A model that begins anew with each sentence."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self.image_mean, self.image_std = model.image_mean, model.image_std

    def encode_image(self, images: Tensor) -> Tensor:
        """Put it off."""
        return images

    def encode_text(self, token_ids: Tensor, token_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Put it off."""
        return token_ids, token_mask

    def decode(self, images: Tensor, text: tuple[Tensor, Tensor], image_index: Tensor) -> Tensor:
        """Do all of it for each sentence."""
        first = torch.zeros(1, dtype=torch.int64)
        found = []
        for image, token_ids, token_mask in zip(image_index.tolist(), *text, strict=True):
            image_state = self.model.encode_image(images[image : image + 1])
            text_state = self.model.encode_text(token_ids[None], token_mask[None])
            found.append(self.model.decode(image_state, text_state, first))
        return torch.cat(found)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=8, help="pictures of the first part; 0: leave it out")
    parser.add_argument("--masks", type=int, default=21_586, help="masks of the second part; 0: leave it out")
    parser.add_argument("--shared", type=Path, help="folder of real data")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        if args.images:
            compare_encoding(build(Path(temporary) / "few", args.images, args.shared))
        if args.masks:
            time_scoring(build(Path(temporary) / "many", round(args.masks * IMAGES / SENTENCES), args.shared))
    return 0


def build(root: Path, num_train_images: int, shared: Path | None) -> Path:
    """A dataset whose train split has about that many images."""
    material = find_material(shared)
    num_images = round(num_train_images / TRAIN_SHARE)
    write_annotations(material, root, num_images)
    images = copy_images(material, root, num_images)
    build_dataset(BuildOptions(dataset=DATASET, annotations=root, images=images, out=root / "shards", workers=2))
    print(f"{material.name}, repeated")
    return root / "shards"


def compare_encoding(shards: Path) -> None:
    index = ManifestIndex.open(shards, ["train"])
    torch.manual_seed(0)
    model = build_model(FCNetConfig(image_encoder="clip_resnet50"), input_size=SIZE)
    seconds, rows = {}, {}
    for name, evaluated in (("shared", model), ("one by one", OneByOne(model))):
        started = time.perf_counter()
        rows[name] = evaluate_model(
            evaluated,
            index,
            accelerator=Accelerator(cpu=True),
            geometry=Geometry(kind="letterbox", size=SIZE),
            num_tokens=17,
            images_per_batch=1,
        )
        seconds[name] = time.perf_counter() - started
    print(
        f"{index.num_images} images, {index.num_sentences} sentences, FCNet-R50 at 480 x 480, "
        f"{torch.get_num_threads()} threads"
    )
    for name, taken in seconds.items():
        print(f"  {name:12} {taken:7.1f} s  {index.num_sentences / taken:6.2f} sentences/s")
    print(f"  ratio        {seconds['one by one'] / seconds['shared']:7.2f}    (aim: 2.5)")
    found = [counts(table, ORIGINAL, "predicted_area") for table in rows.values()]
    print(f"  predicted areas differ by {np.abs(found[0] - found[1]).max()} pixels of {found[0].max():,} at most")


def time_scoring(shards: Path) -> None:
    index = ManifestIndex.open(shards, ["train"])
    random = np.random.default_rng(0)
    records = []
    for row in range(index.num_rows):
        target = draw_runs(index.counts(row), index.size(row))
        for position in range(index.sentence_start[row], index.sentence_start[row + 1]):
            moved = np.roll(target, random.integers(-9, 10, 2), axis=(0, 1))
            rle = coco.encode(np.asfortranarray(moved.astype(np.uint8)))
            segmentation = {"size": list(map(int, rle["size"])), "counts": rle["counts"].decode()}
            ids = {"ref_id": int(index.ref_id[row]), "sent_id": int(index.sent_id[position])}
            records.append({**ids, "segmentation": segmentation})
    folder = shards.parent
    with (folder / "masks.jsonl").open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(record) + "\n" for record in records)
    pq.write_table(pa.Table.from_pylist(records), folder / "masks.parquet")
    print(f"{len(records):,} predicted masks of {index.num_images:,} images, `refseg score` with its start")
    for name, protocols in (
        ("masks.jsonl", ["original"]),
        ("masks.parquet", ["original"]),
        ("masks.parquet", list(PROTOCOLS)),
    ):
        command = [
            sys.executable,
            "-m",
            "refseg",
            "score",
            str(folder / name),
            "--data",
            str(shards),
            "--split",
            "train",
        ]
        started = time.perf_counter()
        subprocess.run([*command, "--protocol", *protocols], check=True, stdout=subprocess.DEVNULL)
        taken = time.perf_counter() - started
        aim = "  (aim: 60 s)" if protocols == ["original"] else ""
        print(f"  {name:14} {', '.join(protocols):34} {taken:6.1f} s{aim}")


if __name__ == "__main__":
    sys.exit(main())
