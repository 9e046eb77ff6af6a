"""A random permutation with random access. It computes the value at any position without a table of all values.

It is a Feistel network over a rectangle of height x width cells. The number of cells is slightly larger than the number
of values. Each round shifts one coordinate of a cell by a hash of the other coordinate. A shift can be undone by
subtracting the same hash, so each round is a permutation of the cells. For example, 5 values are in a rectangle of 4 x
2 cells, and value 3 is in row 1, column 1. A round with the shift 2 for column 1 moves it to row 3, column 1, which is
cell 7. Cell 7 is outside the values 0 to 4, so it passes through the network again until it is inside. This is "cycle
walking" (Black and Rogaway 2002, "Ciphers with Arbitrary Finite Domains", Sec. 3). The network is implemented here so
that no library's release changes a run.
"""

import hashlib
import math

import numpy as np
from numpy.typing import NDArray

# Few values need the most rounds. For 5 values, 8 rounds give their 120 orders unequally often; with 16 rounds 10^6
# keys show no difference.
_ROUNDS = 16
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_HALF = np.uint64(32)


def key_of(words: str) -> np.uint64:
    """Return a 64-bit key. It is the start of the SHA-256 of the words."""
    return np.uint64(int.from_bytes(hashlib.sha256(words.encode()).digest()[:8], "little"))


def scramble(key: np.uint64, positions: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return a uniform 64-bit number for each position. It depends on the key."""
    # The output function of SplitMix64 (Steele et al. 2014, "Fast Splittable Pseudorandom Number Generators").
    x = key ^ ((positions + np.uint64(1)) * _GOLDEN)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


class Permutation:
    """A permutation of 0 to `size - 1`, determined by a key.

    Attributes:
        size: Number of values, below 2^62.
    """

    def __init__(self, size: int, key: np.uint64) -> None:
        self.size = size
        # The height is even: rotations of an odd number of cells are even permutations, so that with an odd height and
        # width half of all permutations could not occur.
        height = math.isqrt(max(size - 1, 0)) + 1
        height += height % 2
        self._height = np.uint64(height)
        self._width = np.uint64(max(-(-size // height), 1))
        self._keys = scramble(key, np.arange(_ROUNDS, dtype=np.uint64))

    def __call__(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the `(n,)` values at positions 0 to `size - 1`."""
        values = self._pass(positions.astype(np.uint64))
        outside = np.flatnonzero(values >= self.size)
        while len(outside):  # few: the rectangle exceeds the values by at most two lines
            values[outside] = self._pass(values[outside])
            outside = outside[values[outside] >= self.size]
        return values.astype(np.int64)

    def _pass(self, cells: NDArray[np.uint64]) -> NDArray[np.uint64]:
        """Return the cells to which all rounds of the network map the given cells."""
        row, column = np.divmod(cells, self._width)
        for number, key in enumerate(self._keys):
            if number % 2:
                column = (column + self._shift(key, row, self._width)) % self._width
            else:
                row = (row + self._shift(key, column, self._height)) % self._height
        return row * self._width + column

    def _shift(self, key: np.uint64, other: NDArray[np.uint64], span: np.uint64) -> NDArray[np.uint64]:
        """Return a number below `span` (at most 2^32) for each coordinate.

        The number is the upper half h of the hash, scaled to h * span / 2^32 and rounded down. For example, span 4 and
        h = 2^31 give 2.
        """
        return (scramble(key, other) >> _HALF) * span >> _HALF
