"""The epoch as a pure function: which expressions are in which batch, for any ranks and any point of resuming.

An epoch is a permutation of units (refs, sentences or images), cut into global batches; a rank takes its contiguous
slice of each. Nothing depends on who asks: the permutation, the sentence of a ref and the expressions of an image come
from a hash of (digest, seed, epoch, unit) that is ours, so that another release of a library changes no run.

In a mix, an epoch has a unit of a member with weight w on average w times: of n units exactly round(w * n) are there,
floor(w) copies of each and one more of some, chosen anew each epoch. Each copy draws its sentences for itself.
"""

import hashlib
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from refseg.data.index import ManifestIndex
from refseg.errors import DatasetError, UsageError

Sampling = Literal["ref", "sentence", "images"]
"""What a unit is. `ref`: each ref once, with one random sentence. `sentence`: each sentence once. `images`: each image
once, with `expressions_per_image` of its sentences."""
Remainder = Literal["drop", "pad"]
"""What happens to the last units that fill no global batch."""


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
    """

    digest: str
    seed: int
    epoch: int
    samples_done: int

    def to_dict(self) -> dict[str, Any]:
        """For a checkpoint: under 200 bytes as JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> "Cursor":
        """Read what `to_dict` gave.

        Raises:
            DatasetError: If the fields are others.
        """
        try:
            return cls(
                digest=str(fields["digest"]),
                **{name: int(fields[name]) for name in ("seed", "epoch", "samples_done")},
            )
        except (KeyError, TypeError, ValueError) as error:
            raise DatasetError(
                f"cursor {fields!r}: expected digest, seed, epoch and samples_done ({error}); use another checkpoint"
            ) from error


