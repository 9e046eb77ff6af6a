"""Writes a toy dataset: `toy/refs(refseg).p`, `toy/instances.json` and `images/train2014` in REFER's layout."""

import json
import pickle
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from tqdm import tqdm

from pipelines.toy.pictures import paint
from pipelines.toy.records import (
    CATEGORIES,
    LICENCES,
    crowd_record,
    image_file_name,
    image_record,
    ref_record,
    thing_record,
)
from pipelines.toy.scenes import Scene, draw_scene
from pipelines.toy.sentences import KINDS, describe
from refseg.addresses import local_path
from refseg.aside import folder_aside
from refseg.dataset.schema import find_dataset
from refseg.errors import UsageError
from refseg.json_text import parse_json

SPLIT_KINDS = {
    "train": KINDS,
    "val": KINDS,
    "testA": ("attributes", "place"),
    "testB": ("relation",),
}
"""The kinds of sentences in each split. RefCOCO's two test splits have different kinds of objects. Here they have
different kinds of sentences: testA can be solved without relations between objects, testB cannot.
"""

_SPEC = find_dataset("toy/refseg")
_GENERATOR = 1  # version of the generator; it increases when the same arguments give other scenes or sentences
_MIN_IMAGES, _MIN_SIDE = 10, 96


@dataclass(frozen=True, slots=True, kw_only=True)
class ToySummary:
    """The counts of a toy dataset.

    Attributes:
        num_images: Number of images by split.
        num_refs: Number of refs by split.
        num_sentences: Number of sentences by split.
        twin_share: Share of refs with another object of the same shape or colour in the picture.
        double_twin_share: Share of refs whose shape and colour both occur in other objects of the picture.
        drawn: False if the dataset existed already and nothing was drawn.
    """

    num_images: dict[str, int]
    num_refs: dict[str, int]
    num_sentences: dict[str, int]
    twin_share: float
    double_twin_share: float
    drawn: bool


def draw_toy(
    out: Path, *, num_images: int = 400, seed: int = 0, image_size: tuple[int, int] = (192, 192)
) -> ToySummary:
    """Draw scenes and write them as the sources of dataset `toy/refseg`. The same arguments give the same bytes.

    If the folder already holds the toy dataset of these arguments, it is not changed. The folder appears only when all
    files are written. Two toy datasets that differ in any argument share no scene.

    Args:
        out: New folder, which can be given as `--annotations` to `refseg build-shards toy/refseg`.
        num_images: Number of scenes, at least 10. About 80 % are train, 10 % are val (or more, up to 40 images), and
            each test split has 5 %.
        seed: Any integer. Another seed gives other scenes.
        image_size: Height and width in pixels, each at least 96.

    Raises:
        UsageError: If `out` holds other files or cannot be written, or an argument is out of range.
    """
    out = local_path(out)
    if num_images < _MIN_IMAGES or min(image_size) < _MIN_SIDE:
        raise UsageError(
            f"toy dataset: found {num_images} images of {image_size[1]}x{image_size[0]} pixels, "
            f"expected at least {_MIN_IMAGES} images with sides of at least {_MIN_SIDE} pixels"
        )
    identity = {"generator": _GENERATOR, "num_images": num_images, "seed": seed, "image_size": list(image_size)}
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        return _existing(out, identity)
    try:
        with folder_aside(out, is_shared=True) as unfinished:
            summary = _write(unfinished, identity, num_images, image_size)
    except OSError as error:
        raise UsageError(
            f"{error.filename or out}: cannot be written ({error.strerror or error}); give another folder"
        ) from error
    return summary


def split_sizes(num_images: int) -> dict[str, int]:
    """Return the number of images of each split."""
    val = max(num_images // 10, min(40, num_images // 5))
    test = max(num_images // 20, min(20, num_images // 10))
    return {"train": num_images - val - 2 * test, "val": val, "testA": test, "testB": test}


def _existing(out: Path, identity: dict[str, Any]) -> ToySummary:
    path = out / _SPEC.folder / "instances.json"  # its `info` holds the arguments and the counts
    try:
        marker = parse_json(path.read_bytes())["info"]["toy"]
        found, summary = marker["identity"], ToySummary(**marker["summary"], drawn=False)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{out}: the folder is not empty and holds no toy dataset; give a new folder") from error
    if found != identity:
        raise UsageError(
            f"{out}: found a toy dataset of {found}, expected {identity}; give a new folder or delete this one"
        )
    return summary


def _write(root: Path, identity: dict[str, Any], num_images: int, image_size: tuple[int, int]) -> ToySummary:
    image_folder = root / "images" / "train2014"
    annotation_folder = root / _SPEC.folder
    image_folder.mkdir(parents=True)
    annotation_folder.mkdir()
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    refs: list[dict[str, Any]] = []
    sizes = split_sizes(num_images)
    splits = [split for split, size in sizes.items() for _ in range(size)]
    num_sentences = dict.fromkeys(sizes, 0)
    num_twins = num_double_twins = 0
    # As in RefCOCO, refs are in descending order of image id.
    for image_id in tqdm(range(num_images, 0, -1), desc="scenes", unit="image", disable=None):
        rng = Random(json.dumps([identity, image_id]))
        split = splits[image_id - 1]
        scene, sentences_by_thing = _draw_described(rng, image_size, SPLIT_KINDS[split])
        images.append(image_record(image_id, image_size))
        for thing, sentences in zip(scene.things, sentences_by_thing, strict=True):
            annotations.append(thing_record(thing, ann_id=len(annotations) + 1, image_id=image_id))
            if not sentences:
                continue
            first_sent_id = sum(num_sentences.values())
            refs.append(
                ref_record(
                    annotations[-1],
                    sentences,
                    rng,
                    ref_id=len(refs),
                    first_sent_id=first_sent_id,
                    split=split,
                )
            )
            num_sentences[split] += len(sentences)
            num_twins += scene.has_twin(thing)
            num_double_twins += scene.has_double_twin(thing)
        if scene.crowd_dots:
            annotations.append(crowd_record(scene, image_id))
        (image_folder / image_file_name(image_id)).write_bytes(paint(scene, rng))
    counts: dict[str, Any] = {
        "num_images": sizes,
        "num_refs": {split: sum(ref["split"] == split for ref in refs) for split in sizes},
        "num_sentences": num_sentences,
        "twin_share": num_twins / len(refs),
        "double_twin_share": num_double_twins / len(refs),
    }
    instances = {
        "info": {"description": "refseg toy scenes", "toy": {"identity": identity, "summary": counts}},
        "images": images,
        "licenses": LICENCES,
        "annotations": annotations,
        "categories": CATEGORIES,
    }
    (annotation_folder / f"refs({_SPEC.split_by}).p").write_bytes(pickle.dumps(refs, protocol=2))
    (annotation_folder / "instances.json").write_text(json.dumps(instances), encoding="utf-8")
    return ToySummary(**counts, drawn=True)


def _draw_described(rng: Random, image_size: tuple[int, int], kinds: tuple[str, ...]) -> tuple[Scene, list[list[str]]]:
    """Draw a scene and the sentences of each of its objects; at least one object has a sentence."""
    while True:
        scene = draw_scene(rng, image_size)
        sentences_by_thing = [describe(scene, thing, rng, kinds) for thing in scene.things]
        if any(sentences_by_thing):
            return scene, sentences_by_thing
