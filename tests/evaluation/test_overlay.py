import re
from importlib import resources

import numpy as np
import pytest

from refseg.evaluation.overlay import GAIN, LOSS, PREDICTION, TARGET, draw_overlay

WITHOUT_CONES = {
    "long": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "middle": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "short": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}
"""What linear RGB looks like without one kind of cone: Machado et al. 2009, Table 1, severity 1."""


def rectangle(top: int, left: int, bottom: int, right: int) -> np.ndarray:
    mask = np.zeros((40, 40), bool)
    mask[top:bottom, left:right] = True
    return mask


def test_a_mask_is_outlined_and_the_object_keeps_its_colour() -> None:
    picture = np.full((40, 40, 3), 100, np.uint8)
    drawn = draw_overlay(picture, rectangle(5, 5, 25, 25))

    assert (drawn[8:22, 8:22] == 100).all()
    assert (drawn[~rectangle(4, 4, 26, 26)] == 100).all()
    assert (drawn[5, 5:25] == PREDICTION).all()
    assert (drawn[4, 5:25] < 30).all()
    assert (picture == 100).all()


def test_an_outline_is_closed_at_the_edge_of_the_picture() -> None:
    drawn = draw_overlay(np.full((40, 40, 3), 100, np.uint8), rectangle(20, 0, 40, 20))

    cyan = (drawn == PREDICTION).all(-1)
    assert cyan[20, 10]
    assert cyan[30, 0]
    assert cyan[39, 10]
    assert not cyan[30, 10]


@pytest.mark.parametrize("pair", [(TARGET, PREDICTION), (GAIN, LOSS)])
@pytest.mark.parametrize("missing", WITHOUT_CONES)
def test_colours_of_masks_differ_for_readers_without_one_kind_of_cone(
    missing: str, pair: tuple[tuple[int, int, int], tuple[int, int, int]]
) -> None:
    seen = []
    for colour in pair:
        linear = np.where(
            np.array(colour) <= 10, np.array(colour) / 255 / 12.92, ((np.array(colour) / 255 + 0.055) / 1.055) ** 2.4
        )
        seen.append(_lab((np.array(WITHOUT_CONES[missing]) @ linear).clip(0, 1)))

    assert np.linalg.norm(seen[0] - seen[1]) > 25  # CIE 1976; 2.3 is just noticeable


def _lab(linear: np.ndarray) -> np.ndarray:
    """CIELAB under D65 of linear RGB."""
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    shares = to_xyz @ linear / [0.9505, 1.0, 1.089]
    x, y, z = np.where(shares > 216 / 24389, np.cbrt(shares), (24389 / 27 * shares + 16) / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def test_pages_draw_masks_in_these_colours() -> None:
    style = (resources.files("refseg.evaluation") / "templates/look.css").read_text("utf-8")
    written = dict(re.findall(r"--(target|prediction|gain|loss): #(\w{6})", style))

    colours = {"target": TARGET, "prediction": PREDICTION, "gain": GAIN, "loss": LOSS}
    assert written == {name: bytes(colour).hex() for name, colour in colours.items()}
