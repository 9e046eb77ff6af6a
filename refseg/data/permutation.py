"""A random permutation with random access: place -> value, without a table of all values.

A Feistel network over the rectangle height x width that just holds the values: round by round, one coordinate is
shifted by a hash of the other. That can be undone whatever the hash, so it is a permutation; what falls outside the
values is sent through again ("cycle walking": Black and Rogaway 2002, "Ciphers with Arbitrary Finite Domains", Sec. 3).
The numbers are ours, so that another release of a library changes no run.
"""

import hashlib
import math

import numpy as np
from numpy.typing import NDArray

_ROUNDS = 16  # few values mix slowest: of 5, their 120 orders are uneven with 8, and even as far as 10^6 keys can show
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_HALF = np.uint64(32)


def key_of(words: str) -> np.uint64:
    """A 64-bit key, another for other words."""
    return np.uint64(int.from_bytes(hashlib.sha256(words.encode()).digest()[:8], "little"))


def scramble(key: np.uint64, positions: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """A uniform 64-bit number for each position, others with another key."""
    # SplitMix64 (Steele et al. 2014, "Fast Splittable Pseudorandom Number Generators") at `key + position`.
    x = key ^ ((positions + np.uint64(1)) * _GOLDEN)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


class Permutation:
    """A permutation of 0 to `size - 1`, drawn by a key.

    Attributes:
        size: Number of values, below 2^62.
    """

    def __init__(self, size: int, key: np.uint64) -> None:
        self.size = size
        # An even height: shifts of an odd number of cells are even permutations, and half of all could not come.
        height = math.isqrt(max(size - 1, 0)) + 1
        height += height % 2
        self._height = np.uint64(height)
        self._width = np.uint64(max(-(-size // height), 1))
        self._keys = scramble(key, np.arange(_ROUNDS, dtype=np.uint64))

    def __call__(self, places: NDArray[np.int64]) -> NDArray[np.int64]:
        """`(n,)` values at some places, each 0 to `size - 1`."""
        values = self._pass(places.astype(np.uint64))
        outside = np.flatnonzero(values >= self.size)
        while len(outside):  # few: the rectangle has at most two lines more than values
            values[outside] = self._pass(values[outside])
            outside = outside[values[outside] >= self.size]
        return values.astype(np.int64)

    def _pass(self, cells: NDArray[np.uint64]) -> NDArray[np.uint64]:
        """Once through the network, cells of the rectangle to cells of the rectangle."""
        row, column = np.divmod(cells, self._width)
        for number, key in enumerate(self._keys):
            if number % 2:
                column = (column + self._shift(key, row, self._width)) % self._width
            else:
                row = (row + self._shift(key, column, self._height)) % self._height
        return row * self._width + column

    def _shift(self, key: np.uint64, other: NDArray[np.uint64], span: np.uint64) -> NDArray[np.uint64]:
        """A number below `span`, at most 2^32, for each: the upper half of a hash, scaled."""
        return (scramble(key, other) >> _HALF) * span >> _HALF
