"""A small dataset under all five protocols, with every number computed again in plain Python from the annotations.

The second computation uses no code of refseg: rectangles are slices, resizing is a product of matrices, and scores are
loops.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from refseg import tokenizer
from refseg.data.index import ManifestIndex
from refseg.data.transforms import Geometry
from refseg.evaluation.bootstrap import compare, confidence_intervals
from refseg.evaluation.breakdown import BREAKDOWNS
from refseg.evaluation.evaluate import evaluate_model
from refseg.evaluation.predictions import GivenMask, Key, Predictions
from refseg.evaluation.protocols import PROTOCOLS
from refseg.evaluation.rows import counts
from refseg.evaluation.score_masks import score_masks
from refseg.evaluation.scores import score
from refseg.run_lengths import draw_runs, encode_runs

from .conftest import annotation

EVERY = list(PROTOCOLS.values())
SIZE = (40, 60)
INPUT = (480, 480)
Box = tuple[int, int, int, int]
"""Top, bottom, left, right of a part: rows and columns, the ends excluded."""

SQUARES: list[Box] = [(5, 25, 5, 25), (15, 35, 15, 35)]  # two of 400 pixels that share 100
PIXEL: list[Box] = [(7, 8, 9, 10)]
LEFT: list[Box] = [(0, 40, 0, 20)]
RIGHT: list[Box] = [(0, 40, 40, 60)]
CROWD: list[Box] = [(30, 40, 20, 40)]

REFS: list[tuple[int, int, list[Box], bool, list[str]]] = [
    # image, ref, parts, crowd, sentences; "no " names nothing
    (1, 10, SQUARES, False, ["both squares one", "squares on the left two", "no squares three"]),
    (1, 11, PIXEL, False, ["the small pixel there in the very middle four", "pixel five"]),
    (1, 12, LEFT, False, ["left six", "no thing seven"]),
    (2, 20, LEFT, False, ["left side eight", "a bar nine"]),
    (2, 21, RIGHT, False, ["right ten"]),
    (2, 22, CROWD, True, ["people eleven"]),
    (3, 30, [], False, ["nothing twelve", "nothing thirteen"]),
    (3, 31, SQUARES, False, ["squares fourteen"]),
]


def sentences() -> list[tuple[int, int, int, str, list[Box], bool]]:
    """A sentence with its image, ref, text, the parts of its target, and whether they are a crowd."""
    return [
        (image, ref, 100 * ref + number, text, [] if text.startswith("no ") else parts, crowd)
        for image, ref, parts, crowd, texts in REFS
        for number, text in enumerate(texts)
    ]


@pytest.fixture(scope="module")
def index(write_stripes: Callable[..., Path]) -> ManifestIndex:
    def annotated(parts: list[Box], crowd: bool) -> list[dict[str, Any]]:
        polygons = [[float(v) for v in (x, y, x, b, r, b, r, y)] for y, b, x, r in parts]
        return [annotation(polygons=polygons, iscrowd=crowd)] if parts else []

    pictures: dict[int, dict[str, Any]] = {
        n: {"size": SIZE, "stripes": {"red": (0, 16)}, "refs": []} for n in (1, 2, 3)
    }
    for image, _, parts, crowd, texts in REFS:
        pictures[image]["refs"].append(((0, 0), texts, annotated(parts, crowd)))
    return ManifestIndex.open(write_stripes(*pictures.values()), ["val"])


def drawn(parts: list[Box], name: str, crowd: bool) -> np.ndarray:
    """Return the target under a protocol: the union for `original` and `cris`, pixels of exactly one part for `lavt`
    and `lisa`, and the union without crowds for `rela`. 480 x 480 is 12 times as high and 8 times as wide as the
    image, so nearest pixels are repeated pixels."""
    covered = np.zeros(SIZE, int)
    for top, bottom, left, right in parts:
        covered[top:bottom, left:right] += 1
    mask = covered == 1 if name in ("lavt", "lisa") else covered > 0
    if name == "rela" and crowd:
        mask[:] = False
    return mask.repeat(12, 0).repeat(8, 1) if name in ("lavt", "rela") else mask


def given_masks() -> dict[Key, np.ndarray]:
    """Return masks for every case of the rules."""

    def boxes(*parts: Box) -> np.ndarray:
        return drawn(list(parts), "original", crowd=False)

    return dict(
        zip(
            [Key(ref, sent) for _, ref, sent, *_ in sentences()],
            [
                boxes(*SQUARES),  # right under the union
                boxes((5, 25, 5, 25), (15, 35, 25, 35)),  # 400 + 200 of 700
                boxes((0, 3, 0, 5)),  # names nothing, imagined
                boxes(*PIXEL),  # one pixel, found
                boxes(),  # one pixel, missed by an empty mask
                boxes((0, 20, 0, 20)),  # 1/2: a tie
                boxes(),  # names nothing, known
                boxes((0, 28, 0, 20)),  # 7/10: a tie
                boxes((0, 40, 0, 60)),  # everything: 1/3
                boxes((0, 40, 36, 60)),  # 5/6
                boxes((30, 40, 20, 40)),  # a crowd, found
                boxes(),  # no target, known
                boxes((39, 40, 59, 60)),  # no target, one pixel imagined
                boxes((5, 25, 5, 25)),  # 400 of 700, or 300 of 700 where the overlap is a hole
            ],
            strict=True,
        )
    )


def expected_pixels(masks: dict[str, list[np.ndarray]]) -> dict[str, list[tuple[int, int, int, int]]]:
    """Count intersection, union, predicted area and target area of each sentence, from masks at the compared size."""
    found: dict[str, list[tuple[int, int, int, int]]] = {}
    for name, predicted in masks.items():
        found[name] = []
        for (*_, parts, crowd), mask in zip(sentences(), predicted, strict=True):
            target = drawn(parts, name, crowd)
            shared, either = int((mask & target).sum()), int((mask | target).sum())
            found[name].append((shared, either, int(mask.sum()), int(target.sum())))
    return found


def expected_scores(name: str, pixels: list[tuple[int, int, int, int]], chosen: list[int]) -> dict[str, float]:
    """Compute the scores of chosen sentences, some maybe more than once, by the protocol's published loop."""
    empty = {"original": 1.0, "lisa": 1.0, "cris": 0.0, "lavt": 0.0, "rela": 0.0}[name]
    added = {"cris": 1e-6, "lisa": 1e-5}.get(name, 0.0)
    at_least = name in ("lavt", "rela")
    nothing = [not parts for *_, parts, _ in sentences()]
    ious, sum_i, sum_u = [], 0, 0
    g_ious, c_i, c_u, known, denied, empty_masks = [], 0, 0, [], [], []
    for n in chosen:
        i, u, predicted, _ = pixels[n]
        iou = empty if u == 0 else i / (u + added)
        says_none = predicted == 0
        if nothing[n]:
            known.append(says_none)
            empty_masks.append(predicted == 0)
            g_ious.append(float(says_none))
            c_u += 0 if says_none else u
        else:
            denied.append(says_none)
            g_ious.append(0.0 if says_none else iou)
            c_i, c_u = c_i + (0 if says_none else i), c_u + u
        if nothing[n] and name in ("lavt", "rela"):
            continue  # left out of the plain scores
        if name == "rela" and says_none:
            i, iou = 0, 0.0
        ious.append(iou)
        sum_i, sum_u = sum_i + i, sum_u + u
    scores = {"oIoU": sum_i / sum_u, "mIoU": mean(ious)}
    for tenth in (5, 6, 7, 8, 9):
        passed = [iou >= tenth / 10 if at_least else iou > tenth / 10 for iou in ious]
        scores[f"Pr@0.{tenth}"] = mean(passed)
    ratios = []
    for ref in dict.fromkeys(sentences()[n][1] for n in chosen):
        of_ref = [n for n in chosen if sentences()[n][1] == ref]
        if all(nothing[n] for n in of_ref):
            continue
        i = sum(pixels[n][0] for n in of_ref if not nothing[n])
        u = sum(pixels[n][2] if nothing[n] else pixels[n][1] for n in of_ref)
        ratios.append(i / u if u else 0.0)
    return {
        **scores, "gIoU": mean(g_ious), "cIoU": c_i / c_u, "N-acc": mean(known), "T-acc": 1 - mean(denied),
        "Acc": mean(empty_masks), "rIoU": mean(ratios),
    }  # fmt: skip


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else float("nan")


