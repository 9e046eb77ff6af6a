"""The toy dataset, judged by its files: sentences are parsed and objects found without the generator's code."""

import hashlib
import json
import os
import pickle
import re
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from pipelines.build import build_dataset
from pipelines.options import BuildOptions
from pipelines.toy import ToySummary, draw, draw_toy
from pipelines.toy.scenes import Scene, Thing
from pipelines.toy.sentences import Description
from refseg.cli import main
from refseg.errors import UsageError

NUM_IMAGES = 80
PRIMARIES = {
    "red": (255, 0, 0),
    "green": (0, 160, 0),
    "blue": (0, 0, 255),
    "yellow": (255, 255, 0),
    "white": (255, 255, 255),
}
RELATION = re.compile(r"(.+?) (?:to the )?(left of|right of|above|below) the (.+)")
PLACE = re.compile(r"(leftmost|rightmost|top|bottom) (.+)|(.+) (on the left|on the right|at the top|at the bottom)")
# The axis to compare and the sign that puts the named one first.
AXIS = {"left": (0, 1), "right": (0, -1), "top": (1, 1), "above": (1, 1), "bottom": (1, -1), "below": (1, -1)}


class Found(NamedTuple):
    """An object found in the files."""

    ann_id: int
    shape: str
    colour: str
    size: str
    centre: tuple[float, float]


class Toy(NamedTuple):
    """The files of one drawn dataset."""

    folder: Path
    summary: ToySummary
    refs: list[dict[str, Any]]
    instances: dict[str, Any]

    def annotations(self, image_id: int, *, iscrowd: int = 0) -> list[dict[str, Any]]:
        every = self.instances["annotations"]
        return [a for a in every if a["image_id"] == image_id and a["iscrowd"] == iscrowd]

    def pixels(self, image_id: int) -> npt.NDArray[np.uint8]:
        name = next(i["file_name"] for i in self.instances["images"] if i["id"] == image_id)
        with Image.open(self.folder / "images" / "train2014" / name) as image:
            return np.asarray(image)

    def objects(self, image_id: int) -> list[Found]:
        names = {c["id"]: c["name"] for c in self.instances["categories"]}
        pixels = self.pixels(image_id)
        found = []
        for annotation in self.annotations(image_id):
            left, top, width, height = annotation["bbox"]
            rgb = np.median(pixels[mask_of(annotation, pixels.shape[:2])], axis=0)
            found.append(
                Found(
                    ann_id=annotation["id"],
                    shape=names[annotation["category_id"]],
                    colour=min(PRIMARIES, key=lambda name: float(np.abs(rgb - PRIMARIES[name]).sum())),
                    size="small" if max(width, height) < 0.2 * min(pixels.shape[:2]) else "large",
                    centre=(left + width / 2, top + height / 2),
                )
            )
        return found


def mask_of(annotation: dict[str, Any], size: tuple[int, ...]) -> npt.NDArray[np.bool_]:
    parts = coco_mask.frPyObjects(annotation["segmentation"], *size)
    return coco_mask.decode(coco_mask.merge(parts) if isinstance(parts, list) else parts).astype(bool)


def named_by(sentence: str, objects: list[Found]) -> list[Found]:
    """Return the objects that a sentence names."""
    sentence = sentence.removeprefix("the ")
    if match := RELATION.fullmatch(sentence):
        head, relation, anchor_words = match.groups()
        (anchor,) = named_by(anchor_words, objects)
        axis, sign = AXIS[relation.split()[0]]
        rest = [o for o in named_by(head, objects) if o is not anchor]
        assert len(rest) > 1, "the relation tells nothing"
        return [o for o in rest if sign * (anchor.centre[axis] - o.centre[axis]) > 0]
    if match := PLACE.fullmatch(sentence):
        word, after, before, phrase = match.groups()
        side = (word or phrase.split()[-1]).removesuffix("most")
        axis, sign = AXIS[side]
        rest = sorted(named_by(after or before, objects), key=lambda o: sign * o.centre[axis])
        assert len(rest) > 1, "the place tells nothing"
        assert abs(rest[0].centre[axis] - rest[1].centre[axis]) > 10, "too close to call"
        return rest[:1]
    words = [word for word in sentence.split() if word != "one"]
    return [o for o in objects if all(word in (o.shape, o.colour, o.size) for word in words)]


