import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from pipelines.masks import encode_mask, mask_area, read_segmentation, target_mask
from refseg.dataset.schema import Annotation, Rle
from refseg.errors import AnnotationError

SIZE = (6, 8)
# Columns 1 to 4 and 3 to 6 of rows 1 to 3: 12 pixels each, 6 of them shared.
LEFT = [1.0, 1.0, 5.0, 1.0, 5.0, 4.0, 1.0, 4.0]
RIGHT = [3.0, 1.0, 7.0, 1.0, 7.0, 4.0, 3.0, 4.0]


def annotation(segmentation: object, ann_id: int = 1) -> Annotation:
    polygons, rles = read_segmentation(segmentation, SIZE)
    return Annotation(
        ann_id=ann_id,
        category_id=1,
        iscrowd=False,
        area=1.0,
        box_xywh=(0.0, 0.0, 1.0, 1.0),
        polygons=polygons,
        rles=rles,
    )


def draw(rle: Rle) -> np.ndarray:
    height, width = rle.size
    return np.repeat(np.arange(len(rle.counts)) % 2, rle.counts).reshape(width, height).T


def test_overlapping_parts_are_joined_by_union_and_lose_their_overlap_by_the_legacy_rule() -> None:
    overlapping = annotation([LEFT, RIGHT])

    assert mask_area(target_mask([overlapping], SIZE, "union")) == 18  # 12 + 12 - 6
    assert mask_area(target_mask([overlapping], SIZE, "legacy")) == 12  # 12 + 12 - 2 * 6
    expected = np.zeros(SIZE, dtype=int)
    expected[1:4, 1:7] = 1
    np.testing.assert_array_equal(draw(target_mask([overlapping], SIZE, "union")), expected)
    expected[1:4, 3:5] = 0
    np.testing.assert_array_equal(draw(target_mask([overlapping], SIZE, "legacy")), expected)


def test_parts_of_several_annotations_are_joined_like_parts_of_one() -> None:
    both = [annotation([LEFT], 1), annotation([RIGHT], 2)]

    assert target_mask(both, SIZE, "union") == target_mask([annotation([LEFT, RIGHT])], SIZE, "union")
    assert target_mask(both, SIZE, "legacy") == target_mask([annotation([LEFT, RIGHT])], SIZE, "legacy")


def test_a_box_without_a_shape_is_filled_as_far_as_it_lies_in_the_image() -> None:
    def box(left: float, top: float, width: float, height: float) -> Annotation:
        found = annotation([LEFT])
        return replace(found, box_xywh=(left, top, width, height), polygons=())

    expected = np.zeros(SIZE, dtype=int)
    expected[4:, 6:] = 1
    for wide in (box(6.0, 4.0, 2.0, 2.0), box(6.0, 4.0, 2e15, 1e12)):
        for rule in ("union", "legacy"):
            np.testing.assert_array_equal(draw(target_mask([wide], SIZE, rule)), expected)
    assert target_mask([box(-9.0, -9.0, 5.0, 5.0)], SIZE, "union") == Rle(size=SIZE, counts=(48,))


def test_empty_runs_are_joined_away() -> None:
    # 5 zeros, 3 + 4 ones around an empty run of zeros, 36 zeros; then the same with a leading pixel.
    for counts, expected in (
        ([5, 3, 0, 4, 36], (5, 7, 36)),
        ([0, 0, 5, 7, 36], (5, 7, 36)),
        ([0, 1, 0, 0, 0, 2, 45], (0, 3, 45)),
        ([48, 0], (48,)),
    ):
        found = target_mask([annotation({"size": list(SIZE), "counts": counts})], SIZE, "union")
        assert found == Rle(size=SIZE, counts=expected)


def test_masks_with_empty_runs_at_the_same_pixel_are_joined_whole() -> None:
    # pycocotools' own `merge` stops at pixel 5 and loses what follows.
    parts = [{"size": list(SIZE), "counts": counts} for counts in ([5, 0, 5, 2, 36], [5, 0, 10, 3, 30])]

    assert target_mask([annotation(parts)], SIZE, "union").counts == (10, 2, 3, 3, 30)


def test_no_annotation_gives_an_empty_mask() -> None:
    assert target_mask([], SIZE, "union") == Rle(size=SIZE, counts=(48,))


def test_run_lengths_go_down_columns_and_begin_with_zeros() -> None:
    mask = np.array([[1, 0], [1, 1], [0, 0]])

    assert encode_mask(mask) == Rle(size=(3, 2), counts=(0, 2, 2, 1, 1))
    np.testing.assert_array_equal(draw(encode_mask(mask)), mask)


@pytest.mark.parametrize("form", ["counts", "bytes", "text", "list of dicts"])
def test_run_lengths_are_read_in_every_form(form: str) -> None:
    mask = np.asfortranarray(np.random.default_rng(0).integers(0, 2, SIZE, dtype=np.uint8))
    compressed = coco_mask.encode(mask)
    segmentation: object = {
        "counts": {"size": list(SIZE), "counts": list(encode_mask(mask).counts)},
        "bytes": {"size": list(SIZE), "counts": compressed["counts"]},
        "text": {"size": list(SIZE), "counts": compressed["counts"].decode()},
        "list of dicts": [{"size": list(SIZE), "counts": compressed["counts"].decode()}],
    }[form]

    np.testing.assert_array_equal(draw(target_mask([annotation(segmentation)], SIZE, "union")), mask)