def of_all_sizes(masks: dict[Key, np.ndarray]) -> dict[str, list[np.ndarray]]:
    """Return given masks at the size at which each protocol compares them."""
    large = [mask.repeat(12, 0).repeat(8, 1) for mask in masks.values()]
    return {name: large if name in ("lavt", "rela") else list(masks.values()) for name in PROTOCOLS}


def scored(index: ManifestIndex, masks: dict[Key, np.ndarray]) -> Any:
    runs = {key: GivenMask(size=SIZE, counts=encode_runs(mask)) for key, mask in masks.items()}
    return score_masks(index, Predictions(masks=[runs] * 5), EVERY)


def test_four_rules_give_four_areas_of_one_annotation() -> None:
    assert [int(drawn(SQUARES, name, crowd=False).sum()) for name in ("original", "lavt", "rela")] == [
        700, 600 * 96, 700 * 96,
    ]  # fmt: skip


def test_given_masks_have_the_counts_and_scores_of_plain_loops(index: ManifestIndex) -> None:
    masks = given_masks()
    table, pixels = scored(index, masks), expected_pixels(of_all_sizes(masks))

    for protocol in EVERY:
        columns = [
            counts(table, protocol, c).tolist() for c in ("intersection", "union", "predicted_area", "target_area")
        ]
        assert list(zip(*columns, strict=True)) == pixels[protocol.name], protocol.name
        expected = expected_scores(protocol.name, pixels[protocol.name], list(range(len(masks))))
        reported = score(table, protocol).to_json()["scores"]
        assert reported == pytest.approx(expected, abs=1e-12), protocol.name
        assert json.loads(json.dumps(reported)) == reported


