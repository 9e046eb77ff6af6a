import re

import numpy as np
import pytest

from refseg.evaluation.outlines import outline_path


def interior(path: str, height: int, width: int) -> np.ndarray:
    """The pixels within a path by the even-odd rule: those with an odd number of vertical edges to their left."""
    crossings = np.zeros((height, width + 1), int)
    for ring in re.findall(r"M(\d+) (\d+)([^z]*)z", path):
        x, y = int(ring[0]), int(ring[1])
        for kind, length in re.findall(r"([hv])(-?\d+)", ring[2]):
            if kind == "h":
                x += int(length)
            else:
                crossings[min(y, y + int(length)) : max(y, y + int(length)), x] += 1
                y += int(length)
        assert (x, y) == (int(ring[0]), int(ring[1]))
    return np.cumsum(crossings, axis=1)[:, :width] % 2 == 1


@pytest.mark.parametrize("seed", range(4))
def test_the_interior_of_an_outline_is_the_mask(seed: int) -> None:
    mask = np.random.default_rng(seed).random((9, 13)) < (0.2, 0.5, 0.8, 1.1)[seed]

    assert (interior(outline_path(mask), 9, 13) == mask).all()


def test_a_ring_has_one_edge_for_each_side_and_holes_are_rings_of_their_own() -> None:
    mask = np.zeros((6, 6), bool)
    mask[1:5, 1:5] = True
    assert outline_path(mask) == "M1 1h4v4h-4v-4z"

    mask[2:4, 2:4] = False
    assert outline_path(mask) == "M1 1h4v4h-4v-4zM2 2h2v2h-2v-2z"
    assert outline_path(mask & False) == ""
