"""Compares building shards with other ways to store the same data: seconds of one core, bytes on disk, ratios.

    python benchmarks/build.py [--images 2000] [--shared FOLDER] [--rounds 3]

The corpus repeats real COCO pictures with their annotations and RefCOCO's sentences, in RefCOCO's proportions. They are
taken from FOLDER (default: shared/data beside the sources, or REFSEG_SHARED_DATA), or else from the bundled sample.
Every method starts from the same annotation files and JPEGs. Its time includes all steps from reading the annotations
to writing the last byte:

- `cp`, `tar cf`: copy only the JPEGs, which gives a lower limit for the time.
- refseg: `build_dataset` with one worker; images are decoded, or only their headers are read.
- webdataset: `ShardWriter` with one sample per image: JPEG, a PNG mask for each ref, and JSON with sentences and
  open_clip's tokens.
- LMDB, as CRIS's repository makes it: an entry for each ref, with the JPEG, a PNG mask and the sentences.
"""

import argparse
import io
import json
import os
import pickle
import shutil
import statistics
import subprocess
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lmdb
import open_clip
import webdataset
from corpus import DATASET, copy_images, find_material, write_annotations
from PIL import Image
from pycocotools import mask as coco_mask

from pipelines.build import BuildOptions, build_dataset
from refseg import tokenizer

BLOCK = 512


class Corpus:
    """The files on disk from which every method starts."""

    def __init__(self, root: Path, images: Path) -> None:
        self.root, self.images = root, images
        self.paths = sorted(images.iterdir())
        self.jpeg_bytes = sum(path.stat().st_size for path in self.paths)

    def read(self) -> Iterator[tuple[dict[str, Any], list[tuple[dict[str, Any], dict[str, Any]]]]]:
        """Yield the image records, each with its refs and their annotations."""
        instances = json.loads((self.root / "toy" / "instances.json").read_text(encoding="utf-8"))
        annotations = {record["id"]: record for record in instances["annotations"]}
        refs = defaultdict(list)
        for ref in json.loads((self.root / "toy" / "refs(refseg).json").read_text(encoding="utf-8")):
            refs[ref["image_id"]].append((ref, annotations[ref["ann_id"]]))
        for image in instances["images"]:
            yield image, refs[image["id"]]


def png_mask(annotation: dict[str, Any], image: dict[str, Any]) -> bytes:
    shapes = coco_mask.frPyObjects(annotation["segmentation"], image["height"], image["width"])
    file = io.BytesIO()
    Image.fromarray(coco_mask.decode(coco_mask.merge(shapes))).save(file, "png")
    return file.getvalue()


def run_webdataset(corpus: Corpus, out: Path, tokens: open_clip.SimpleTokenizer) -> None:
    with webdataset.ShardWriter(str(out / "%05d.tar"), maxcount=512, verbose=0) as writer:
        for image, refs in corpus.read():
            sample: dict[str, Any] = {
                "__key__": f"{image['id']:012d}",
                "jpg": (corpus.images / image["file_name"]).read_bytes(),
                "json": {**image, "refs": []},
            }
            for number, (ref, annotation) in enumerate(refs):
                sample[f"{number}.png"] = png_mask(annotation, image)
                said = [
                    {
                        **sentence,
                        "token_ids": [tokens.sot_token_id, *tokens.encode(sentence["sent"]), tokens.eot_token_id],
                    }
                    for sentence in ref["sentences"]
                ]
                sample["json"]["refs"].append({**ref, "sentences": said, "box_xywh": annotation["bbox"]})
            writer.write(sample)


def run_lmdb(corpus: Corpus, out: Path) -> None:
    store = lmdb.open(str(out / "train.lmdb"), map_size=1 << 40, subdir=False, meminit=False, map_async=True)
    transaction = store.begin(write=True)
    for image, refs in corpus.read():
        for ref, annotation in refs:
            entry = {
                "img": (corpus.images / image["file_name"]).read_bytes(),
                "mask": png_mask(annotation, image),
                "cat": ref["category_id"],
                "seg_id": ref["ann_id"],
                "img_name": image["file_name"],
                "num_sents": len(ref["sentences"]),
                "sents": [sentence["sent"] for sentence in ref["sentences"]],
            }
            transaction.put(str(ref["ref_id"]).encode(), pickle.dumps(entry))
            if ref["ref_id"] % 1000 == 999:
                transaction.commit()
                transaction = store.begin(write=True)
    transaction.commit()
    store.sync()
    store.close()


def run_refseg(corpus: Corpus, out: Path, check_images: str) -> None:
    build_dataset(
        BuildOptions(
            dataset=DATASET,
            annotations=corpus.root,
            images=corpus.images,
            out=out / "dataset",
            workers=1,
            check_images=check_images,
        )
    )


def decode_all(corpus: Corpus) -> None:
    for path in corpus.paths:
        with Image.open(path) as picture:
            picture.load()