class Prepared(nn.Module):
    """A model that returns for each sentence the logits that were prepared for its last word."""

    image_mean = (0.0, 0.0, 0.0)
    image_std = (1.0, 1.0, 1.0)

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = logits
        self.last = torch.tensor([tokenizer.encode(text)[-2] for *_, text, _, _ in sentences()])

    def encode_image(self, images: Tensor) -> Tensor:
        return images

    def encode_text(self, token_ids: Tensor, token_mask: Tensor) -> Tensor:
        word = token_ids[torch.arange(len(token_ids)), token_mask.sum(1) - 2]
        return (word[:, None] == self.last).int().argmax(1)

    def decode(self, image_state: Tensor, text_state: Tensor, image_index: Tensor) -> Tensor:
        return self.logits[text_state]


def linear(number: int, places: np.ndarray) -> np.ndarray:
    """Return the weights of bilinear interpolation with a repeated border, shape `(positions, number)`."""
    places = np.clip(places, 0, number - 1)
    return np.maximum(0.0, 1 - np.abs(places[:, None] - np.arange(number)))


def cubic(distance: np.ndarray) -> np.ndarray:
    """Return the cubic weights of Keys with a = -0.75, as OpenCV and torch use them."""
    a, x = -0.75, np.abs(distance)
    near, far = (a + 2) * x**3 - (a + 3) * x**2 + 1, a * (x**3 - 5 * x**2 + 8 * x - 4)
    return np.where(x <= 1, near, np.where(x < 2, far, 0.0))


