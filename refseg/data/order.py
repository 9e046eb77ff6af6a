"""Computes the order of an epoch. A pure function gives the expressions of each batch of each rank.

An epoch is a permutation of units (refs, sentences or images), cut into global batches. Each rank takes its contiguous
slice of every global batch. The permutation, the sentence drawn for a ref and the expressions of an image are computed
from hashes of (digest, seed, epoch, unit), so they do not depend on ranks, workers or earlier batches. Any batch can be
computed by itself. Therefore an epoch of any size starts and resumes at once.

For example, there are 10 units, a global batch of 4, and 2 ranks. Let the permutation of 0 to 9 be [7 2 9 4 | 0 5 1 8 |
3 6]. At step 1, rank 0 reads the units 0 and 5, and rank 1 reads the units 1 and 8. With remainder `pad`, the last
batch is filled from the start of the epoch. At step 2, rank 1 therefore reads the units 7 and 2, which are marked as
padding.

In a mix, a member with weight w and n units has exactly round(w * n) units in an epoch. Each unit occurs floor(w)
times. Some units occur once more; which ones is drawn for each epoch. With w = 1.5 and 4 units, an epoch has 6 units.
Each of the 4 units occurs once, and 2 of them occur a second time. Sentences are drawn for each copy independently.
"""

from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from refseg.arguments import check_number
from refseg.data.index import ManifestIndex
from refseg.data.permutation import Permutation, key_of, scramble
from refseg.errors import DatasetError, UsageError
from refseg.reading import Reading

ORDER_VERSION = 1
"""Version of the order. It increases when a release changes the order for the same (digest, seed, epoch, sampling)."""

_COUNTED_AT_ONCE = 1 << 18


