"""What a built dataset holds: counts beside the published ones, lengths, areas, rejects. Reads manifests only."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.published import published_counts
from pipelines.rejects import REJECTS_NAME
from refseg.descriptor import SplitCounts, load_descriptor
from refseg.errors import DatasetError, UsageError

TOKEN_LIMITS = (17, 20, 22)
"""Lengths others cut at: CRIS on RefCOCO and RefCOCO+, LAVT, CRIS on RefCOCOg."""
AREA_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


@dataclass(frozen=True, slots=True, kw_only=True)
class Lengths:
    """Lengths of a split's sentences."""

    mean: float
    p95: int
    longest: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitStats:
    """What one split holds.

    Attributes:
        split: Its name.
        counts: Images, refs, sentences.
        published: The same as published; None where nothing was.
        num_no_target: Refs whose sentences name nothing in the image.
        words: Words of a sentence, cut at spaces.
        tokens: BPE ids of a sentence with SOS and EOS.
        longer_than: By `TOKEN_LIMITS`, sentences of more ids.
        area_quantiles: By `AREA_QUANTILES`, the targets' part of the image, 0 to 1; empty without targets.
        refs_per_image: Mean.
        sentences_per_ref: Mean.
    """

    split: str
    counts: SplitCounts
    published: SplitCounts | None
    num_no_target: int
    words: Lengths
    tokens: Lengths
    longer_than: dict[int, int]
    area_quantiles: dict[float, float]
    refs_per_image: float
    sentences_per_ref: float

    @property
    def differing(self) -> tuple[str, ...]:
        """Which of `images`, `refs`, `sentences` differ from the published counts."""
        if self.published is None:
            return ()
        pairs = {
            name: (getattr(self.counts, name), getattr(self.published, name))
            for name in ("images", "refs", "sentences")
        }
        return tuple(name for name, (found, published) in pairs.items() if published not in (None, found))


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetStats:
    """What a dataset holds: its splits, and its rejects by reason."""

    dataset: str
    digest: str
    mask_rule: str
    splits: tuple[SplitStats, ...]
    rejects: dict[str, int]


def stats_dataset(folder: Path) -> DatasetStats:
    """Count a finished dataset.

    Raises:
        UsageError: If there is no such folder.
        DatasetError: If it holds no finished dataset, or a manifest cannot be read.
    """
    if not folder.is_dir():
        raise UsageError(f"{folder}: no such folder; expected a dataset made by `refseg build-shards`")
    descriptor = load_descriptor(folder)
    published = published_counts(descriptor.dataset)
    splits = []
    for split in descriptor.splits:
        shards = [folder / f"{shard.name}.parquet" for shard in descriptor.shards if shard.split == split]
        splits.append(_split_stats(split, shards, published.get(split)))
    rejects: dict[str, int] = {}
    if descriptor.num_rejects:
        rejects = dict(Counter(row["reason"] for row in _read_columns(folder / REJECTS_NAME, ["reason"])))
    return DatasetStats(
        dataset=descriptor.dataset,
        digest=descriptor.digest,
        mask_rule=descriptor.mask_rule,
        splits=tuple(splits),
        rejects=rejects,
    )


def _split_stats(split: str, manifests: Sequence[Path], published: SplitCounts | None) -> SplitStats:
    images: set[int] = set()
    words: list[int] = []
    tokens: list[int] = []
    area_parts: list[float] = []
    num_refs = num_no_target = 0
    for path in manifests:
        columns = ["image_id", "height", "width", "area", "no_target", "sentences"]
        for row in _read_columns(path, columns):
            num_refs += 1
            images.add(row["image_id"])
            if row["no_target"]:
                num_no_target += 1
            else:
                area_parts.append(row["area"] / (row["height"] * row["width"]))
            words += [len(sentence["sent"].split()) for sentence in row["sentences"]]
            tokens += [len(sentence["token_ids"]) for sentence in row["sentences"]]
    return SplitStats(
        split=split,
        counts=SplitCounts(images=len(images), refs=num_refs, sentences=len(tokens)),
        published=published,
        num_no_target=num_no_target,
        words=_lengths(words),
        tokens=_lengths(tokens),
        longer_than={limit: sum(length > limit for length in tokens) for limit in TOKEN_LIMITS},
        area_quantiles={q: float(np.quantile(area_parts, q)) for q in AREA_QUANTILES} if area_parts else {},
        refs_per_image=num_refs / len(images),
        sentences_per_ref=len(tokens) / num_refs,
    )


def _read_columns(path: Path, columns: list[str]) -> list[dict[str, Any]]:
    try:
        with path.open("rb") as file:  # a path would be read as a dataset where it is a folder
            rows: list[dict[str, Any]] = pq.read_table(file, columns=columns).to_pylist()
    except (OSError, pa.ArrowException) as error:
        reason = str(error).splitlines()[0]
        raise DatasetError(f"{path}: cannot be read as Parquet ({reason}); see `refseg verify`") from error
    return rows


def _lengths(lengths: Sequence[int]) -> Lengths:
    # The smallest length that at least 95 % of the sentences do not pass: a length that occurs.
    p95 = int(np.quantile(lengths, 0.95, method="inverted_cdf"))
    return Lengths(mean=float(np.mean(lengths)), p95=p95, longest=max(lengths))
