"""The loader beside a file-per-image dataset: the same tensors, expressions per CPU-second, ratio.

    python benchmarks/loader.py SHARDS IMAGES [--split train] [--input-size 480]

SHARDS was built from the files in IMAGES; the manifest holds the polygons, so the annotations are not read again.
The baseline does per expression what LAVT's dataset does: open the file with PIL, resize, rasterise the
polygons with pycocotools, tokenise, normalise to float, collate.
"""

import argparse
import statistics
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from PIL import Image
from pycocotools import mask as coco_mask
from torch.utils.data import DataLoader, Dataset

from refseg.data.index import ManifestIndex
from refseg.data.loader import RefLoader
from refseg.data.transforms import Geometry
from refseg.models.image_encoder import CLIP_MEAN, CLIP_STD
from refseg.tokenizer import encode, truncate

BATCH, TOKENS = 16, 17


class FilePerImage(Dataset[dict[str, torch.Tensor]]):
    """One expression an item, everything done at load time."""

    def __init__(self, shards: Path, images: Path, split: str, size: int) -> None:
        self.images, self.size = images, size
        rows = [row for path in sorted(shards.glob(f"{split}-*.parquet")) for row in pq.read_table(path).to_pylist()]
        self.items = [(row, sentence["sent"]) for row in rows for sentence in row["sentences"]]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, number: int) -> dict[str, torch.Tensor]:
        row, sentence = self.items[number]
        image = Image.open(self.images / row["file_name"]).convert("RGB").resize((self.size, self.size), Image.BILINEAR)
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).float().div(255)
        pixels = (pixels - torch.tensor(CLIP_MEAN)[:, None, None]) / torch.tensor(CLIP_STD)[:, None, None]
        polygons = [p for a in row["annotations"] for p in a["segmentation"]["polygons"]]
        shape = coco_mask.merge(coco_mask.frPyObjects(polygons, row["height"], row["width"]))
        mask = Image.fromarray(coco_mask.decode(shape)).resize((self.size, self.size), Image.NEAREST)
        ids = torch.zeros(TOKENS, dtype=torch.int64)
        cut = truncate(encode(sentence), TOKENS)
        ids[: len(cut)] = torch.tensor(cut)
        return {"image": pixels, "mask": torch.from_numpy(np.array(mask)), "token_ids": ids}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shards", type=Path)
    parser.add_argument("images", type=Path)
    parser.add_argument("--split", default="train")
    parser.add_argument("--input-size", type=int, default=480)
    parser.add_argument("--expressions", type=int, default=1500, help="measured in each round")
    args = parser.parse_args()
    torch.set_num_threads(1)
    size = args.input_size
    index = ManifestIndex.open(args.shards, [args.split])

    def ours(k: int | str, sampling: str, epoch: int) -> RefLoader:
        return RefLoader(
            index,
            geometry=Geometry(kind="stretch", size=(size, size), mean=CLIP_MEAN),
            sampling=sampling,  # type: ignore[arg-type]
            expressions_per_image=k,  # type: ignore[arg-type]
            global_batch=BATCH if sampling == "sentence" else 4,
            num_tokens=TOKENS,
            seed=0,
            shuffle=True,
            remainder="drop",
            epoch=epoch,
        )

    baseline = FilePerImage(args.shards, args.images, args.split, size)
    rates: dict[str, list[float]] = {}
    for number in range(3):  # interleaved: a noisy machine is noisy for all
        loaders: dict[str, Iterable[object]] = {
            "a file per image, PIL, pycocotools, tokenizer at load": DataLoader(
                baseline, batch_size=BATCH, shuffle=True
            ),
            "refseg, each sentence with its own decoded image": ours(1, "sentence", number),
            "refseg, all sentences of a decoded image": ours("all", "images", number),
        }
        for name, loader in loaders.items():
            rates.setdefault(name, []).append(rate(loader, args.expressions))
    medians = {name: statistics.median(values) for name, values in rates.items()}
    first = next(iter(medians.values()))
    print(f"{size} x {size}, one process, expressions per CPU-second, median of 3 rounds")
    for name, value in medians.items():
        print(f"  {name:55} {value:>8,.0f}   {value / first:.1f}x")


def rate(loader: Iterable[object], expressions: int) -> float:
    seen, start = 0, time.process_time()
    while seen < expressions:  # a small set is read again and again
        for batch in loader:
            seen += len(batch["token_ids"] if isinstance(batch, dict) else batch.token_ids)  # type: ignore[attr-defined]
    return seen / (time.process_time() - start)


if __name__ == "__main__":
    main()
