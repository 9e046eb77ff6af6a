"""Measures evaluation with shared and repeated image encoding, and the scoring of masks of another project.

    python benchmarks/evaluation.py [--images 8] [--masks 21586] [--shared FOLDER]

The first part runs FCNet-R50 at 480 x 480 on the CPU over pictures with RefCOCO's 7.1 sentences each (see `corpus.py`).
It does so once as `refseg evaluate` does, and once with the image encoded again for each sentence. Then it compares the
rows under all five protocols. The weights are random, but the last layer is scaled so that masks depend on picture and
sentence, and cover between a small and a large part of a picture. In float32, the last bit of a sum depends on the
number of sentences that are decoded together, and may change a pixel close to the threshold. In float64 no pixel is
that close, so rows must be identical.

The second part writes a predicted mask for each of as many sentences as RefCOCO's val and test splits have. A mask is
the target moved by a few pixels. Then it measures the time of `refseg score` for these masks.
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
from refseg.evaluation.protocols import ORIGINAL, PROTOCOLS, Protocol
from refseg.evaluation.rows import COUNTED, counts
from refseg.model_config import FCNetConfig
from refseg.models import build_model
from refseg.run_lengths import draw_runs

SIZE = (480, 480)
TRAIN_SHARE = 17 / 20


class OneByOne(nn.Module):
    """A model that encodes the image again for each sentence."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self.image_mean, self.image_std = model.image_mean, model.image_std

    def encode_image(self, images: Tensor) -> Tensor:
        """Return the images unchanged; `decode` encodes them."""
        return images

    def encode_text(self, token_ids: Tensor, token_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Return the token ids and mask unchanged; `decode` encodes them."""
        return token_ids, token_mask

    def decode(self, images: Tensor, text: tuple[Tensor, Tensor], image_index: Tensor) -> Tensor:
        """Encode the image and the sentence and decode them, separately for each sentence."""
        first = torch.zeros(1, dtype=torch.int64)
        found = []
        for image, token_ids, token_mask in zip(image_index.tolist(), *text, strict=True):
            image_state = self.model.encode_image(images[image : image + 1])
            text_state = self.model.encode_text(token_ids[None], token_mask[None])
            found.append(self.model.decode(image_state, text_state, first))
        return torch.cat(found)


class InDouble(nn.Module):
    """A model with float64 weights that accepts float32 images."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self.image_mean, self.image_std = model.image_mean, model.image_std
        self.encode_text, self.decode = model.encode_text, model.decode

    def encode_image(self, images: Tensor) -> Any:
        """Convert the images to float64 and encode them."""
        return self.model.encode_image(images.double())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=8, help="number of pictures of the first part; 0: skip it")
    parser.add_argument("--masks", type=int, default=21_586, help="number of masks of the second part; 0: skip it")
    parser.add_argument("--shared", type=Path, help="folder of real data")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        if args.images:
            compare_encoding(build(Path(temporary) / "few", args.images, args.shared))
        if args.masks:
            time_scoring(build(Path(temporary) / "many", round(args.masks * IMAGES / SENTENCES), args.shared))
    return 0


def build(root: Path, num_train_images: int, shared: Path | None) -> Path:
    """Build a dataset whose train split has about `num_train_images` images."""
    material = find_material(shared)
    # Of 20 images, the first 3 are not in the train split.
    num_images = max(num_train_images + 3, round(num_train_images / TRAIN_SHARE))
    write_annotations(material, root, num_images)
    images = copy_images(material, root, num_images)
    build_dataset(BuildOptions(dataset=DATASET, annotations=root, images=images, out=root / "shards", workers=2))
    print(f"{material.name}, repeated")
    return root / "shards"


