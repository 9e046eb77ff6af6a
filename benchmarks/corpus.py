"""Writes annotations of any size in REFER's layout, by repeating the records of a few pictures with new ids.

The proportions are those of RefCOCO: 50,000 refs and 142,210 sentences on 19,994 images. `instances.json` holds all
annotations of an image, not only those that are referred to.
"""

import json
import os
import shutil
import tempfile
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from pipelines.sources.refer import load_plain_pickle
from pipelines.toy import draw_toy

IMAGES, REFS, SENTENCES = 19_994, 50_000, 142_210
"""Numbers of images, refs and sentences of RefCOCO."""
DATASET = "toy/refseg"
"""Dataset id of the corpus, for which there are no published counts."""

_SPLITS = {0: "val", 1: "testA", 2: "testB"}  # one of 20 images each; all others are train
_ROOT = Path(__file__).parents[1]


@dataclass(frozen=True, slots=True, kw_only=True)
class Material:
    """The pictures and sentences that a corpus repeats.

    Attributes:
        name: Description in words.
        pictures: File, COCO's image record and all annotations of each picture; those large enough for a sentence come
            first.
        num_objects: Number of annotations that are large enough for a sentence, by picture.
        sentences: Sentences of these or other pictures; only their lengths matter.
        categories: COCO's category records.
    """

    name: str
    pictures: list[tuple[Path, dict[str, Any], list[dict[str, Any]]]]
    num_objects: list[int]
    sentences: list[str]
    categories: list[dict[str, Any]]


def find_material(shared: Path | None, *, toy: bool = False) -> Material:
    """Return real pictures from `shared` (or REFSEG_SHARED_DATA), or else the bundled sample; or drawn toy scenes."""
    shared = shared or Path(os.environ.get("REFSEG_SHARED_DATA", _ROOT / "shared" / "data"))
    if toy:
        with tempfile.TemporaryDirectory() as folder:
            draw_toy(Path(folder) / "toy", num_images=200, seed=0)
            return _material("200 toy scenes, annotations only", Path(folder) / "toy", "toy", "refs(refseg).p")
    if not (shared / "coco-real-64").is_dir():
        folder = _ROOT / "manifests" / "sample"
        return _material("the 7 bundled sample pictures (no real data given)", folder, "sample", "refs(ccby).json")
    files = sorted((shared / "refcoco-eval-json").glob("refcoco_*.json"))
    sentences = [item["sents"] for path in files for item in json.loads(path.read_text(encoding="utf-8"))]
    instances = json.loads((shared / "coco-real-64" / "instances.json").read_text(encoding="utf-8"))
    name = "64 real COCO pictures with their annotations, RefCOCO's sentences"
    return _join(name, instances, shared / "coco-real-64" / "train2017", sentences)


def _material(name: str, root: Path, folder: str, refs_name: str) -> Material:
    path = root / folder / refs_name
    data = path.read_bytes()
    refs = load_plain_pickle(data, path) if path.suffix == ".p" else json.loads(data)
    sentences = [sentence["sent"] for ref in refs for sentence in ref["sentences"]]
    instances = json.loads((root / folder / "instances.json").read_text(encoding="utf-8"))
    return _join(name, instances, root / "images" / "train2014", sentences)


def _join(name: str, instances: dict[str, Any], images: Path, sentences: list[str]) -> Material:
    by_image: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for annotation in instances["annotations"]:
        by_image[annotation["image_id"]].append(annotation)
    pictures, num_objects = [], []
    for image in instances["images"]:
        annotations = sorted(by_image[image["id"]], key=lambda found: (found["iscrowd"], -found["area"]))
        # RefCOCO's objects cover at least 5 % of their image.
        large = [a for a in annotations if not a["iscrowd"] and a["area"] >= 0.05 * image["height"] * image["width"]]
        single = [a for a in annotations if not a["iscrowd"]]
        if single:
            pictures.append((images / image["file_name"], image, annotations))
            num_objects.append(max(len(large), min(3, len(single))))
    return Material(
        name=name,
        pictures=pictures,
        num_objects=num_objects,
        sentences=sentences,
        categories=instances["categories"],
    )


