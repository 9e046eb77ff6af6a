"""Writes a toy dataset: `toy/refs(refseg).p`, `toy/instances.json` and `images/train2014` in REFER's layout."""

import json
import logging
import pickle
import tempfile
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from tqdm import tqdm

from pipelines.toy.pictures import crowd_run_lengths, paint
from pipelines.toy.scenes import SHAPES, Polygon, Scene, Thing, draw_scene
from pipelines.toy.sentences import KINDS, describe
from refseg.errors import UsageError
from refseg.schema import find_dataset

logger = logging.getLogger(__name__)

SPLIT_KINDS = {
    "train": KINDS,
    "val": KINDS,
    "testA": ("attributes", "place"),
    "testB": ("relation",),
}
"""Kinds of sentences a split holds. As RefCOCO's two tests ask for two kinds of objects, ours ask for two skills:
testA can be solved without relations between objects, testB cannot."""

_SPEC = find_dataset("toy/refseg")
_GENERATOR = 1  # raised when the same arguments give other scenes or sentences
_MIN_IMAGES, _MIN_SIDE = 10, 96
_CROWD_CATEGORY = len(SHAPES) + 1


@dataclass(frozen=True, slots=True, kw_only=True)
class ToySummary:
    """What a toy dataset holds.

    Attributes:
        num_images: By split.
        num_refs: By split.
        num_sentences: By split.
        twin_share: Share of refs with another object of the same shape or colour in the picture.
        double_twin_share: Share of refs whose shape and whose colour both occur in other objects of the picture.
        drawn: False where the dataset was there already.
    """

    num_images: dict[str, int]
    num_refs: dict[str, int]
    num_sentences: dict[str, int]
    twin_share: float
    double_twin_share: float
    drawn: bool


def draw_toy(out: Path, *, num_images: int, seed: int, image_size: tuple[int, int] = (192, 192)) -> ToySummary:
    """Draw scenes and write them as the sources of dataset `toy/refseg`; the same arguments give the same bytes.

    A finished set of the same arguments is left as it is. The folder appears whole or not at all. Two sets that
    differ in any argument share no scene.

    Args:
        out: Folder to make: the root for `refseg build-shards toy/refseg --annotations`.
        num_images: At least 10; about 80 % train, 10 % val (40 or more where that leaves four fifths), 5 % each test.
        seed: Any integer.
        image_size: `(height, width)` in pixels, each at least 96.

    Raises:
        UsageError: If `out` holds anything else, or an argument is out of range.
    """
    if num_images < _MIN_IMAGES or min(image_size) < _MIN_SIDE:
        raise UsageError(
            f"toy dataset: found {num_images} images of {image_size[1]}x{image_size[0]}, "
            f"expected at least {_MIN_IMAGES} images and {_MIN_SIDE} pixels a side"
        )
    identity = {
        "generator": _GENERATOR, "num_images": num_images, "seed": seed, "image_size": list(image_size)
    }  # fmt: skip
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        return _existing(out, identity)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as workplace:
        unfinished = Path(workplace) / "toy"
        summary = _write(unfinished, identity, num_images, image_size)
        unfinished.rename(out)
    return summary