class BatchPlan(NamedTuple):
    """The expressions of one batch of one rank, in order. The expressions of one unit are adjacent."""

    row_index: NDArray[np.int64]
    """`(B,)` row of each ref."""
    sentence_index: NDArray[np.int64]
    """`(B,)` position of each sentence within its ref."""
    is_pad: NDArray[np.bool_]
    """`(B,)` True for repeats that only fill the last global batch."""
    num_global: int
    """Number of expressions in the global batch, over all ranks and without padding."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cursor:
    """The position of a run in its epoch. It is equal on all ranks, and valid for any number of ranks and workers.

    Attributes:
        digest: Digest of the index (`ManifestIndex.digest`).
        seed: Seed of the order.
        epoch: Number of the epoch, from 0.
        samples_done: Number of units in the finished steps of this epoch, over all ranks.
        order: Name of the sampling and shuffling that determine the order (`Reading.order_name`).
        order_version: `ORDER_VERSION` of the release that made the order.
    """

    digest: str
    seed: int
    epoch: int
    samples_done: int
    order: str
    order_version: int = ORDER_VERSION

    def to_dict(self) -> dict[str, Any]:
        """Return the fields for a checkpoint. Their JSON text is shorter than 200 bytes."""
        return asdict(self)

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> "Cursor":
        """Create a cursor from the fields that `to_dict` returned.

        Raises:
            DatasetError: If a field is missing or has the wrong type, or a number is negative.
        """
        words = {name: fields.get(name) for name in ("digest", "order")}
        numbers = {name: fields.get(name) for name in ("seed", "epoch", "samples_done", "order_version")}
        is_whole = all(type(number) is int and number >= 0 for number in numbers.values())
        if not is_whole or not all(isinstance(word, str) for word in words.values()):
            raise DatasetError(
                f"cursor {fields!r}: expected {' and '.join(words)} as strings, and {', '.join(numbers)} as whole "
                "numbers of at least 0; use another checkpoint, or start a new run"
            )
        return cls(**words, **numbers)  # type: ignore[arg-type]  # compared above


@dataclass(frozen=True, eq=False)
class EpochOrder:
    """The order of one epoch over an index.

    Attributes:
        index: Index of the dataset. The descriptor contains the weights of a mix.
        reading: Specifies what a unit is, the size of a global batch, the seed, and whether units are shuffled.
        epoch: Number of the epoch, from 0.
        only: The units of the epoch, in order, if not all units of the index are wanted. It requires `shuffle` to be
            off.

    Raises:
        UsageError: If the epoch is below 0. If a member of a mix has no unit in the epoch because of a small weight. If
            the remainder is `drop` and the global batch is larger than the epoch.
    """

    index: ManifestIndex
    reading: Reading
    epoch: int
    only: NDArray[np.int64] | None = field(default=None, repr=False)
    _permutation: Permutation | None = field(init=False, repr=False)
    """Permutation of the positions in the epoch; None: units are not shuffled."""
    _shares: "tuple[_Share, ...]" = field(init=False, repr=False)
    """The parts of the members of a mix in the epoch; empty: each unit occurs once."""

    def __post_init__(self) -> None:
        check_number("epoch", self.epoch, least=0)
        assert self.only is None or not self.reading.shuffle, "a part of the units is for evaluation"
        # The dataclass is frozen, so that fields cannot be assigned here in the normal way.
        object.__setattr__(self, "_shares", self._weigh() if self.reading.shuffle else ())
        permutation = Permutation(self.num_units, self._key("order")) if self.reading.shuffle else None
        object.__setattr__(self, "_permutation", permutation)
        batch = self.reading.global_batch
        if self.reading.remainder == "drop" and self.num_units < batch:
            raise UsageError(
                f"{self.index.folder}: an epoch by {self.reading.sampling} has {self.num_units} samples, fewer than "
                f"one global batch of {batch}, so no sample is left to train on; make global_batch smaller, or fill "
                'the last batch with repeated samples: remainder = "pad"'
            )

    @property
    def num_units(self) -> int:
        """Number of refs, sentences or images in the epoch, with copies and without padding."""
        if self.only is not None:
            return len(self.only)
        return sum(share.total for share in self._shares) or self._num_distinct

    @property
    def num_steps(self) -> int:
        """Number of global batches, which is also the number of batches of each rank."""
        if self.reading.remainder == "drop":
            return self.num_units // self.reading.global_batch
        return -(-self.num_units // self.reading.global_batch)

    def units(self, step: int, *, rank: int, world_size: int) -> NDArray[np.int64]:
        """Return the `(global_batch / world_size,)` units of one rank at one step.

        Each copy of a unit has its own number. Copy c of unit u has the number c * (number of units in the index) + u.

        Args:
            step: Number of the step, 0 to `num_steps - 1`.
            rank: Rank, 0 to `world_size - 1`.
            world_size: Number of ranks, a divisor of the global batch.
        """
        # Positions past the end of the epoch are padding: they repeat units from its start.
        return self._units_at(self._positions(step, rank, world_size) % self.num_units)

    def plan(self, step: int, *, rank: int, world_size: int) -> BatchPlan:
        """Return the batch of one rank at one step.

        Args:
            step: Number of the step, 0 to `num_steps - 1`.
            rank: Rank, 0 to `world_size - 1`.
            world_size: Number of ranks, a divisor of the global batch.
        """
        start = step * self.reading.global_batch
        end = min(start + self.reading.global_batch, self.num_units)
        is_pad = self._positions(step, rank, world_size) >= self.num_units
        units = self.units(step, rank=rank, world_size=world_size)
        if self.reading.sampling != "images":
            return BatchPlan(*self._expressions(units), is_pad, num_global=end - start)
        in_batch = self._units_at(np.arange(start, end)) % self._num_distinct
        rows, sentences, numbers = self._expressions_of_images(units, is_pad)
        num_global = int(self._num_expressions(in_batch).sum())
        return BatchPlan(rows, sentences, np.repeat(is_pad, numbers), num_global)

    def seen_per_ref(self) -> NDArray[np.int64]:
        """Return, shape `(rows,)`, how often each ref occurs in the batches of the epoch.

        Padding and the samples that remainder `drop` leaves out are not counted.
        """
        seen = np.zeros(self.index.num_rows, np.int64)
        end = min(self.num_steps * self.reading.global_batch, self.num_units)
        for start in range(0, end, _COUNTED_AT_ONCE):
            units = self._units_at(np.arange(start, min(start + _COUNTED_AT_ONCE, end)))
            if self.reading.sampling == "images":
                rows, *_ = self._expressions_of_images(units, np.zeros(len(units), np.bool_))
            else:
                rows, _ = self._expressions(units)
            seen += np.bincount(rows, minlength=len(seen))
        return seen

    @property
    def _num_distinct(self) -> int:
        """Number of units in the index."""
        return {
            "ref": self.index.num_rows,
            "sentence": self.index.num_sentences,
            "images": self.index.num_images,
        }[self.reading.sampling]

    def _positions(self, step: int, rank: int, world_size: int) -> NDArray[np.int64]:
        """Return the positions in the epoch of one rank's batch. Positions after the end of the epoch are padding."""
        local = self.reading.global_batch // world_size
        start = step * self.reading.global_batch + rank * local
        return np.arange(start, start + local)

    def _weigh(self) -> "tuple[_Share, ...]":
        """Return the part of each member of a mix in the epoch. The result is empty if all weights are 1."""
        weights = {member.dataset: member.weight for member in self.index.descriptor.mix}
        if all(weight == 1 for weight in weights.values()):
            return ()
        index = self.index
        # Rows of one member are adjacent at least within a manifest, so its rows form a few runs. `first` and `end` are
        # the borders of each run: first of rows, then of the units that belong to these rows.
        first = np.flatnonzero(np.diff(index.row_dataset, prepend=-1))
        end = np.append(first[1:], index.num_rows)
        run_dataset = index.row_dataset[first]
        if self.reading.sampling == "sentence":
            first, end = index.sentence_start[first], index.sentence_start[end]
        elif self.reading.sampling == "images":  # an image belongs to one member only
            first, end = index.row_image[first], index.row_image[end - 1] + 1
        shares = []
        for number, dataset in enumerate(index.datasets):
            own = run_dataset == number
            num_units = int((end[own] - first[own]).sum())
            if not num_units:
                continue  # a member without a train split, whose evaluation images must not be in the training set
            total = round(weights[dataset] * num_units)
            if total == 0:
                raise UsageError(
                    f"{index.folder}: with weight {weights[dataset]:g} an epoch contains none of the {num_units} "
                    f"samples (by {self.reading.sampling}) of {dataset}; mix again with a larger weight, or without it"
                )
            chosen = Permutation(num_units, self._key(f"weight {dataset}"))
            shares.append(_Share(total, num_units, first[own], np.cumsum(end[own] - first[own]), chosen))
        return tuple(shares)

    def _units_at(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the numbers of the units (see `units`) at positions 0 to `num_units - 1` of the epoch."""
        if self.only is not None:
            return self.only[positions]
        if self._permutation is not None:
            positions = self._permutation(positions)
        if not self._shares:
            return positions
        # The members of a mix follow one another: with 6 and 3 units, positions 0 to 5 and 6 to 8.
        units = np.empty_like(positions)
        start = 0
        for share in self._shares:
            own = (positions >= start) & (positions < start + share.total)
            copies, numbers = share.units(positions[own] - start)
            units[own] = copies * self._num_distinct + numbers
            start += share.total
        return units

    def _expressions(self, units: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return `(units,)` rows and the sentence of each, for sampling by `ref` or `sentence`."""
        distinct = units % self._num_distinct
        start = self.index.sentence_start
        if self.reading.sampling == "sentence":
            rows = np.searchsorted(start, distinct, side="right") - 1
            return rows, distinct - start[rows]
        num_sentences = start[distinct + 1] - start[distinct]
        # The remainder of a 64-bit hash is uniform to one part in 10^18.
        drawn = self._hash("sentence", units) % num_sentences.astype(np.uint64)
        return distinct, drawn.astype(np.int64)

    def _expressions_of_images(
        self, units: NDArray[np.int64], is_pad: NDArray[np.bool_]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Return the row and sentence of each expression, and the number of expressions per image.

        The expressions of one image are adjacent. The shape of the numbers is `(units,)`. A padding image has one
        expression, because a batch cannot contain an image without expressions.

        For example, two images have 3 and 2 sentences, and at most 2 per image are wanted. `image` is [0 0 0 1 1] and
        `nth` is [0 1 2 0 1]. The sentences are sorted by image and then by hash. The sentences with `nth` 0 and 1
        therefore have the two lowest hashes of their image, and they are taken.
        """
        index = self.index
        copies, images = np.divmod(units, self._num_distinct)
        first = index.sentence_start[index.row_start[images]]
        available = index.sentence_start[index.row_start[images + 1]] - first
        wanted = np.where(is_pad, 1, self._num_expressions(images))
        # For each sentence of each image: `image` is the position of its image, `nth` its number within the image.
        image = np.repeat(np.arange(len(images)), available)
        nth = np.arange(len(image)) - np.repeat(np.cumsum(available) - available, available)
        positions = first[image] + nth
        if (wanted < available).any():
            drawn = self._hash("sentence", copies[image] * index.num_sentences + positions)
            # lexsort keeps the images in order, so `nth` is also a sentence's rank by hash within its image.
            chosen = np.lexsort((drawn, image))[nth < wanted[image]]
            positions = positions[np.sort(chosen)]
        rows = np.searchsorted(index.sentence_start, positions, side="right") - 1
        return rows, positions - index.sentence_start[rows], wanted

    def _num_expressions(self, images: NDArray[np.int64]) -> NDArray[np.int64]:
        index = self.index
        available = index.sentence_start[index.row_start[images + 1]] - index.sentence_start[index.row_start[images]]
        return (
            available
            if self.reading.expressions_per_image == "all"
            else np.minimum(available, self.reading.expressions_per_image)
        )

    def _key(self, purpose: str) -> np.uint64:
        return key_of(f"{self.index.order_key} {self.reading.seed} {self.epoch} {purpose}")

    def _hash(self, purpose: str, positions: NDArray[np.int64]) -> NDArray[np.uint64]:
        """Return a uniform 64-bit number for each position. It depends on purpose, seed, epoch and dataset."""
        return scramble(self._key(purpose), positions.astype(np.uint64))


class _Share(NamedTuple):
    """The part of one member of a mix in an epoch.

    For example, a member has weight 1.5, and its 4 units are the units 10, 11, 20 and 21 of the index. Then `total` is
    6, `num_units` is 4, `first` is [10, 20] and `end` is [2, 4]. Positions 0 to 3 are copy 0 of the four units in
    order. Positions 4 and 5 are copy 1 of two of the units. If `chosen` has the values 2 and 0 at 0 and 1, these are
    the units 20 and 10.
    """

    total: int
    """Number of units in the epoch, with copies."""
    num_units: int
    """Number of units of the member in the index."""
    first: NDArray[np.int64]
    """`(runs,)` the first unit of each run of adjacent units of the member."""
    end: NDArray[np.int64]
    """`(runs,)` number of the member's units up to the end of each run."""
    chosen: Permutation
    """Permutation of the member's units. Its first values are the units that occur once more than the others."""

    def units(self, positions: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the copies and the units, each `(n,)`, at positions 0 to `total - 1` of the member's part."""
        copies, nth = np.divmod(positions, self.num_units)
        more = copies == self.total // self.num_units
        nth[more] = self.chosen(nth[more])
        run = np.searchsorted(self.end, nth, side="right")
        return copies, self.first[run] + nth - (self.end - np.diff(self.end, prepend=0))[run]


class BatchDiversity(NamedTuple):
    """The average variety of a global batch.

    Expressions of one image carry less information than those of several images.
    """

    expressions: float
    """Number of expressions in the global batch."""
    images: float
    """Number of distinct images in the global batch."""
    effective_images: float
    """Effective number of images, (sum of n)^2 / (sum of n^2) with n the number of expressions of an image (Kish 1965,
    "Survey Sampling", Sec. 11.7). It equals `images` if all images have equally many expressions."""


def batch_diversity(order: EpochOrder, *, num_steps: int = 64) -> BatchDiversity:
    """Measure the first batches of an epoch.

    Args:
        order: The epoch.
        num_steps: Largest number of global batches to measure.
    """
    found = []
    for step in range(min(num_steps, order.num_steps)):
        plan = order.plan(step, rank=0, world_size=1)
        images = order.index.row_image[plan.row_index[~plan.is_pad]]
        numbers = np.unique(images, return_counts=True)[1]
        found.append((len(images), len(numbers), len(images) ** 2 / (numbers**2).sum()))
    return BatchDiversity(*np.mean(found, axis=0).tolist())