def copy_images(material: Material, root: Path, num_images: int) -> Path:
    """Copy the pictures of a corpus to `images/train2014`, and return that folder."""
    folder = root / "images" / "train2014"
    folder.mkdir(parents=True)
    for number in range(num_images):
        shutil.copyfile(material.pictures[number % len(material.pictures)][0], folder / _file_name(number + 1))
    return folder


def name_images(root: Path, num_images: int) -> None:
    """Make empty files with the names of a corpus's images, which are sufficient for planning."""
    folder = root / "images" / "train2014"
    folder.mkdir(parents=True)
    for number in range(num_images):
        os.close(os.open(folder / _file_name(number + 1), os.O_CREAT | os.O_WRONLY))


def write_annotations(material: Material, root: Path, num_images: int) -> tuple[int, int]:
    """Write `toy/instances.json` and `toy/refs(refseg).json` image by image, so that memory does not grow.

    Returns:
        Numbers of refs and sentences in RefCOCO's proportions; at RefCOCO's number of images they are RefCOCO's own.
    """
    folder = root / "toy"
    folder.mkdir(parents=True, exist_ok=True)
    with _open(folder / "instances.json") as file:
        _write_instances(file, material, num_images)
    with _open(folder / "refs(refseg).json") as file:
        return _write_refs(file, material, num_images)


def _open(path: Path) -> TextIO:
    return path.open("w", encoding="utf-8", buffering=1 << 20)


def _write_instances(file: TextIO, material: Material, num_images: int) -> None:
    images = [_static(image, "id", "file_name") for _, image, _ in material.pictures]
    annotations = [[_static(one, "id", "image_id") for one in found] for _, _, found in material.pictures]
    file.write('{"images": [')
    for number in range(num_images):
        image_id, rest = number + 1, images[number % len(images)]
        file.write(f'{", " if number else ""}{{"id": {image_id}, "file_name": "{_file_name(image_id)}", {rest}')
    file.write('], "annotations": [')
    ann_id = 0
    for number in range(num_images):
        for rest in annotations[number % len(annotations)]:
            ann_id += 1
            file.write(f'{", " if ann_id > 1 else ""}{{"id": {ann_id}, "image_id": {number + 1}, {rest}')
    file.write(f'], "categories": {json.dumps(material.categories)}, "licenses": []}}')


def _write_refs(file: TextIO, material: Material, num_images: int) -> tuple[int, int]:
    sentences = [
        _static({"raw": sentence, "sent": sentence.lower(), "tokens": sentence.lower().split()})
        for sentence in material.sentences
    ]
    file.write("[")
    num_anns = num_refs = sent_id = 0
    for number in range(num_images):
        repeat, picture = divmod(number, len(material.pictures))
        split, file_name = _SPLITS.get(number % 20, "train"), _file_name(number + 1)
        first_ref, num_refs = num_refs, (number + 1) * REFS // IMAGES
        for ref_id in range(first_ref, num_refs):
            first = sent_id
            sent_id = (ref_id + 1) * SENTENCES // REFS
            said = ", ".join(f'{{"sent_id": {i}, {sentences[i % len(sentences)]}' for i in range(first, sent_id))
            # Each repetition of a picture refers to other objects of it.
            ann_id = num_anns + 1 + (repeat + ref_id) % material.num_objects[picture]
            category_id = material.pictures[picture][2][ann_id - num_anns - 1]["category_id"]
            file.write(
                f'{", " if ref_id else ""}{{"ref_id": {ref_id}, "ann_id": {ann_id}, "image_id": {number + 1}, '
                f'"split": "{split}", "category_id": {category_id}, "file_name": "{file_name}", '
                f'"sent_ids": {list(range(first, sent_id))}, "sentences": [{said}]}}'
            )
        num_anns += len(material.pictures[picture][2])
    file.write("]")
    return num_refs, sent_id


def _static(record: dict[str, Any], *ids: str) -> str:
    """Return a record's JSON without its ids and without the opening bracket, after which new ids are written."""
    return json.dumps({name: value for name, value in record.items() if name not in ids})[1:]


def _file_name(image_id: int) -> str:
    return f"COCO_train2014_{image_id:012d}.jpg"
