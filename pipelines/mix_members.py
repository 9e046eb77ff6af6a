"""The members of a mix: opened, compared with each other, counted."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from refseg.dataset.built import BuiltDataset
from refseg.dataset.descriptor import Descriptor, MixMember, ShardEntry
from refseg.errors import DatasetError, UsageError
from refseg.storage import Folder

TRAIN = "train"
"""The split that is mixed; images of all others are kept out of it."""


@dataclass(slots=True, kw_only=True)
class Member:
    """A dataset of the mix, and what is counted of it on the way.

    Attributes:
        dataset: The open dataset.
        weight: How often an epoch sees each of its samples, on average.
        pool_names: What the mix calls each pool of the member; its own tars are the pool without a name.
        num_refs: Training refs that are in the mix.
        dropped_refs: Training refs that are not.
        shared_images: Training images that are in another split of a member.
        found_in: By `<dataset id> <split>`, how many of these are there.
    """

    dataset: BuiltDataset
    weight: float
    pool_names: dict[str, str] = field(default_factory=dict)
    num_refs: int = 0
    dropped_refs: int = 0
    shared_images: int = 0
    found_in: Counter[str] = field(default_factory=Counter)

    @property
    def folder(self) -> Folder:
        """Of the dataset."""
        return self.dataset.place

    @property
    def descriptor(self) -> Descriptor:
        """What its `refseg.json` says."""
        return self.dataset.descriptor

    @property
    def train_entries(self) -> tuple[ShardEntry, ...]:
        """Shards of its train split; none if it only protects images."""
        return self.dataset.entries_of(TRAIN)

    def summary(self, *, allow_leak: bool) -> MixMember:
        """What the mix's descriptor says of it, once all its rows were looked at."""
        return MixMember(
            dataset=self.descriptor.dataset,
            digest=self.descriptor.digest,
            weight=self.weight,
            num_refs=self.num_refs,
            dropped_refs=self.dropped_refs,
            dropped_images=0 if allow_leak else self.shared_images,
            leaked_images=self.shared_images if allow_leak else 0,
            found_in=dict(self.found_in),
        )


def open_members(addresses: Sequence[str | Path], weights: Sequence[float]) -> list[Member]:
    """Open finished datasets that can be mixed.

    Raises:
        UsageError: If one is a mix itself, or there twice.
        DatasetError: If one is unfinished, or tokenizers or mask rules differ.
    """
    members: list[Member] = []
    for address, weight in zip(addresses, weights, strict=True):
        dataset = BuiltDataset.open(address)
        folder, descriptor = dataset.place, dataset.descriptor
        if descriptor.mix:
            names = ", ".join(member.dataset for member in descriptor.mix)
            raise UsageError(f"{folder}: is a mix already, expected a dataset; give its members instead ({names})")
        for other in members:
            first = other.descriptor
            if first.dataset == descriptor.dataset:
                raise UsageError(
                    f"{folder}: holds {descriptor.dataset}, as does {other.folder}; expected each dataset once "
                    "(--weights says how often it is seen)"
                )
            for what, here, there in (
                ("tokenizer", descriptor.tokenizer, first.tokenizer),
                ("mask rule", descriptor.mask_rule, first.mask_rule),
            ):
                if here != there:
                    raise DatasetError(
                        f"{folder}: found {what} {here}, expected {there} as in {other.folder}; build one of them again"
                    )
        members.append(Member(dataset=dataset, weight=float(weight)))
    return members