def middles(number: int, length: int) -> np.ndarray:
    """Return the positions of the centres of `number` pixels among `length` pixels that fill the same space."""
    return (np.arange(number) + 0.5) * length / number - 0.5


def masks_of(logits: np.ndarray, name: str) -> np.ndarray:
    """Compute the protocol's mask from logits of 120 x 120, for a stretched input of 480 x 480."""
    small = 120
    corners = linear(small, np.linspace(0, small - 1, 480))
    plain = linear(small, middles(480, small))
    back = [linear(480, middles(side, 480)) for side in SIZE]
    probabilities = 1 / (1 + np.exp(-logits))
    if name == "original":
        return back[0] @ (plain @ probabilities @ plain.T) @ back[1].T > 0.5
    if name == "lisa":
        return back[0] @ (plain @ logits @ plain.T) @ back[1].T > 0
    if name == "lavt":
        return corners @ logits @ corners.T > 0
    if name == "rela":
        return plain @ logits @ plain.T > 0
    places = np.linspace(0, small - 1, 480)
    spread = cubic(places[:, None] - np.arange(-2, small + 2))  # two repeated pixels on either side
    enlarge = spread[:, 2:-2].copy()
    enlarge[:, 0] += spread[:, :2].sum(1)
    enlarge[:, -1] += spread[:, -2:].sum(1)
    warp = [cubic(middles(side, 480)[:, None] - np.arange(480)) for side in SIZE]  # zeros beyond
    return warp[0] @ (enlarge @ probabilities @ enlarge.T) @ warp[1].T > 0.35


def test_a_models_logits_have_the_counts_and_scores_of_plain_loops(index: ManifestIndex) -> None:
    masks = list(given_masks().values())
    random = np.random.default_rng(0)
    wanted = np.stack([mask.repeat(3, 0).repeat(2, 1) for mask in masks]) * 6.0 - 3.0
    logits = wanted + random.normal(0, 1.2, wanted.shape) * (np.array([m.any() for m in masks])[:, None, None])
    logits = logits.astype(np.float32)

    table = evaluate_model(
        Prepared(torch.from_numpy(logits)[:, None]),
        index,
        accelerator=Accelerator(cpu=True),
        geometry=Geometry(kind="stretch", size=INPUT),
        num_tokens=20,
        images_per_batch=2,
        protocols=EVERY,
        save_predictions=True,
    )

    ours = {name: [masks_of(each.astype(np.float64), name) for each in logits] for name in PROTOCOLS}
    for name, expected in ours.items():
        size = INPUT if name in ("lavt", "rela") else SIZE
        kept = table.column(f"{name}_predicted_counts").to_pylist()
        differing = [int((draw_runs(np.array(runs, np.uint32), size) != mask).sum())
                     for runs, mask in zip(kept, expected, strict=True)]  # fmt: skip
        assert max(differing) == 0, (name, differing)
    pixels = expected_pixels(ours)
    for protocol in EVERY:
        expected_values = expected_scores(protocol.name, pixels[protocol.name], list(range(len(masks))))
        assert score(table, protocol).by_name() == pytest.approx(expected_values, abs=1e-12), protocol.name
    # The five protocols give five different results.
    assert len({tuple(score(table, protocol).by_name().values()) for protocol in EVERY}) == 5