@dataclass(frozen=True, eq=False, kw_only=True)
class EpochOrder:
    """One epoch over an index.

    Attributes:
        index: What is read; the weights of a mix are in its descriptor.
        sampling: What a unit is.
        expressions_per_image: With `images`: how many sentences of each image, chosen anew each epoch without
            repetition from all sentences of all its refs; "all" takes all. An image with fewer gives what it has.
        global_batch: Units per step over all ranks.
        remainder: `drop` for training; `pad` repeats units, marked, so that every unit is there exactly once.
        shuffle: False: units in the index's order, each once, whatever a mix's weights: for evaluation. The choice of
            sentences stays random either way.
        seed: Of the order and of the choice of sentences.
        epoch: From 0.

    Raises:
        UsageError: If `expressions_per_image` is asked for without `images`, a number is below 1, a weight leaves
            nothing of a member, or, with `drop`, the global batch is larger than the epoch.
    """

    index: ManifestIndex
    sampling: Sampling
    expressions_per_image: int | Literal["all"] = 1
    global_batch: int
    remainder: Remainder
    shuffle: bool
    seed: int
    epoch: int
    _units: NDArray[np.int64] = field(init=False, repr=False)
    """Copy c of unit u is c * (units of the index) + u."""

    def __post_init__(self) -> None:
        if self.sampling != "images" and self.expressions_per_image != 1:
            raise UsageError(
                f"expressions_per_image is {self.expressions_per_image} with sampling {self.sampling!r}, "
                "which has one per image; expected sampling 'images'"
            )
        if self.expressions_per_image != "all" and self.expressions_per_image < 1:
            raise UsageError(f"expressions_per_image is {self.expressions_per_image}; expected at least 1, or 'all'")
        if self.global_batch < 1:
            raise UsageError(f"the global batch is {self.global_batch}; expected at least 1")
        units = np.arange(self._num_distinct)
        if self.shuffle:
            units = self._weigh(units)
            # Ties of 64-bit hashes are broken by position, so the order is the same everywhere.
            units = units[np.argsort(self._hash("order", units), kind="stable")]
        if self.remainder == "drop" and len(units) < self.global_batch:
            raise UsageError(
                f"{self.index.folder}: an epoch by {self.sampling} has {len(units)} samples, fewer than one "
                f"global batch of {self.global_batch}, so nothing is left to train on; make the batch smaller"
            )
        # The dataclass is frozen because the epoch is a value; this is part of its construction.
        object.__setattr__(self, "_units", units)

    @property
    def num_units(self) -> int:
        """Refs, sentences or images in the epoch, copies included, without padding."""
        return len(self._units)

    @property
    def num_steps(self) -> int:
        """Global batches: the number of batches of every rank."""
        if self.remainder == "drop":
            return self.num_units // self.global_batch
        return -(-self.num_units // self.global_batch)

    def units(self, step: int, *, rank: int, world_size: int) -> NDArray[np.int64]:
        """`(global_batch / world_size,)` units of one rank at one step; each copy of a unit has a number of its own.

        Args:
            step: 0 to `num_steps - 1`.
            rank: 0 to `world_size - 1`.
            world_size: Ranks; divides the global batch.
        """
        return self._units[self._places(step, rank, world_size) % self.num_units]  # padding starts from the front

    def plan(self, step: int, *, rank: int, world_size: int) -> BatchPlan:
        """The batch of one rank at one step.

        Args:
            step: 0 to `num_steps - 1`.
            rank: 0 to `world_size - 1`.
            world_size: Ranks; divides the global batch.
        """
        start = step * self.global_batch
        is_pad = self._places(step, rank, world_size) >= self.num_units
        copies, units = np.divmod(self.units(step, rank=rank, world_size=world_size), self._num_distinct)
        in_batch = self._units[start : start + self.global_batch] % self._num_distinct
        if self.sampling == "images":
            return self._plan_images(units, copies, is_pad, num_global=int(self._num_expressions(in_batch).sum()))
        if self.sampling == "sentence":
            rows = np.searchsorted(self.index.sentence_start, units, side="right") - 1
            sentences = units - self.index.sentence_start[rows]
        else:
            rows = units
            num_sentences = self.index.sentence_start[rows + 1] - self.index.sentence_start[rows]
            drawn = self._hash("sentence", copies * self._num_distinct + rows)
            # The remainder of a 64-bit hash is uniform to one part in 10^18.
            sentences = (drawn % num_sentences.astype(np.uint64)).astype(np.int64)
        return BatchPlan(rows, sentences, is_pad, num_global=len(in_batch))

    def seen_per_ref(self) -> NDArray[np.int64]:
        """`(rows,)` how often the epoch gives each ref, counted from its batches: the same for any ranks and workers.

        Padding is not counted; what `drop` leaves over is not given.
        """
        seen = np.zeros(self.index.num_rows, np.int64)
        for step in range(self.num_steps):
            plan = self.plan(step, rank=0, world_size=1)
            np.add.at(seen, plan.row_index[~plan.is_pad], 1)
        return seen

    @property
    def _num_distinct(self) -> int:
        """Units of the index."""
        return {
            "ref": self.index.num_rows,
            "sentence": self.index.num_sentences,
            "images": self.index.num_images,
        }[self.sampling]

    def _places(self, step: int, rank: int, world_size: int) -> NDArray[np.int64]:
        """Positions in the epoch; those past its end are padding."""
        local = self.global_batch // world_size
        start = step * self.global_batch + rank * local
        return np.arange(start, start + local)

    def _weigh(self, units: NDArray[np.int64]) -> NDArray[np.int64]:
        """Repeat and choose units by the weights of a mix."""
        weights = {member.dataset: member.weight for member in self.index.descriptor.mix}
        if all(weight == 1 for weight in weights.values()):
            return units
        index = self.index
        if self.sampling == "ref":
            rows = units
        elif self.sampling == "sentence":
            rows = np.searchsorted(index.sentence_start, units, side="right") - 1
        else:
            rows = index.row_start[:-1]  # an image belongs to one member only: its first row says which
        unit_dataset = index.row_dataset[rows]
        chosen = []
        for number, dataset in enumerate(index.datasets):
            own = units[unit_dataset == number]
            if not len(own):
                continue  # a member without a train split, there for its evaluation images
            total = round(weights[dataset] * len(own))
            if total == 0:
                raise UsageError(
                    f"{index.folder}: weight {weights[dataset]:g} leaves none of the {len(own)} samples (by "
                    f"{self.sampling}) of {dataset} in an epoch; mix again with a larger weight, or without it"
                )
            num_copies, num_more = divmod(total, len(own))
            chosen += [own + copy * len(units) for copy in range(num_copies)]
            lowest = np.argsort(self._hash("weight", own), kind="stable")[:num_more]
            chosen.append(own[lowest] + num_copies * len(units))
        return np.sort(np.concatenate(chosen))

    def _plan_images(
        self, images: NDArray[np.int64], copies: NDArray[np.int64], is_pad: NDArray[np.bool_], *, num_global: int
    ) -> BatchPlan:
        """Choose the sentences of each image; a padding image has one, only to be there."""
        index = self.index
        first = index.sentence_start[index.row_start[images]]
        end = index.sentence_start[index.row_start[images + 1]]
        wanted = np.where(is_pad, 1, self._num_expressions(images))
        chosen = []
        for start, stop, number, copy in zip(first, end, wanted, copies, strict=True):
            positions = np.arange(start, stop)
            if number < len(positions):
                drawn = self._hash("sentence", copy * index.num_sentences + positions)
                positions = np.sort(positions[np.argsort(drawn, kind="stable")[:number]])
            chosen.append(positions)
        positions = np.concatenate(chosen)
        rows = np.searchsorted(index.sentence_start, positions, side="right") - 1
        return BatchPlan(rows, positions - index.sentence_start[rows], np.repeat(is_pad, wanted), num_global)

    def _num_expressions(self, images: NDArray[np.int64]) -> NDArray[np.int64]:
        index = self.index
        available = index.sentence_start[index.row_start[images + 1]] - index.sentence_start[index.row_start[images]]
        return available if self.expressions_per_image == "all" else np.minimum(available, self.expressions_per_image)

    def _hash(self, purpose: str, positions: NDArray[np.int64]) -> NDArray[np.uint64]:
        """A uniform 64-bit number for each position, different for each purpose, seed, epoch and dataset."""
        key = hashlib.sha256(f"{self.index.digest} {self.seed} {self.epoch} {purpose}".encode()).digest()
        # SplitMix64 (Steele et al. 2014, "Fast Splittable Pseudorandom Number Generators") at `key + position`.
        golden = np.uint64(0x9E3779B97F4A7C15)
        x = np.uint64(int.from_bytes(key[:8], "little")) ^ ((positions.astype(np.uint64) + np.uint64(1)) * golden)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))
