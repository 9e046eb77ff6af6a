"""The epoch as a pure function: which expressions are in which batch, for any ranks and any point of resuming.

An epoch is a permutation of units (refs, sentences or images), cut into global batches; a rank takes its contiguous
slice of each. Nothing depends on who asks: the permutation, the sentence of a ref and the expressions of an image come
from hashes of (digest, seed, epoch, unit). Only what a batch needs is computed: an epoch of any size begins, and goes
on anywhere, at once.

In a mix, an epoch has a unit of a member with weight w on average w times: of n units exactly round(w * n) are there,
floor(w) copies of each and one more of some, chosen anew each epoch. Each copy draws its sentences for itself.
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
"""Of the order: raised by a release that gives another one for the same (digest, seed, epoch, sampling)."""

_COUNTED_AT_ONCE = 1 << 18


class BatchPlan(NamedTuple):
    """The expressions of one batch of one rank, in order; those of one unit are adjacent."""

    row_index: NDArray[np.int64]
    """`(B,)` row of each ref."""
    sentence_index: NDArray[np.int64]
    """`(B,)` position of each sentence within its ref."""
    is_pad: NDArray[np.bool_]
    """`(B,)` True for repeats that only fill the last global batch."""
    num_global: int
    """Expressions that are not padding in the whole global batch, over all ranks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cursor:
    """How far a run is: the same on every rank, and enough to go on with any number of ranks and workers.

    Attributes:
        digest: Of the index (`ManifestIndex.digest`).
        seed: Of the order.
        epoch: From 0.
        samples_done: Units of this epoch, over all ranks, whose step is done.
        order: What else the order depends on (`Reading.order_name`).
        order_version: `ORDER_VERSION` of the release that made the order.
    """

    digest: str
    seed: int
    epoch: int
    samples_done: int
    order: str
    order_version: int = ORDER_VERSION

    def to_dict(self) -> dict[str, Any]:
        """For a checkpoint: under 200 bytes as JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> "Cursor":
        """Read what `to_dict` gave.

        Raises:
            DatasetError: If a field is missing, no whole number, or below 0.
        """
        words = {name: fields.get(name) for name in ("digest", "order")}
        numbers = {name: fields.get(name) for name in ("seed", "epoch", "samples_done", "order_version")}
        is_whole = all(type(number) is int and number >= 0 for number in numbers.values())
        if not is_whole or not all(isinstance(word, str) for word in words.values()):
            raise DatasetError(
                f"cursor {fields!r}: expected the words {' and '.join(words)}, and {', '.join(numbers)} as whole "
                "numbers from 0 on; use another checkpoint, or start a new run"
            )
        return cls(**words, **numbers)  # type: ignore[arg-type]  # compared above


@dataclass(frozen=True, eq=False)
class EpochOrder:
    """One epoch over an index.

    Attributes:
        index: What is read; the weights of a mix are in its descriptor.
        reading: What a unit is, how many make a global batch, the seed, and whether units are shuffled.
        epoch: From 0.
        only: The units there are, in order, where not all of the index's are wanted; only without `shuffle`.

    Raises:
        UsageError: If the epoch is below 0, a weight leaves nothing of a member, or, with remainder `drop`, the global
            batch is larger than the epoch.
    """

    index: ManifestIndex
    reading: Reading
    epoch: int
    only: NDArray[np.int64] | None = field(default=None, repr=False)
    _permutation: Permutation | None = field(init=False, repr=False)
    """Of the places of the epoch; None: they are in order."""
    _shares: "tuple[_Share, ...]" = field(init=False, repr=False)
    """Of the members of a mix; empty: each unit is there once."""

    def __post_init__(self) -> None:
        check_number("epoch", self.epoch, least=0)
        assert self.only is None or not self.reading.shuffle, "a part of the units is for evaluation"
        # The dataclass is frozen because the epoch is a value; this is part of its construction.
        object.__setattr__(self, "_shares", self._weigh() if self.reading.shuffle else ())
        permutation = Permutation(self.num_units, self._key("order")) if self.reading.shuffle else None
        object.__setattr__(self, "_permutation", permutation)
        batch = self.reading.global_batch
        if self.reading.remainder == "drop" and self.num_units < batch:
            raise UsageError(
                f"{self.index.folder}: an epoch by {self.reading.sampling} has {self.num_units} samples, fewer than "
                f"one global batch of {batch}, so nothing is left to train on; make global_batch smaller, or fill the "
                'last batch with repeats: remainder = "pad"'
            )

    @property
    def num_units(self) -> int:
        """Refs, sentences or images in the epoch, copies included, without padding."""
        if self.only is not None:
            return len(self.only)
        return sum(share.total for share in self._shares) or self._num_distinct

    @property
    def num_steps(self) -> int:
        """Global batches: the number of batches of every rank."""
        if self.reading.remainder == "drop":
            return self.num_units // self.reading.global_batch
        return -(-self.num_units // self.reading.global_batch)

    def units(self, step: int, *, rank: int, world_size: int) -> NDArray[np.int64]:
        """`(global_batch / world_size,)` units of one rank at one step; each copy of a unit has a number of its own.

        Copy c of unit u of the index is c * (units of the index) + u.

        Args:
            step: 0 to `num_steps - 1`.
            rank: 0 to `world_size - 1`.
            world_size: Ranks; divides the global batch.
        """
        return self._units_at(self._places(step, rank, world_size) % self.num_units)  # padding starts from the front

    def plan(self, step: int, *, rank: int, world_size: int) -> BatchPlan:
        """The batch of one rank at one step.

        Args:
            step: 0 to `num_steps - 1`.
            rank: 0 to `world_size - 1`.
            world_size: Ranks; divides the global batch.
        """
        start = step * self.reading.global_batch
        end = min(start + self.reading.global_batch, self.num_units)
        is_pad = self._places(step, rank, world_size) >= self.num_units
        units = self.units(step, rank=rank, world_size=world_size)
        if self.reading.sampling != "images":
            return BatchPlan(*self._expressions(units), is_pad, num_global=end - start)
        in_batch = self._units_at(np.arange(start, end)) % self._num_distinct
        rows, sentences, numbers = self._expressions_of_images(units, is_pad)
        num_global = int(self._num_expressions(in_batch).sum())
        return BatchPlan(rows, sentences, np.repeat(is_pad, numbers), num_global)

    def seen_per_ref(self) -> NDArray[np.int64]:
        """`(rows,)` how often the epoch gives each ref, counted from its batches: the same for any ranks and workers.

        Padding is not counted; what `drop` leaves over is not given.
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
        """Units of the index."""
        return {
            "ref": self.index.num_rows,
            "sentence": self.index.num_sentences,
            "images": self.index.num_images,
        }[self.reading.sampling]

    def _places(self, step: int, rank: int, world_size: int) -> NDArray[np.int64]:
        """Positions in the epoch; those past its end are padding."""
        local = self.reading.global_batch // world_size
        start = step * self.reading.global_batch + rank * local
        return np.arange(start, start + local)

    def _weigh(self) -> "tuple[_Share, ...]":
        """How often an epoch has the units of each member of a mix; nothing if all weights are 1."""
        weights = {member.dataset: member.weight for member in self.index.descriptor.mix}
        if all(weight == 1 for weight in weights.values()):
            return ()
        index = self.index
        # Rows of one member are adjacent at least within a manifest: a few runs of rows, so of units.
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
                continue  # a member without a train split, there for its evaluation images
            total = round(weights[dataset] * num_units)
            if total == 0:
                raise UsageError(
                    f"{index.folder}: weight {weights[dataset]:g} leaves none of the {num_units} samples (by "
                    f"{self.reading.sampling}) of {dataset} in an epoch; mix again with a larger weight, or without it"
                )
            chosen = Permutation(num_units, self._key(f"weight {dataset}"))
            shares.append(_Share(total, num_units, first[own], np.cumsum(end[own] - first[own]), chosen))
        return tuple(shares)

    def _units_at(self, places: NDArray[np.int64]) -> NDArray[np.int64]:
        """Numbers of the units (see `units`) at places 0 to `num_units - 1` of the epoch."""
        if self.only is not None:
            return self.only[places]
        if self._permutation is not None:
            places = self._permutation(places)
        if not self._shares:
            return places
        units = np.empty_like(places)
        start = 0
        for share in self._shares:
            own = (places >= start) & (places < start + share.total)
            copies, numbers = share.units(places[own] - start)
            units[own] = copies * self._num_distinct + numbers
            start += share.total
        return units

    def _expressions(self, units: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """`(units,)` rows and sentences within them, sampling by `ref` or `sentence`."""
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
        """Rows and sentences within them, those of one image adjacent, and `(units,)` how many each image has.

        A padding image has one, only to be there.
        """
        index = self.index
        copies, images = np.divmod(units, self._num_distinct)
        first = index.sentence_start[index.row_start[images]]
        available = index.sentence_start[index.row_start[images + 1]] - first
        wanted = np.where(is_pad, 1, self._num_expressions(images))
        # All sentences of all images in turn: `image` says whose, `nth` which.
        image = np.repeat(np.arange(len(images)), available)
        nth = np.arange(len(image)) - np.repeat(np.cumsum(available) - available, available)
        positions = first[image] + nth
        if (wanted < available).any():
            drawn = self._hash("sentence", copies[image] * index.num_sentences + positions)
            # Of each image the lowest hashes; `image` is sorted, so `nth` is also the rank among them.
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
        """A uniform 64-bit number for each position, different for each purpose, seed, epoch and dataset."""
        return scramble(self._key(purpose), positions.astype(np.uint64))


class _Share(NamedTuple):
    """What an epoch has of one member of a mix."""

    total: int
    """Units, copies included."""
    num_units: int
    first: NDArray[np.int64]
    """`(runs,)` the first unit of each run of units that are the member's."""
    end: NDArray[np.int64]
    """`(runs,)` how many of the member's units there are up to the end of each run."""
    chosen: Permutation
    """Its first units are there once more than the others."""

    def units(self, places: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """`(n,)` copies and units of the index at places 0 to `total - 1`: whole copies, then the chosen ones."""
        copies, nth = np.divmod(places, self.num_units)
        more = copies == self.total // self.num_units
        nth[more] = self.chosen(nth[more])
        run = np.searchsorted(self.end, nth, side="right")
        return copies, self.first[run] + nth - (self.end - np.diff(self.end, prepend=0))[run]


class BatchDiversity(NamedTuple):
    """How much a batch holds, on average: k expressions of one image say less than k of several images."""

    expressions: float
    """In the global batch."""
    images: float
    """Distinct images in the global batch."""
    effective_images: float
    """As many images with equally many expressions each would weigh alike: (sum of n)^2 / (sum of n^2), n the number
    of expressions of an image (Kish 1965, "Survey Sampling", Sec. 11.7)."""


def batch_diversity(order: EpochOrder, *, num_steps: int = 64) -> BatchDiversity:
    """Measure the first batches of an epoch.

    Args:
        order: The epoch.
        num_steps: Global batches to look at, fewer where the epoch has fewer.
    """
    found = []
    for step in range(min(num_steps, order.num_steps)):
        plan = order.plan(step, rank=0, world_size=1)
        images = order.index.row_image[plan.row_index[~plan.is_pad]]
        numbers = np.unique(images, return_counts=True)[1]
        found.append((len(images), len(numbers), len(images) ** 2 / (numbers**2).sum()))
    return BatchDiversity(*np.mean(found, axis=0).tolist())