def tree_digest(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Toy:
    folder = tmp_path_factory.mktemp("toy") / "source"
    summary = draw_toy(folder, num_images=NUM_IMAGES, seed=3)
    with (folder / "toy" / "refs(refseg).p").open("rb") as file:
        refs = pickle.load(file)
    return Toy(folder, summary, refs, json.loads((folder / "toy" / "instances.json").read_text()))


def test_every_sentence_names_its_object_and_no_other(toy: Toy) -> None:
    num_sentences = 0
    objects = {image["id"]: toy.objects(image["id"]) for image in toy.instances["images"]}
    for ref in toy.refs:
        for sentence in ref["sentences"]:
            named = named_by(sentence["sent"], objects[ref["image_id"]])
            assert [o.ann_id for o in named] == [ref["ann_id"]], (ref["image_id"], sentence["sent"])
            num_sentences += 1
    assert num_sentences == sum(toy.summary.num_sentences.values()) > 5 * NUM_IMAGES


def test_no_shape_or_colour_word_gives_an_object_away(toy: Toy) -> None:
    twins = double_twins = 0
    for ref in toy.refs:
        objects = toy.objects(ref["image_id"])
        target = next(o for o in objects if o.ann_id == ref["ann_id"])
        others = [o for o in objects if o is not target]
        same_shape = any(o.shape == target.shape for o in others)
        same_colour = any(o.colour == target.colour for o in others)
        twins += same_shape or same_colour
        double_twins += same_shape and same_colour
        for sentence in ref["sentences"]:
            head = RELATION.sub(r"\1", sentence["sent"])
            assert (target.shape in head and same_shape) or (target.colour in head and same_colour)
    assert toy.summary.twin_share == pytest.approx(twins / len(toy.refs))
    assert toy.summary.double_twin_share == pytest.approx(double_twins / len(toy.refs))
    assert twins / len(toy.refs) >= 0.9
    assert double_twins / len(toy.refs) >= 0.6


def test_sentences_are_short_and_of_few_words(toy: Toy) -> None:
    sentences = [s["sent"].split() for ref in toy.refs for s in ref["sentences"]]

    assert max(map(len, sentences)) <= 12
    assert len({word for sentence in sentences for word in sentence}) < 40
    assert all(1 <= len(ref["sentences"]) <= 3 for ref in toy.refs)
    assert all(len({s["sent"] for s in ref["sentences"]}) == len(ref["sentences"]) for ref in toy.refs)


def test_test_a_has_no_relation_and_test_b_nothing_else(toy: Toy) -> None:
    by_split: dict[str, Counter[bool]] = {}
    for ref in toy.refs:
        counts = by_split.setdefault(ref["split"], Counter())
        counts.update(RELATION.fullmatch(s["sent"]) is not None for s in ref["sentences"])

    assert by_split["testA"][True] == 0 < by_split["testA"][False]
    assert by_split["testB"][False] == 0 < by_split["testB"][True]
    assert min(by_split["train"].values()) > 50
    assert min(by_split["val"].values()) > 5


def test_an_image_is_in_one_split_and_every_image_has_a_ref(toy: Toy) -> None:
    splits: dict[int, set[str]] = {}
    for ref in toy.refs:
        splits.setdefault(ref["image_id"], set()).add(ref["split"])

    assert all(len(found) == 1 for found in splits.values())
    assert Counter(split for found in splits.values() for split in found) == toy.summary.num_images
    # 80 images: a fifth for val, a tenth for each test.
    assert toy.summary.num_images == {"train": 48, "val": 16, "testA": 8, "testB": 8}
    assert draw.split_sizes(4000) == {"train": 3200, "val": 400, "testA": 200, "testB": 200}


def test_objects_lie_apart_inside_the_picture_and_where_their_polygons_say(toy: Toy) -> None:
    shifts = ((0, 0), (1, 0), (-1, 0), (0, 1), (0, -1))
    fits = []
    for image in toy.instances["images"]:
        pixels = toy.pixels(image["id"])
        size = (image["height"], image["width"])
        assert pixels.shape == (*size, 3) == (192, 192, 3)
        masks = [mask_of(annotation, size) for annotation in toy.annotations(image["id"])]
        assert 3 <= len(masks) <= 6
        assert np.sum(masks, axis=0).max() == 1
        for annotation, mask in zip(toy.annotations(image["id"]), masks, strict=True):
            assert mask.sum() == pytest.approx(annotation["area"], rel=0.12)
            ys, xs = np.nonzero(mask)
            left, top, width, height = annotation["bbox"]
            # A triangle may lose its tips to the pixel grid.
            assert (xs.min(), ys.min()) == pytest.approx((left, top), abs=2)
            assert (xs.max() + 1, ys.max() + 1) == pytest.approx((left + width, top + height), abs=2)
            assert 24 <= max(width, height) <= 60
            colour = np.median(pixels[mask], axis=0)
            far = np.abs(pixels.astype(float) - colour).sum(axis=2)
            fits.append([far[np.roll(mask, shift, axis=(0, 1))].mean() for shift in shifts])
    # Moved by a pixel to any side, the outlines fit the paint less well; by half a pixel, two would be alike.
    fit, *moved = np.mean(fits, axis=0)
    assert min(moved) > 1.15 * fit


def test_some_objects_have_two_parts(toy: Toy) -> None:
    parts = Counter(len(a["segmentation"]) for a in toy.instances["annotations"] if not a["iscrowd"])

    assert set(parts) == {1, 2}
    assert parts[2] > 10


def test_a_crowd_is_run_lengths_that_no_ref_points_to(toy: Toy) -> None:
    crowds = [a for a in toy.instances["annotations"] if a["iscrowd"]]

    assert crowds
    assert not {a["id"] for a in crowds} & {ref["ann_id"] for ref in toy.refs}
    for crowd in crowds:
        assert crowd["id"] == 900500000000 + crowd["image_id"]
        mask = mask_of(crowd, (192, 192))
        assert mask.sum() == crowd["area"]
        ys, xs = np.nonzero(mask)
        left, top, width, height = crowd["bbox"]
        assert (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1) == (left, top, left + width, top + height)
        dark = toy.pixels(crowd["image_id"]).mean(axis=2)
        assert (
            dark[mask].mean()
            < dark[top : top + height, left : left + width][~mask[top : top + height, left : left + width]].mean()
        )
        assert not any((mask & mask_of(a, (192, 192))).any() for a in toy.annotations(crowd["image_id"]))


def test_refs_are_refers_plain_records(toy: Toy) -> None:
    def types(value: Any) -> set[type]:
        inner = [*value.keys(), *value.values()] if isinstance(value, dict) else value
        return {type(value)}.union(*map(types, inner)) if isinstance(value, (dict, list)) else {type(value)}

    assert types(toy.refs) == {dict, list, str, int}
    assert (toy.folder / "toy" / "refs(refseg).p").read_bytes()[:2] == b"\x80\x02"
    annotations = {a["id"]: a for a in toy.instances["annotations"]}
    assert len(annotations) == len(toy.instances["annotations"])
    for ref in toy.refs:
        assert set(ref) == {
            "sent_ids", "file_name", "ann_id", "ref_id", "image_id", "split", "sentences", "category_id"
        }  # fmt: skip
        annotation = annotations[ref["ann_id"]]
        assert (annotation["image_id"], annotation["category_id"]) == (ref["image_id"], ref["category_id"])
        assert [s["sent_id"] for s in ref["sentences"]] == ref["sent_ids"]
        for sentence in ref["sentences"]:
            assert set(sentence) == {"tokens", "raw", "sent_id", "sent"}
            assert " ".join(sentence["tokens"]) == sentence["sent"] == sentence["sent"].lower()
            assert sentence["raw"].strip().rstrip(".").lower() == sentence["sent"]
    assert [ref["ref_id"] for ref in toy.refs] == list(range(len(toy.refs)))
    assert [i for ref in toy.refs for i in ref["sent_ids"]] == list(range(sum(toy.summary.num_sentences.values())))
    assert any(s["raw"].isupper() for ref in toy.refs for s in ref["sentences"])


def test_the_same_arguments_give_the_same_bytes_in_another_process(tmp_path: Path) -> None:
    draw_toy(tmp_path / "here", num_images=12, seed=5, image_size=(128, 128))
    arguments = ["--out", str(tmp_path / "there"), "--images", "12", "--seed", "5", "--size", "128"]
    subprocess.run(
        [sys.executable, "-m", "refseg", "toy", *arguments],
        env={**os.environ, "PYTHONHASHSEED": "77"}, check=True, capture_output=True,
    )  # fmt: skip

    assert tree_digest(tmp_path / "here") == tree_digest(tmp_path / "there")


def test_another_seed_or_number_gives_other_pictures(tmp_path: Path) -> None:
    draw_toy(tmp_path / "a", num_images=10, seed=0)
    draw_toy(tmp_path / "b", num_images=10, seed=1)
    draw_toy(tmp_path / "c", num_images=11, seed=0)

    digests = [d for name in "abc" for f, d in tree_digest(tmp_path / name).items() if f.endswith(".jpg")]
    assert len(set(digests)) == len(digests) == 31


def test_pictures_need_not_be_square(tmp_path: Path) -> None:
    draw_toy(tmp_path / "wide", num_images=10, seed=0, image_size=(120, 200))

    image = json.loads((tmp_path / "wide" / "toy" / "instances.json").read_text())["images"][0]
    assert (image["height"], image["width"]) == (120, 200)
    with Image.open(tmp_path / "wide" / "images" / "train2014" / image["file_name"]) as picture:
        assert picture.size == (200, 120)


def _thing(shape: str, x: float, y: float) -> Thing:
    return Thing(
        shape=shape, colour="red", size="small", centre=(x, y), rgb=(255, 0, 0), polygons=(), box_xywh=(x, y, 0, 0)
    )


def test_a_place_or_relation_too_close_to_call_names_nothing() -> None:
    # 100 pixels wide: centres 6 apart are too close, 8 apart are not.
    square, left, middle = _thing("square", 50, 50), _thing("circle", 20, 50), _thing("circle", 56, 50)
    scene = Scene(image_size=(100, 100), things=(square, left, middle), crowd_dots=())
    clear = replace(scene, things=(square, left, replace(middle, centre=(58, 50))))
    circle = Description(shape="circle")
    left_of_square = replace(circle, relation="left of", anchor=Description(shape="square"))

    assert circle.matches(scene) == (left, middle)
    assert replace(circle, place="left").matches(scene) == (left,)
    assert replace(circle, place="top").matches(scene) == ()
    assert left_of_square.matches(scene) == ()
    assert left_of_square.matches(clear) == (left,)
    assert replace(left_of_square, relation="right of").matches(clear) == (clear.things[2],)
    assert replace(left_of_square, relation="above").matches(clear) == ()
    assert replace(left_of_square, anchor=circle).matches(clear) == ()  # the anchor itself is not clear


def test_a_finished_set_is_left_as_it_is_and_another_folder_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "deep" / "source"
    arguments = ["toy", "--out", str(out), "--images", "10", "--seed", "1"]
    assert main(arguments) == 0
    first = capsys.readouterr().out
    assert "10 images" in first
    assert "refs whose shape or colour another object also has: 100.0%" in first
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}

    assert main(arguments) == 0
    assert "existed already, nothing was changed" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before

    assert main([*arguments[:-1], "2"]) == 2
    assert "'seed': 1" in (message := capsys.readouterr().err)
    assert "give a new folder or delete this one" in message

    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("all of it")
    with pytest.raises(UsageError, match=r"mine: the folder is not empty and holds no toy dataset"):
        draw_toy(tmp_path / "mine", num_images=10, seed=0)
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "all of it"
    for text in ("[" * 100_000, '{"info": {"toy": {"identity": {}, "summary": {"x": 1}}}}', "[]"):
        (out / "toy" / "instances.json").write_text(text)
        with pytest.raises(UsageError, match="holds no toy dataset"):
            draw_toy(out, num_images=10, seed=1)


