import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pycocotools import mask as coco

from refseg.evaluation.run_lengths import draw_runs, encode_runs


def test_runs_go_down_the_columns_and_start_with_zeros() -> None:
    mask = np.array([[0, 1, 1], [0, 0, 1]], bool)

    assert encode_runs(mask).tolist() == [2, 1, 1, 2]
    assert encode_runs(~mask).tolist() == [0, 2, 1, 1, 2]


@pytest.mark.parametrize(("value", "runs"), [(False, [6]), (True, [0, 6])])
def test_masks_of_one_value_are_one_run(value: bool, runs: list[int]) -> None:
    assert encode_runs(np.full((2, 3), value)).tolist() == runs


@given(st.integers(1, 7), st.integers(1, 7), st.randoms(use_true_random=False))
def test_drawing_undoes_encoding_and_pycocotools_reads_the_same(height: int, width: int, random) -> None:
    mask = np.array([[random.random() < 0.5 for _ in range(width)] for _ in range(height)])
    runs = encode_runs(mask)

    assert np.array_equal(draw_runs(runs, (height, width)), mask)
    compressed = coco.frPyObjects({"size": [height, width], "counts": runs.tolist()}, height, width)
    assert np.array_equal(coco.decode(compressed), mask)
