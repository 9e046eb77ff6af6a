import numpy as np
import pytest
from pycocotools import mask as coco_mask

from pipelines.masks import encode_mask, mask_area, read_segmentation, target_mask
from refseg.errors import AnnotationError
from refseg.schema import Annotation, Rle

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


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        ([], "its segmentation is empty"),
        (None, "its segmentation is empty"),
        ([[1, 2, 3, 4]], "has 4 numbers, expected an even count of at least 6"),  # pycocotools would take it for a box
        ([LEFT, [1, 2, 3, 4, 5, 6, 7]], "has 7 numbers"),
        ([[1, 2, 3, 4, 5, "6"]], "something else than numbers"),
        ([[1, 2, 3, 4, 5, 1e9]], "far outside of the image"),
        ([[1, 2, 3, 4, 5, float("nan")]], "far outside of the image"),
        ([1, 2, 3, 4, 5, 6], "has int, expected"),
        ({"size": [8, 6], "counts": [48]}, r"for size \[8, 6\], expected \[6, 8\]"),
        ({"size": [6, 8], "counts": [40, 9]}, "sum to 49, expected 6 x 8 = 48"),
        ({"size": [6, 8], "counts": [50, -2]}, "not a list of whole numbers"),
        ({"size": [6, 8], "counts": "`"}, "compressed run lengths are damaged"),
        ({"size": [6, 8], "counts": "é"}, "compressed run lengths are damaged"),
        ({"size": [6, 8]}, "not a list of whole numbers"),
    ],
)
def test_a_segmentation_of_another_form_is_named(segmentation: object, message: str) -> None:
    with pytest.raises(AnnotationError, match=message):
        read_segmentation(segmentation, SIZE)
