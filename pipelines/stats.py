"""Computes statistics of a built dataset from the manifests: counts, lengths, areas and rejects."""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipelines.published import COUNTED, published_counts
from pipelines.shared_images import SharedImages, find_shared_images
from refseg.dataset.built import BuiltDataset
from refseg.dataset.descriptor import SplitCounts

TOKEN_LIMITS = (17, 20, 22)
"""Lengths to which other projects truncate sentences: CRIS on RefCOCO and RefCOCO+, LAVT, and CRIS on RefCOCOg."""
AREA_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)

_COLUMNS = [
    "dataset", "split_by", "image_id", "height", "width", "area", "no_target", "box_only", "sentences",
]  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Lengths:
    """The distribution of the lengths of a split's sentences.

    Attributes:
        mean: Mean length.
        p95: Smallest length that at least 95 % of the sentences do not exceed.
        longest: Largest length.
    """

    mean: float
    p95: int
    longest: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitStats:
    """The statistics of one split.

    Attributes:
        split: Name of the split.
        counts: Numbers of images, refs and sentences.
        source: The same counts of the source, including rejects; None if they are not recorded, as in a mix.
        published: The same counts as published; None if none are published.
        num_pool_images: Number of images that are in other datasets' tars.
        num_no_target: Number of refs whose sentences name nothing in the image.
        num_nothing: Number of sentences that name nothing in the image, including sentences of refs with a target.
        num_box_only: Number of refs whose target is a box, because the source has no shape.
        words: Distribution of the number of words, separated by spaces, per sentence.
        tokens: Distribution of the number of BPE ids, including SOS and EOS, per sentence.
        longer_than: Number of sentences with more ids than each of `TOKEN_LIMITS`.
        area_quantiles: Quantiles `AREA_QUANTILES` of the target's share of the image, 0 to 1; empty if there are no
            targets.
        refs_per_image: Mean number of refs per image.
        sentences_per_ref: Mean number of sentences per ref.
    """

    split: str
    counts: SplitCounts
    source: SplitCounts | None
    published: SplitCounts | None
    num_pool_images: int
    num_no_target: int
    num_nothing: int
    num_box_only: int
    words: Lengths
    tokens: Lengths
    longer_than: dict[int, int]
    area_quantiles: dict[float, float]
    refs_per_image: float
    sentences_per_ref: float

    @property
    def differing(self) -> tuple[str, ...]:
        """Names of the source's counts (`images`, `refs`, `sentences`) that differ from the published counts."""
        return tuple(
            name
            for name in COUNTED
            if getattr(self.published, name, None) not in (None, getattr(self.source or self.counts, name))
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class MemberStats:
    """The statistics of one member of a mix.

    Attributes:
        dataset: Dataset id.
        weight: How often an epoch contains each of the member's samples, on average.
        counts: Numbers of images, refs and sentences in the mix.
        dropped_refs: Number of training refs that were left out because a member evaluates on the image.
        dropped_images: Number of images of these refs.
        leaked_images: Number of images that were kept although a member evaluates on them.
    """

    dataset: str
    weight: float
    counts: SplitCounts
    dropped_refs: int
    dropped_images: int
    leaked_images: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetStats:
    """The statistics of a dataset.

    Attributes:
        dataset: Dataset id.
        digest: Digest of the dataset's rows.
        mask_rule: `union` or `legacy`.
        counts_accepted: True if counts that differ from the published ones were accepted at the build.
        splits: Statistics of the splits, in canonical order.
        members: Statistics of the members of a mix, in order.
        pools: Folders of other datasets whose tars hold images of this dataset, by dataset id.
        rejects: Number of rejected refs by reason.
        shared_images: Pictures with equal bytes in several splits or under several ids.
    """

    dataset: str
    digest: str
    mask_rule: str
    counts_accepted: bool
    splits: tuple[SplitStats, ...]
    members: tuple[MemberStats, ...]
    pools: dict[str, str]
    rejects: dict[str, int]
    shared_images: SharedImages


def stats_dataset(folder: Path | str) -> DatasetStats:
    """Compute the statistics of a finished dataset.

    Args:
        folder: Path or URL of the dataset's folder.

    Raises:
        DatasetError: If the folder does not exist, or the dataset is unfinished or damaged.
        StorageError: If remote storage fails.
    """
    dataset = BuiltDataset.open(folder)
    descriptor = dataset.descriptor
    published = published_counts(descriptor.dataset)
    members = {member.dataset: _Tally() for member in descriptor.mix}
    splits = tuple(_split_stats(dataset, split, published.get(split), members) for split in descriptor.splits)
    return DatasetStats(
        dataset=descriptor.dataset,
        digest=descriptor.digest,
        mask_rule=descriptor.mask_rule,
        counts_accepted=descriptor.counts_accepted,
        splits=splits,
        members=tuple(
            MemberStats(
                dataset=member.dataset,
                weight=member.weight,
                counts=members[member.dataset].counts,
                dropped_refs=member.dropped_refs,
                dropped_images=member.dropped_images,
                leaked_images=member.leaked_images,
            )
            for member in descriptor.mix
        ),
        pools={pool.dataset: pool.path for pool in descriptor.image_pools},
        rejects=dict(Counter(dataset.rejects()["reason"].to_pylist())),
        shared_images=find_shared_images(dataset.place, descriptor.dataset, descriptor.shards),
    )


@dataclass(slots=True)
class _Tally:
    """The numbers of images, refs and sentences counted so far."""

    image_ids: list[NDArray[np.int64]] = field(default_factory=list)
    refs: int = 0
    sentences: int = 0

    @property
    def counts(self) -> SplitCounts:
        images = len(np.unique(np.concatenate([np.empty(0, np.int64), *self.image_ids])))
        return SplitCounts(images=images, refs=self.refs, sentences=self.sentences)


def _split_stats(
    dataset: BuiltDataset,
    split: str,
    published: SplitCounts | None,
    members: dict[str, _Tally],
) -> SplitStats:
    """Count a split, one manifest at a time. The counts of a mix's members are added to `members`."""
    by_dataset: dict[str, _Tally] = {}
    words, tokens = np.zeros(0, np.int64), np.zeros(0, np.int64)
    area_parts = [np.empty(0)]
    num_no_target = num_nothing = num_box_only = 0
    entries = dataset.entries_of(split)
    for entry in entries:
        table = dataset.read(_COLUMNS, [entry])
        column = {name: table[name].to_numpy() for name in ("image_id", "height", "width", "area", "no_target")}
        num_sentences = pc.list_value_length(table["sentences"]).to_numpy()
        datasets = pc.binary_join_element_wise(table["dataset"], table["split_by"], "/")
        for dataset_id in datasets.unique().to_pylist():
            chosen = pc.equal(datasets, dataset_id).to_numpy()
            for tally in (by_dataset.setdefault(dataset_id, _Tally()), members.get(dataset_id)):
                if tally is not None:
                    tally.image_ids.append(np.unique(column["image_id"][chosen]))
                    tally.refs += int(chosen.sum())
                    tally.sentences += int(num_sentences[chosen].sum())
        sentences = table["sentences"].combine_chunks().flatten()
        words = _add(words, np.array([len(text.split()) for text in sentences.field("sent").to_pylist()], np.int64))
        tokens = _add(tokens, pc.list_value_length(sentences.field("token_ids")).to_numpy())
        has_target = ~column["no_target"]
        area_parts.append((column["area"] / (column["height"].astype(np.int64) * column["width"]))[has_target])
        num_no_target += int(column["no_target"].sum())
        num_nothing += len(sentences) - int(pc.sum(sentences.field("exists")).as_py())
        num_box_only += int(pc.sum(table["box_only"]).as_py())
    parts = [tally.counts for tally in by_dataset.values()]  # an image of two members of a mix counts as two images
    images, num_refs, total = (sum(getattr(part, name) for part in parts) for name in COUNTED)
    areas = np.concatenate(area_parts)
    return SplitStats(
        split=split,
        counts=SplitCounts(images=images, refs=num_refs, sentences=total),
        source=dataset.descriptor.source_counts.get(split),
        published=published,
        num_pool_images=sum(entry.num_images - entry.num_samples for entry in entries),
        num_no_target=num_no_target,
        num_nothing=num_nothing,
        num_box_only=num_box_only,
        words=_lengths(words),
        tokens=_lengths(tokens),
        longer_than={limit: int(tokens[limit + 1 :].sum()) for limit in TOKEN_LIMITS},
        area_quantiles={q: float(np.quantile(areas, q)) for q in AREA_QUANTILES} if len(areas) else {},
        refs_per_image=num_refs / images,
        sentences_per_ref=total / num_refs,
    )


def _add(histogram: NDArray[np.int64], lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """Add lengths to a histogram, in which `histogram[n]` is the number of sentences of length n.

    The memory of the histogram does not grow with the dataset.
    """
    more = np.bincount(lengths, minlength=len(histogram))
    more[: len(histogram)] += histogram
    return more


def _lengths(histogram: NDArray[np.int64]) -> Lengths:
    number = int(histogram.sum())
    # The first length at which the cumulative count reaches 95 % of the sentences, so that p95 is a length that occurs.
    p95 = int(np.searchsorted(np.cumsum(histogram), -(-95 * number // 100)))
    mean = float(histogram @ np.arange(len(histogram))) / number
    return Lengths(mean=mean, p95=p95, longest=len(histogram) - 1)