def test_compressed_run_lengths_of_large_masks_equal_those_of_pycocotools() -> None:
    # Runs long enough for three characters, and differences of either sign.
    mask = np.zeros((480, 640), dtype=np.uint8, order="F")
    mask[100:300, 50:60] = 1
    mask[:, 200:400] = 1
    mask[17, 500] = 1

    _, (rle,) = read_segmentation({"size": [480, 640], "counts": coco_mask.encode(mask)["counts"]}, (480, 640))

    assert rle == encode_mask(mask)


@pytest.mark.slow
def test_masks_of_real_annotations_equal_the_drawn_ones(shared_data: Path) -> None:
    def drawn(annotations: list[Annotation], size: tuple[int, int], rule: str) -> Rle:
        height, width = size
        parts = []
        for one in annotations:
            if one.polygons:
                parts += coco_mask.frPyObjects([list(polygon) for polygon in one.polygons], height, width)
            elif one.rles:
                (rle,) = one.rles
                parts.append(coco_mask.frPyObjects({"size": list(size), "counts": list(rle.counts)}, height, width))
            else:
                parts += coco_mask.frPyObjects(np.array([one.box_xywh]), height, width)
        pixels = coco_mask.decode(parts)
        return encode_mask(pixels.sum(axis=2, dtype=int) == 1 if rule == "legacy" else pixels.any(axis=2))

    files = ["coco-real-64/instances.json", "refer-mini/refcoco/instances.json", "refer-mini/refcocog/instances.json"]
    files += ["coco-instances/coco_mini_instances_val2017.json", "coco-instances/tiny_coco_instances_train2017.json"]
    num_annotations = num_crowds = 0
    for name in files:
        instances = json.loads((shared_data / name).read_text())
        for image in instances["images"]:
            size = (image["height"], image["width"])
            found: list[Annotation] = []
            for record in instances["annotations"]:
                if record["image_id"] == image["id"]:
                    polygons, rles = read_segmentation(record["segmentation"], size)
                    fields: dict[str, Any] = {
                        "ann_id": record["id"], "category_id": 1, "iscrowd": bool(record["iscrowd"]), "area": 1.0,
                        "box_xywh": tuple(map(float, record["bbox"])),
                    }  # fmt: skip
                    found.append(Annotation(**fields, polygons=polygons, rles=rles))
                    num_crowds += found[-1].iscrowd
                    if len(found) < 3:
                        box = Annotation(**fields, polygons=(), rles=())
                        assert target_mask([box], size, "union") == drawn([box], size, "union")
            num_annotations += len(found)
            for group in [*([one] for one in found[:3]), found[:3], found[:12]]:
                for rule in ("union", "legacy"):
                    if group:
                        assert target_mask(group, size, rule) == drawn(group, size, rule), (name, image["id"], rule)
    assert num_annotations > 1500
    assert num_crowds > 5


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        ([], "its segmentation is empty"),
        (None, "its segmentation is empty"),
        ([[1, 2, 3, 4]], "has 4 numbers, expected an even count of at least 6"),  # pycocotools would take it for a box
        ([LEFT, [1, 2, 3, 4, 5, 6, 7]], "has 7 numbers"),
        ([[1, 2, 3, 4, 5, "6"]], "values that are not numbers"),
        ([[1, 2, 3, 4, 5, 1e9]], r"extends from 2 to 1000000000.0, beyond the image \(8 x 6 pixels\)"),
        ([[1, -11, 3, 4, 5, 6]], "extends from -11 to 6, beyond the image"),
        ([[1, 2, 3, 4, 5, float("nan")]], "holds nan, expected numbers"),
        ([[float("nan"), 2, 3, 4, 5, 10**400]], "beyond the image"),
        ([[1, 2, 3, 4, 5, True]], "values that are not numbers"),
        ([1, 2, 3, 4, 5, 6], "is a flat list of numbers, expected a list of polygons"),
        ({"size": [8, 6], "counts": [48]}, r"for size \[8, 6\], expected \[6, 8\]"),
        ({"size": [6, 8], "counts": [40, 9]}, "sum to 49, expected 6 x 8 = 48"),
        ({"size": [6, 8], "counts": [50, -2]}, "not a list of whole numbers"),
        ({"size": [6, 8], "counts": "`"}, "compressed run lengths are damaged"),
        ({"size": [6, 8], "counts": "0p"}, "compressed run lengths are damaged"),  # beyond the alphabet
        ({"size": [6, 8], "counts": "P" * 8 + "0"}, "compressed run lengths are damaged"),  # a run of 45 bits
        ({"size": [6, 8], "counts": ""}, "sum to 0, expected"),
        ({"size": [6, 8], "counts": [48.0]}, "not a list of whole numbers"),
        ({"size": [6, 8], "counts": "é"}, "compressed run lengths are damaged"),
        ({"size": [6, 8]}, "not a list of whole numbers"),
    ],
)
def test_a_segmentation_of_another_form_is_named(segmentation: object, message: str) -> None:
    with pytest.raises(AnnotationError, match=message):
        read_segmentation(segmentation, SIZE)
