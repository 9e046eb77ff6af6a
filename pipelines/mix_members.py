"""Opens the members of a mix, checks that they can be mixed, and counts the refs."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from refseg.dataset.built import BuiltDataset
from refseg.dataset.descriptor import Descriptor, MixMember, ShardEntry
from refseg.errors import DatasetError, UsageError
from refseg.storage import Folder

TRAIN = "train"
"""The split that is mixed. Images of all other splits are left out of the mix."""


@dataclass(slots=True, kw_only=True)
class Member:
    """A dataset of the mix, with counts that increase while the rows are read.

    Attributes:
        dataset: The open dataset.
        weight: How often an epoch contains each of the dataset's samples, on average.
        pool_names: Name of each of the member's pools in the mix, by the member's name. The member's own tars have the
            empty name.
        num_refs: Number of training refs that are in the mix.
        dropped_refs: Number of training refs that are left out.
        shared_images: Number of training images that are in another split of any member.
        found_in: Number of training images of this member in each `<dataset id> <split>`.
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
        """The folder of the dataset."""
        return self.dataset.place

    @property
    def descriptor(self) -> Descriptor:
        """The content of the dataset's `refseg.json`."""
        return self.dataset.descriptor

    @property
    def train_entries(self) -> tuple[ShardEntry, ...]:
        """The shards of the train split; empty if the dataset has no train split."""
        return self.dataset.entries_of(TRAIN)

    def summary(self, *, allow_leak: bool) -> MixMember:
        """Return the member's entry in the mix's descriptor. All rows must have been read before."""
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
        UsageError: If a dataset is itself a mix, or is given twice.
        DatasetError: If a dataset is unfinished, or tokenizers or mask rules differ.
    """
    members: list[Member] = []
    for address, weight in zip(addresses, weights, strict=True):
        dataset = BuiltDataset.open(address)
        folder, descriptor = dataset.place, dataset.descriptor
        if descriptor.mix:
            names = ", ".join(member.dataset for member in descriptor.mix)
            raise UsageError(f"{folder}: is itself a mix, expected a dataset; give its members instead ({names})")
        for other in members:
            first = other.descriptor
            if first.dataset == descriptor.dataset:
                raise UsageError(
                    f"{folder}: holds {descriptor.dataset}, as does {other.folder}; expected each dataset once "
                    "(to repeat it in an epoch, give --weights)"
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