@pytest.mark.slow
@pytest.mark.parametrize("name", PROTOCOLS)
def test_intervals_and_differences_are_those_of_images_drawn_one_by_one(index: ManifestIndex, name: str) -> None:
    """Score each draw by the plain loop; a draw has all sentences of an image as often as the image is drawn."""
    protocol, masks = PROTOCOLS[name], given_masks()
    other = {key: np.roll(mask, 3, axis=1) if mask.sum() > 1 else mask for key, mask in masks.items()}
    of_image = {image: [n for n, (i, *_) in enumerate(sentences()) if i == image] for image in (1, 2, 3)}
    first, second = (expected_pixels(of_all_sizes(each))[name] for each in (masks, other))
    draws = np.random.default_rng(0).multinomial(3, [1 / 3] * 3, (10, 100)).reshape(1000, 3)
    values: dict[str, list[tuple[float, float]]] = {}
    for times in draws:
        chosen = [n for image, number in zip(of_image, times, strict=True) for n in of_image[image] * number]
        both = [expected_scores(name, pixels, chosen) for pixels in (first, second)]
        for key in both[0]:
            values.setdefault(key, []).append((both[0][key], both[1][key]))
    del values["rIoU"]  # an image drawn twice brings its refs twice: see test_bootstrap.py

    intervals = confidence_intervals(scored(index, masks), protocol)
    differences = {d.name: d for d in compare(scored(index, masks), scored(index, other), protocol)}
    for key, pairs in values.items():
        drawn_first, drawn_second = np.array(pairs).T
        assert intervals[key] == pytest.approx(np.nanquantile(drawn_first, [0.025, 0.975]), abs=1e-12), key
        moved = (drawn_second - drawn_first)[~np.isnan(drawn_first)]
        assert differences[key].interval == pytest.approx(np.quantile(moved, [0.025, 0.975]), abs=1e-12), key
        tail = min((moved <= 0).sum(), (moved >= 0).sum())
        assert differences[key].p_value == pytest.approx(min(1, 2 * (tail + 1) / (len(moved) + 1))), key
    assert differences["mIoU"].interval.high < 0


def test_breakdowns_are_scores_of_the_sentences_picked_by_hand(index: ManifestIndex) -> None:
    protocol, masks = PROTOCOLS["original"], given_masks()
    pixels, texts = expected_pixels(of_all_sizes(masks))["original"], [text for *_, text, _, _ in sentences()]
    table = scored(index, masks)

    def means(chosen: list[int]) -> tuple[int, float, float]:
        ious = [1.0 if pixels[n][1] == 0 else pixels[n][0] / pixels[n][1] for n in chosen]
        overall = sum(pixels[n][0] for n in chosen) / max(1, sum(pixels[n][1] for n in chosen))
        return len(chosen), sum(ious) / len(ious), overall

    found = {
        title: {g.name: (g.num_sentences, g.mean_iou, g.overall_iou) for g in group(table, protocol)}
        for title, group in BREAKDOWNS.items()
    }
    length = {"3–4": (3, 4), "5–6": (5, 6), "7–9": (7, 9)}
    for name, (least, most) in length.items():
        chosen = [n for n, text in enumerate(texts) if least <= len(text.split()) <= most]
        if chosen:
            assert found["Length of the sentence"][name] == pytest.approx(means(chosen)), name
    share = [pixels[n][3] / (40 * 60) for n in range(len(texts))]
    size = {"under 1 %": (1e-9, 0.01), "3–10 %": (0.03, 0.1), "10–30 %": (0.1, 0.3), "over 30 %": (0.3, 1.1)}
    for name, (low, high) in size.items():
        chosen = [n for n in range(len(texts)) if low <= share[n] < high]
        assert found["Target's share of the picture"][name] == pytest.approx(means(chosen)), name
    spoken = [n for n, text in enumerate(texts) if {"left", "right", "side", "middle"} & set(text.split())]
    assert found["Words of location"]["with location words"] == pytest.approx(means(spoken))
    # Every target has the category `stripe`; in the first two pictures each has two others beside it.
    beside = [n for n, (image, *_, parts, _) in enumerate(sentences()) if image < 3 and parts]
    assert found["Others of the same category in the picture"]["2"] == pytest.approx(means(beside))
    of_category = [n for n, (_, ref, *_) in enumerate(sentences()) if ref != 30]
    assert found["Category"] == {"stripe": pytest.approx(means(of_category))}
