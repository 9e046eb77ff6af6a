"""The permutation: each value occurs once, and all orders are equally likely."""

import hashlib
import itertools
import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refseg.data.permutation import Permutation, key_of, scramble

MASK = 2**64 - 1


def plain_scramble(key: int, position: int) -> int:
    """`scramble` in Python's integers."""
    x = key ^ ((position + 1) * 0x9E3779B97F4A7C15 & MASK)
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 & MASK
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB & MASK
    return x ^ (x >> 31)


def plain_permutation(size: int, words: str) -> list[int]:
    """`Permutation` in Python's integers, cell by cell."""
    key = int.from_bytes(hashlib.sha256(words.encode()).digest()[:8], "little")
    height = next(number for number in itertools.count(2, 2) if number * number >= size)
    width = math.ceil(size / height)
    values = []
    for place in range(size):
        row, column = divmod(place, width)
        while True:
            for number in range(16):
                round_key = plain_scramble(key, number)
                if number % 2 == 0:
                    row = (row + (plain_scramble(round_key, column) >> 32) * height // 2**32) % height
                else:
                    column = (column + (plain_scramble(round_key, row) >> 32) * width // 2**32) % width
            if row * width + column < size:
                break
        values.append(row * width + column)
    return values


def permute(size: int, key: int | str) -> list[int]:
    words = key_of(key) if isinstance(key, str) else np.uint64(key)
    return Permutation(size, words)(np.arange(size)).tolist()


def test_each_value_comes_once_for_any_size() -> None:
    for size in range(1, 701):
        assert sorted(permute(size, size)) == list(range(size))


@pytest.mark.parametrize("size", [65_536, 65_537, 999_983, 1_414_562])
def test_each_value_comes_once_for_large_sizes(size: int) -> None:
    assert np.bincount(permute(size, "large"), minlength=size).tolist() == [1] * size


@settings(max_examples=40, deadline=None)
@given(size=st.integers(1, 120), words=st.text(max_size=5))
def test_it_is_what_plain_integers_give(size: int, words: str) -> None:
    assert permute(size, words) == plain_permutation(size, words)


@settings(max_examples=40, deadline=None)
@given(size=st.integers(1, 2**61), data=st.data())
def test_any_places_can_be_asked_for_alone(size: int, data: st.DataObject) -> None:
    places = data.draw(st.lists(st.integers(0, size - 1), min_size=1, max_size=8, unique=True))
    permutation = Permutation(size, key_of("x"))

    together = permutation(np.array(places)).tolist()

    assert together == [int(permutation(np.array([place]))[0]) for place in places]
    assert len(set(together)) == len(places)
    assert all(0 <= value < size for value in together)


@pytest.mark.slow
@pytest.mark.parametrize("size", [2, 3, 4])
def test_every_order_of_a_few_values_is_as_likely(size: int) -> None:
    # Chi-square over 2, 6 or 24 orders: its mean is one less, its variance twice that; five deviations.
    found = Counter(tuple(permute(size, key)) for key in range(1500))
    orders = math.factorial(size)
    expected = 1500 / orders
    chi_square = sum((number - expected) ** 2 / expected for number in found.values())
    chi_square += (orders - len(found)) * expected

    assert chi_square <= orders - 1 + 5 * math.sqrt(2 * (orders - 1))


@pytest.mark.slow
@pytest.mark.parametrize("size", [9, 50])
def test_every_value_is_as_likely_at_every_place_and_beside_every_other(size: int) -> None:
    # 1500 keys: at a place, and one place after another, each value (or pair) so often; chi-square, five deviations.
    tables = np.array([permute(size, key) for key in range(1500)])
    places = np.array([np.bincount(tables[:, place], minlength=size) for place in range(size)])
    steps = np.bincount(((tables[:, 1:] - tables[:, :-1]) % size).ravel(), minlength=size)[1:]
    for counts, freedom in ((places, (size - 1) ** 2), (steps, size - 2)):
        expected = counts.sum() / counts.size
        chi_square = ((counts - expected) ** 2 / expected).sum()
        assert chi_square <= freedom + 5 * math.sqrt(2 * freedom) + 1


def test_orders_with_an_odd_number_of_swaps_come_too() -> None:
    # 9 values fill a square of 3 x 3, all of whose shifts are even: the reason for an even height.
    odd = sum(
        sum(order[i] > order[j] for i in range(9) for j in range(i + 1, 9)) % 2
        for order in (permute(9, key) for key in range(400))
    )

    assert 150 <= odd <= 250  # 200 +- 10; five deviations


def test_another_key_gives_another_order() -> None:
    assert permute(100, "seed 0 epoch 1") != permute(100, "seed 0 epoch 2")


def test_scrambled_positions_are_those_of_plain_integers() -> None:
    key = 0xFEDCBA9876543210
    positions = [0, 1, 2**40, 2**64 - 1]
    found = scramble(np.uint64(key), np.array(positions, np.uint64))

    assert found.tolist() == [plain_scramble(key, position) for position in positions]