def test_the_summary_is_json_on_request(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["toy", "--out", str(tmp_path / "t"), "--images", "10", "--json"]
    assert main(arguments) == main(arguments) == 0

    first, again = map(json.loads, capsys.readouterr().out.splitlines())
    assert first.pop("drawn") and not again.pop("drawn")  # noqa: PT018 - one fact: drawn once
    assert first == again
    assert first["num_images"] == {"train": 6, "val": 2, "testA": 1, "testB": 1}


def test_too_few_or_too_small_pictures_are_refused(tmp_path: Path) -> None:
    with pytest.raises(
        UsageError,
        match=r"found 9 images of 192x192 pixels, expected at least 10 images with sides of at",
    ):
        draw_toy(tmp_path / "t", num_images=9, seed=0)
    with pytest.raises(UsageError, match=r"found 10 images of 300x95"):
        draw_toy(tmp_path / "t", num_images=10, seed=0, image_size=(95, 300))
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match=r"file: cannot be written \(.+\); give another folder"):
        draw_toy(tmp_path / "file" / "toy", num_images=10, seed=0)


def test_an_interrupted_drawing_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> bytes:
        raise KeyboardInterrupt

    monkeypatch.setattr(draw, "paint", interrupt)
    with pytest.raises(KeyboardInterrupt):
        draw_toy(tmp_path / "t", num_images=10, seed=0)
    assert not list(tmp_path.iterdir())


def test_every_ref_reaches_the_shards(toy: Toy, tmp_path: Path) -> None:
    options = BuildOptions(dataset="toy/refseg", annotations=toy.folder, out=tmp_path / "toy", workers=1)
    descriptor = build_dataset(options).descriptor

    assert descriptor.num_rejects == 0
    assert {shard.split: shard.num_images for shard in descriptor.shards} == toy.summary.num_images
    assert {shard.split: shard.num_refs for shard in descriptor.shards} == toy.summary.num_refs
    assert {shard.split: shard.num_sentences for shard in descriptor.shards} == toy.summary.num_sentences