def split_sizes(num_images: int) -> dict[str, int]:
    """Images of each split."""
    val = max(num_images // 10, min(40, num_images // 5))
    test = max(num_images // 20, min(20, num_images // 10))
    return {"train": num_images - val - 2 * test, "val": val, "testA": test, "testB": test}


def _existing(out: Path, identity: dict[str, Any]) -> ToySummary:
    path = out / _SPEC.folder / "instances.json"
    try:
        marker = json.loads(path.read_text(encoding="utf-8"))["info"]["toy"]
        found = marker["identity"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{out}: the folder is not empty and holds no toy dataset; name a new folder") from error
    if found != identity:
        raise UsageError(
            f"{out}: found a toy dataset of {found}, expected {identity}; name a new folder or delete this one"
        )
    return ToySummary(**marker["summary"], drawn=False)


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
    twins = double_twins = 0
    next_sent_id = 0
    # As in RefCOCO, refs come by falling image id.
    for image_id in tqdm(range(num_images, 0, -1), desc="scenes", unit="image", disable=None):
        rng = Random(json.dumps([identity, image_id]))
        scene = draw_scene(rng, image_size)
        split = splits[image_id - 1]
        file_name = f"COCO_train2014_{image_id:012d}.jpg"
        images.append(_image_record(image_id, file_name, image_size))
        for thing in scene.things:
            annotations.append(_annotation(thing, ann_id=len(annotations) + 1, image_id=image_id))
            sentences = describe(scene, thing, rng, SPLIT_KINDS[split])
            if not sentences:
                continue
            sent_ids = list(range(next_sent_id, next_sent_id + len(sentences)))
            next_sent_id += len(sentences)
            others = [other for other in scene.things if other is not thing]
            twins += any(thing.is_twin_of(other) for other in others)
            double_twins += any(thing.shape == t.shape for t in others) and any(
                thing.colour == t.colour for t in others
            )
            refs.append(
                {
                    "sent_ids": sent_ids,
                    # RefCOCO's file names end in a number that no file has; readers go by image_id.
                    "file_name": file_name.replace(".jpg", f"_{len(annotations)}.jpg"),
                    "ann_id": annotations[-1]["id"],
                    "ref_id": len(refs),
                    "image_id": image_id,
                    "split": split,
                    "sentences": [
                        {"tokens": sent.split(), "raw": _as_typed(sent, rng), "sent_id": sent_id, "sent": sent}
                        for sent_id, sent in zip(sent_ids, sentences, strict=True)
                    ],
                    "category_id": annotations[-1]["category_id"],
                }
            )
        if scene.crowd_dots:
            annotations.append(_crowd_annotation(scene, image_id))
        (image_folder / file_name).write_bytes(paint(scene, rng))
    counts: dict[str, Any] = {
        "num_images": sizes,
        "num_refs": {split: sum(r["split"] == split for r in refs) for split in sizes},
        "num_sentences": {split: sum(len(r["sentences"]) for r in refs if r["split"] == split) for split in sizes},
        "twin_share": twins / len(refs),
        "double_twin_share": double_twins / len(refs),
    }
    instances = {
        "info": {"description": "refseg toy scenes", "toy": {"identity": identity, "summary": counts}},
        "images": images,
        "licenses": [{"id": 1, "name": "CC0 1.0", "url": "https://creativecommons.org/publicdomain/zero/1.0/"}],
        "annotations": annotations,
        "categories": [
            {"supercategory": "shape", "id": number, "name": shape} for number, shape in enumerate(SHAPES, 1)
        ]
        + [{"supercategory": "crowd", "id": _CROWD_CATEGORY, "name": "dots"}],
    }
    (annotation_folder / f"refs({_SPEC.split_by}).p").write_bytes(pickle.dumps(refs, protocol=2))
    (annotation_folder / "instances.json").write_text(json.dumps(instances), encoding="utf-8")
    logger.info("drew %d toy scenes with %d refs", num_images, len(refs))
    return ToySummary(**counts, drawn=True)


def _as_typed(sentence: str, rng: Random) -> str:
    """What an annotator may have typed for a clean sentence."""
    return rng.choice((sentence, sentence, sentence, sentence.upper(), sentence.capitalize() + ".", f" {sentence} "))


def _image_record(image_id: int, file_name: str, image_size: tuple[int, int]) -> dict[str, Any]:
    return {
        "license": 1,
        "file_name": file_name,
        "coco_url": "",
        "height": image_size[0],
        "width": image_size[1],
        "date_captured": "",
        "flickr_url": "",
        "id": image_id,
    }


def _annotation(thing: Thing, *, ann_id: int, image_id: int) -> dict[str, Any]:
    return {
        "segmentation": [[v for corner in polygon for v in corner] for polygon in thing.polygons],
        "area": round(sum(_area(polygon) for polygon in thing.polygons), 2),
        "iscrowd": 0,
        "image_id": image_id,
        "bbox": list(thing.box_xywh),
        "category_id": SHAPES.index(thing.shape) + 1,
        "id": ann_id,
    }


def _crowd_annotation(scene: Scene, image_id: int) -> dict[str, Any]:
    xs, ys = zip(*scene.crowd_dots, strict=True)
    run_lengths = crowd_run_lengths(scene)
    return {
        "segmentation": {"counts": run_lengths, "size": list(scene.image_size)},
        "area": sum(run_lengths[1::2]),
        "iscrowd": 1,
        "image_id": image_id,
        "bbox": [min(xs) - 2, min(ys) - 2, max(xs) - min(xs) + 5, max(ys) - min(ys) + 5],
        "category_id": _CROWD_CATEGORY,
        "id": int(f"9{_CROWD_CATEGORY:03d}{image_id:08d}"),  # COCO's crowd ids are made like this
    }


def _area(polygon: Polygon) -> float:
    """Shoelace formula, square pixels."""
    turned = zip(polygon, polygon[1:] + polygon[:1], strict=True)
    return abs(sum(x0 * y1 - x1 * y0 for (x0, y0), (x1, y1) in turned)) / 2
