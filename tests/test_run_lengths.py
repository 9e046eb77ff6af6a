import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pycocotools import mask as coco

from refseg.errors import AnnotationError
from refseg.run_lengths import count_ones, count_shared, draw_runs, encode_runs, expand_counts


def random_mask(height: int, width: int, random) -> np.ndarray:
    share = random.random()
    return np.array([[random.random() < share for _ in range(width)] for _ in range(height)])


def test_runs_go_down_the_columns_and_start_with_zeros() -> None:
    mask = np.array([[0, 1, 1], [0, 0, 1]], bool)

    assert encode_runs(mask).tolist() == [2, 1, 1, 2]
    assert encode_runs(~mask).tolist() == [0, 2, 1, 1, 2]


@pytest.mark.parametrize(("value", "runs"), [(False, [6]), (True, [0, 6])])
def test_masks_of_one_value_are_one_run(value: bool, runs: list[int]) -> None:
    assert encode_runs(np.full((2, 3), value)).tolist() == runs


@given(st.integers(1, 7), st.integers(1, 7), st.randoms(use_true_random=False))
def test_drawing_undoes_encoding_and_pycocotools_reads_the_same(height: int, width: int, random) -> None:
    mask = random_mask(height, width, random)
    runs = encode_runs(mask)

    assert np.array_equal(draw_runs(runs, (height, width)), mask)
    compressed = coco.frPyObjects({"size": [height, width], "counts": runs.tolist()}, height, width)
    assert np.array_equal(coco.decode(compressed), mask)
    assert expand_counts(compressed["counts"]) == runs.tolist()


@given(st.integers(1, 7), st.integers(1, 7), st.randoms(use_true_random=False))
def test_shared_pixels_are_counted_as_if_both_masks_were_drawn(height: int, width: int, random) -> None:
    first, second = random_mask(height, width, random), random_mask(height, width, random)

    assert count_shared(encode_runs(first), encode_runs(second)) == np.count_nonzero(first & second)
    assert count_ones(encode_runs(first)) == np.count_nonzero(first)


def test_empty_runs_within_a_mask_change_no_count() -> None:
    # Two ones, an empty run of zeros, two more: four ones, as another program may write them.
    assert count_shared(np.array([1, 2, 0, 2, 1], np.uint32), np.array([2, 4], np.uint32)) == 3
    assert count_shared(np.array([2, 4], np.uint32), np.array([1, 2, 0, 2, 1], np.uint32)) == 3


@pytest.mark.parametrize("text", [b"\xff", b"o", b"PPPPPPPPP"])
def test_damaged_compressed_runs_are_refused(text: bytes) -> None:
    with pytest.raises(AnnotationError, match="compressed run lengths are damaged"):
        expand_counts(text)