def bytes_per_sentence(corpus: Corpus) -> int:
    """Compute the bytes of a tar with one sample for each sentence: JPEG, PNG mask and text."""
    padded = 0
    for image, refs in corpus.read():
        jpeg = (corpus.images / image["file_name"]).stat().st_size
        for ref, annotation in refs:
            sizes = (jpeg, len(png_mask(annotation, image)), 100)
            padded += len(ref["sentences"]) * sum(BLOCK - (-size // BLOCK) * BLOCK for size in sizes)
    return padded


def measure(work: Callable[[Path], object], folder: Path) -> tuple[float, float, int]:
    """Measure elapsed seconds, CPU seconds of this process and its children, and bytes written."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    before, start = os.times(), time.perf_counter()
    work(folder)
    wall, after = time.perf_counter() - start, os.times()
    written = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    shutil.rmtree(folder)
    return wall, sum(after[:4]) - sum(before[:4]), written


def time_tokenizers(sentences: list[str], reference: open_clip.SimpleTokenizer, rounds: int) -> None:
    seconds: dict[str, list[float]] = {"open_clip": [], "refseg": []}
    for sentence in sentences:
        assert list(tokenizer.encode(sentence)[1:-1]) == reference.encode(sentence), sentence
    for _ in range(rounds):
        for name, encode in (("open_clip", reference.encode), ("refseg", tokenizer.encode)):
            start = time.process_time()
            for sentence in sentences:
                encode(sentence)
            seconds[name].append(time.process_time() - start)
    rates = {name: len(sentences) / statistics.median(values) for name, values in seconds.items()}
    print(
        f"\ntokenising {len(sentences):,} sentences, equal ids: open_clip {rates['open_clip']:,.0f}/s, "
        f"refseg {rates['refseg']:,.0f}/s, {rates['refseg'] / rates['open_clip']:.1f}x (aim: 8x)"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=2000, help="number of pictures in the corpus")
    parser.add_argument("--shared", type=Path, help="folder of real data")
    parser.add_argument("--rounds", type=int, default=3, help="number of interleaved rounds; the median is printed")
    parser.add_argument(
        "--work", type=Path, help="folder for the corpus and the builds; needs 6 times the corpus's size"
    )
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.work) as folder:
        run(args, Path(folder))


def run(args: argparse.Namespace, work: Path) -> None:
    material = find_material(args.shared)
    images = copy_images(material, work / "corpus", args.images)
    num_refs, num_sentences = write_annotations(material, work / "corpus", args.images)
    corpus = Corpus(work / "corpus", images)
    print(
        f"{args.images:,} images of {corpus.jpeg_bytes / args.images / 1000:.0f} KB, {num_refs:,} refs, "
        f"{num_sentences:,} sentences: {material.name}, repeated. One core, median of {args.rounds} interleaved rounds."
    )
    reference = open_clip.SimpleTokenizer()
    cases: dict[str, Callable[[Path], object]] = {
        "cp": lambda out: subprocess.run(["cp", "-r", images, out], check=True),
        "tar cf": lambda out: subprocess.run(["tar", "cf", out / "images.tar", "-C", images, "."], check=True),
        "bare decode (Pillow)": lambda _: decode_all(corpus),
        "refseg, headers only": lambda out: run_refseg(corpus, out, "header"),
        "refseg, decoded": lambda out: run_refseg(corpus, out, "decode"),
        "webdataset.ShardWriter": lambda out: run_webdataset(corpus, out, reference),
        "LMDB, CRIS's way": lambda out: run_lmdb(corpus, out),
    }
    found: dict[str, list[tuple[float, float, int]]] = defaultdict(list)
    for _ in range(args.rounds):  # rounds are interleaved, so that other load on the machine affects all methods
        for name, case in cases.items():
            found[name].append(measure(case, work / "out"))
    wall, cpu, written = (
        {name: statistics.median(values[i] for values in rounds) for name, rounds in found.items()} for i in range(3)
    )
    heads = f"{'wall s':>8}{'CPU s':>8}{'img/s/core':>12}{'/ tar cf':>10}{'/ ShardWriter':>15}{'bytes / JPEGs':>15}"
    print(f"\n{'':26}{heads}")
    for name in cases:
        share = f"{written[name] / corpus.jpeg_bytes:.3f}" if written[name] else ""
        print(
            f"{name:26}{wall[name]:>8.2f}{cpu[name]:>8.2f}{args.images / cpu[name]:>12,.0f}"
            f"{cpu['tar cf'] / cpu[name]:>10.2f}{cpu['webdataset.ShardWriter'] / cpu[name]:>15.2f}{share:>15}"
        )
    per_sentence = bytes_per_sentence(corpus) / corpus.jpeg_bytes
    print(f"{'a sample per sentence':26}{'computed, not written':>45}{per_sentence:>23.3f}")
    decoded = cpu["refseg, decoded"] / cpu["bare decode (Pillow)"]
    print(
        "\naims: without decoding 4x ShardWriter and 0.15 of tar cf, bytes 1.05 of the JPEGs; "
        f"decoded within 1.3x of the bare decode: {decoded:.2f}x"
    )
    time_tokenizers(
        [s["sent"] for _, refs in corpus.read() for ref, _ in refs for s in ref["sentences"]], reference, args.rounds
    )


if __name__ == "__main__":
    main()