def compare_encoding(shards: Path) -> None:
    index = ManifestIndex.open(shards, ["train"])
    model = build_spread_model(index)
    every = list(PROTOCOLS.values())
    seconds: dict[str, float] = {}
    of_cpu: dict[str, float] = {}
    rows: dict[str, pa.Table] = {}
    for name, evaluated, protocols in (
        ("shared, original", model, [ORIGINAL]),
        ("shared, all five", model, every),
        ("one by one, all five", OneByOne(model), every),
    ):
        started, cpu_started = time.perf_counter(), time.process_time()
        rows[name] = evaluate(evaluated, index, protocols)
        seconds[name], of_cpu[name] = time.perf_counter() - started, time.process_time() - cpu_started
    shared, one_by_one = rows["shared, all five"], rows["one by one, all five"]
    areas = counts(shared, ORIGINAL, "predicted_area") / (shared["height"].to_numpy() * shared["width"].to_numpy())
    print(
        f"{index.num_images} images, {index.num_sentences} sentences, FCNet-R50 at 480 x 480, "
        f"{torch.get_num_threads()} threads; masks cover {areas.min():.0%} to {areas.max():.0%} of a picture, the "
        f"median is {np.median(areas):.0%}"
    )
    for name, taken in seconds.items():
        rate = index.num_sentences / taken
        print(f"  {name:21} {taken:7.1f} s  {rate:6.2f} sentences/s  {of_cpu[name]:7.1f} CPU-seconds")
    for title, above, below, aim in (
        ("one by one / shared  ", "one by one, all five", "shared, all five", "    (aim: 2.5)"),
        ("all five / original  ", "shared, all five", "shared, original", ""),
    ):
        by_cpu = of_cpu[above] / of_cpu[below]
        print(f"  {title} {seconds[above] / seconds[below]:7.2f}    by CPU-seconds {by_cpu:.2f}{aim}")
    print(f"  rows in float32: {compare_rows(shared, one_by_one)}")
    first = np.array([0])
    wide = InDouble(model.double())
    exact = [evaluate(each, index, every, only_images=first) for each in (wide, OneByOne(wide))]
    print(f"  rows in float64: {compare_rows(*exact)}, of the first image")


def build_spread_model(index: ManifestIndex) -> Any:
    """Build FCNet-R50 with random weights, scaled so that the first picture's logits have mean 0 and deviation 4."""
    torch.manual_seed(0)
    model: Any = build_model(FCNetConfig(image_encoder="clip_resnet50"), input_size=SIZE)
    seen: list[Tensor] = []
    hook = model.head.register_forward_hook(lambda *given: seen.append(given[-1]))
    evaluate(model, index, [ORIGINAL], only_images=np.array([0]))
    hook.remove()
    logits = torch.cat(seen)
    last = model.head.predict
    with torch.no_grad():
        gain = 4 / logits.std()
        last.weight.mul_(gain)
        last.bias.sub_(logits.mean()).mul_(gain)
    return model


def evaluate(
    model: Any, index: ManifestIndex, protocols: list[Protocol], *, only_images: np.ndarray | None = None
) -> pa.Table:
    return evaluate_model(
        model,
        index,
        accelerator=Accelerator(cpu=True),
        geometry=Geometry(kind="letterbox", size=SIZE),
        num_tokens=17,
        images_per_batch=1,
        protocols=protocols,
        only_images=only_images,
    )


def compare_rows(first: pa.Table, second: pa.Table) -> str:
    """Describe how many rows are equal under all five protocols, and by how many pixels the others differ."""
    if first.equals(second):
        return f"all {len(first)} identical under all five protocols"
    apart = np.stack(
        [
            np.abs(counts(first, each, name) - counts(second, each, name))
            for each in PROTOCOLS.values()
            for name in COUNTED
        ]
    ).max(axis=0)
    return (
        f"{np.count_nonzero(apart == 0)} of {len(first)} identical, the others differ by at most {apart.max()} pixels"
    )


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
    print(f"{len(records):,} predicted masks of {index.num_images:,} images, `refseg score` including its start")
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
