"""The targets of published codes for an object of two overlapping squares, each drawn as that code draws it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco

from refseg.data.index import ManifestIndex
from refseg.evaluation.ground_truth import GroundTruth
from refseg.evaluation.protocols import CRIS, LAVT, LISA, ORIGINAL, PROTOCOLS, RELA

from .conftest import annotation

Write = Callable[..., Path]


def square(left: float, top: float, side: float) -> list[float]:
    return [left, top, left + side, top, left + side, top + side, left, top + side]


SIZE = (40, 60)
# Two squares of 400 pixels that share 100: COCO's `area` would say 800.
POLYGONS = [square(5, 5, 20), square(15, 15, 20)]
OVERLAPPING = {
    "size": SIZE,
    "stripes": {"red": (0, 16)},
    "refs": [((0, 0), ["the red", "no red"], [annotation(polygons=POLYGONS)])],
}


@pytest.fixture
def truth(write_stripes: Write) -> GroundTruth:
    return GroundTruth(ManifestIndex.open(write_stripes(OVERLAPPING), ["val"]), list(PROTOCOLS.values()))


@pytest.fixture
def summed() -> np.ndarray:
    """Add the decoded parts as getMask of `refer.py` does; overlaps have the value 2."""
    return np.sum(coco.decode(coco.frPyObjects(POLYGONS, *SIZE)), axis=2).astype(np.uint8)


def test_one_annotation_has_the_areas_of_the_published_rules(truth: GroundTruth, summed: np.ndarray) -> None:
    assert summed.sum() == 800
    union, once = truth.mask(CRIS, 0, 0), truth.mask(LISA, 0, 0)
    assert (union.sum(), once.sum()) == (700, 600)

    # LAVT, MagNet, DMMI, RefSegformer, PolyFormer: `annot[ref_mask == 1] = 1`.
    assert np.array_equal(once, summed == 1)
    # CRIS writes a PNG of the sum times 255, where 2 becomes 254, and asks for what is not 0.
    png = (summed.astype(np.uint16) * 255).astype(np.uint8)
    assert set(np.unique(png)) == {0, 254, 255}
    assert np.array_equal(union, np.logical_or(False, png / 255.0))
    # CGFormer reads the same PNG as whole numbers: the overlap is a hole again.
    assert (png / 255).astype(np.uint8).sum() == once.sum()
    # CARIS, MaskRIS merge the parts.
    assert np.array_equal(union, coco.decode(coco.merge(coco.frPyObjects(POLYGONS, *SIZE))).astype(bool))
    # The protocol `original` uses the union with which the dataset was built.
    assert np.array_equal(truth.mask(ORIGINAL, 0, 0), union)


def test_lisas_histograms_count_as_holes_do(truth: GroundTruth, summed: np.ndarray) -> None:
    """`intersectionAndUnionGPU` with two classes ignores the value 2 in the target, but not in the prediction."""
    predicted = np.random.default_rng(0).random(SIZE) < 0.5
    output, target = predicted.astype(int), summed.astype(int)
    area_output, area_target = (np.histogram(each, bins=(-0.5, 0.5, 1.5))[0] for each in (output, target))
    intersection = np.histogram(output[output == target], bins=(-0.5, 0.5, 1.5))[0]
    union = area_output + area_target - intersection

    mask = truth.mask(LISA, 0, 0)
    assert intersection[1] == np.count_nonzero(predicted & mask)
    assert union[1] == np.count_nonzero(predicted | mask)


def test_lavt_stretches_the_mask_by_nearest_pixels(truth: GroundTruth, summed: np.ndarray) -> None:
    stretched = Image.fromarray((summed == 1).astype(np.uint8)).resize((480, 480), Image.Resampling.NEAREST)

    assert np.array_equal(truth.mask(LAVT, 0, 0), np.asarray(stretched).astype(bool))


def test_rela_stretches_the_polygons_and_draws_them_then(truth: GroundTruth) -> None:
    scaled = [(np.array(polygon).reshape(-1, 2) * (480 / 60, 480 / 40)).reshape(-1).tolist() for polygon in POLYGONS]
    drawn = coco.decode(coco.frPyObjects(scaled, 480, 480)).any(axis=2)

    assert np.array_equal(truth.mask(RELA, 0, 0), drawn)
    assert not np.array_equal(truth.mask(LAVT, 0, 0), drawn)


def test_a_sentence_that_names_nothing_has_an_empty_target_under_every_protocol(truth: GroundTruth) -> None:
    for protocol in PROTOCOLS.values():
        assert not truth.mask(protocol, 0, 1).any()
        assert truth.mask(protocol, 0, None).any()


@pytest.mark.parametrize("mask_rule", ["union", "legacy"])
def test_the_rule_a_dataset_was_built_by_changes_no_protocol_but_the_default(
    write_stripes: Write, mask_rule: str
) -> None:
    index = ManifestIndex.open(write_stripes(OVERLAPPING, mask_rule=mask_rule), ["val"])
    truth = GroundTruth(index, list(PROTOCOLS.values()))

    assert truth.mask(CRIS, 0, 0).sum() == 700
    assert truth.mask(LISA, 0, 0).sum() == 600
    assert truth.mask(ORIGINAL, 0, 0).sum() == {"union": 700, "legacy": 600}[mask_rule]


def test_a_target_of_one_part_needs_no_annotations(write_stripes: Write) -> None:
    picture: dict[str, Any] = {**OVERLAPPING, "refs": [((0, 16), ["the red"]), OVERLAPPING["refs"][0]]}
    truth = GroundTruth(ManifestIndex.open(write_stripes(picture), ["val"]), [LISA])

    assert truth.dataset_runs(LISA, 0, 0) is not None
    assert truth.dataset_runs(LISA, 1, 0) is None


def test_rela_leaves_crowds_out_and_draws_boxes_and_run_lengths(write_stripes: Write) -> None:
    runs = {"size": list(SIZE), "counts": [0, 40, 40 * 59]}  # the first column
    crowd = [annotation(polygons=[square(10, 10, 10)]), annotation(polygons=[square(30, 10, 10)], iscrowd=True)]
    picture = {
        **OVERLAPPING,
        "refs": [
            ((0, 0), ["one"], crowd),
            ((0, 0), ["two"], [annotation(rles=[runs])]),
            ((0, 0), ["three"], [annotation(box_xywh=[50.0, 30.0, 30.0, 10.0])]),
        ],
    }
    truth = GroundTruth(ManifestIndex.open(write_stripes(picture), ["val"]), [RELA])

    of_crowd, of_runs, of_box = (truth.mask(RELA, row, 0) for row in range(3))
    assert of_crowd.sum() == 80 * 120
    assert of_crowd[120:240, 80:160].all()
    assert of_runs.sum() == 480 * 8
    assert of_runs[:, :8].all()
    assert of_box.sum() == 80 * 120  # what of it lies in the picture
    assert of_box[360:, 400:].all()


def test_a_target_of_one_pixel_may_vanish_where_masks_are_made_smaller(write_stripes: Write) -> None:
    size = (960, 1440)
    picture = {
        "size": size,
        "stripes": {"red": (0, 16)},
        "refs": [((0, 0), ["a pixel"], [annotation(rles=[{"size": list(size), "counts": [1, 1, 960 * 1440 - 2]}])])],
    }
    truth = GroundTruth(ManifestIndex.open(write_stripes(picture), ["val"]), [ORIGINAL, LAVT, LISA])

    assert [int(truth.mask(protocol, 0, 0).sum()) for protocol in (ORIGINAL, LISA, LAVT)] == [1, 1, 0]
