import numpy as np

from refseg.evaluation.overlay import FILL, OUTLINE, draw_overlay


def rectangle(top: int, left: int, bottom: int, right: int) -> np.ndarray:
    mask = np.zeros((40, 40), bool)
    mask[top:bottom, left:right] = True
    return mask


def test_the_prediction_is_tinted_and_the_rest_left_alone() -> None:
    picture = np.full((40, 40, 3), 100, np.uint8)
    predicted = rectangle(5, 5, 20, 20)
    drawn = draw_overlay(picture, predicted)

    assert (drawn[~predicted] == 100).all()
    assert drawn[12, 12].tolist() == [int(0.45 * 100 + 0.55 * colour) for colour in FILL]
    assert drawn[5, 5].tolist() == list(FILL)
    assert (picture == 100).all()


def test_the_target_is_outlined_inside_its_border_also_at_the_pictures_edge() -> None:
    picture = np.zeros((40, 40, 3), np.uint8)
    drawn = draw_overlay(picture, rectangle(0, 0, 0, 0), rectangle(20, 0, 40, 20))

    yellow = (drawn == OUTLINE).all(-1)
    assert yellow[20, 10]
    assert yellow[30, 0]
    assert yellow[39, 10]
    assert not yellow[30, 10]
    assert not drawn[:20].any()
