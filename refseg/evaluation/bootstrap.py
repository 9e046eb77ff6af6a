"""Computes confidence intervals of scores, and of score differences between two runs, by bootstrap.

The sentences of one image are not independent. Therefore the cluster bootstrap (Efron 1979) is used. Each draw selects
images with replacement, and each selected image contributes all its sentences. Every score is a ratio of sums
(`metrics.Ratio`), so a draw can be represented by one weight per image. For example, a draw that selects image A twice
and image B never gives A the weight 2 and B the weight 0.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from refseg.errors import UsageError
from refseg.evaluation.metrics import Ratio
from refseg.evaluation.protocols import Protocol
from refseg.evaluation.scores import ratios
from refseg.wording import counted

NUM_DRAWS = 1000
LEVEL = 0.95
_SEED = 0
_DRAWS_AT_ONCE = 100  # limits the memory for large splits

_Floats = npt.NDArray[np.float64]


class Interval(NamedTuple):
    """Confidence interval of a score, as fractions.

    It contains the middle share `LEVEL` of the values over all draws.
    """

    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """One score for two runs on the same sentences. Scores are fractions from 0 to 1.

    Attributes:
        name: Name of the score.
        first: Score of the first run.
        second: Score of the second run.
        interval: Confidence interval of (second - first) from a paired bootstrap over images.
        p_value: Two-sided p-value. It is twice the share of draws in which the difference is zero or has the opposite
            sign. It is at most 1 and never below 2 / (`NUM_DRAWS` + 1).
    """

    name: str
    first: float
    second: float
    interval: Interval
    p_value: float


def confidence_intervals(table: pa.Table, protocol: Protocol) -> dict[str, Interval]:
    """Return the interval of each score of a protocol, by name.

    The seed is fixed, so equal rows give equal intervals.
    """
    return {name: _interval(values) for name, values in _draw(table, ratios(table, protocol)).items()}


def compare(first: pa.Table, second: pa.Table, protocol: Protocol) -> list[Difference]:
    """Compare the scores of two runs on the same sentences, with intervals and p-values of the differences.

    Args:
        first: Rows of the first run.
        second: Rows of the second run, on the same split of the same dataset.
        protocol: Protocol of the scores. Both tables must have columns for this protocol.

    Raises:
        UsageError: If the tables do not have the same sentences and targets.
    """
    if not are_of_same_sentences(first, second):
        raise UsageError(
            f"the runs were not scored on the same sentences ({_describe(first)}; {_describe(second)}); evaluate both "
            "on the same split of the same dataset"
        )
    of_first, of_second = ratios(first, protocol), ratios(second, protocol)
    drawn_first, drawn_second = _draw(first, of_first), _draw(second, of_second)
    found = []
    for name in of_first:
        differences = drawn_second[name] - drawn_first[name]
        differences = differences[np.isfinite(differences)]
        tail = min(np.count_nonzero(differences <= 0), np.count_nonzero(differences >= 0))
        found.append(
            Difference(
                name=name,
                first=of_first[name].value(),
                second=of_second[name].value(),
                interval=_interval(differences),
                p_value=min(1.0, 2 * (tail + 1) / (len(differences) + 1)),
            )
        )
    return found


def are_of_same_sentences(first: pa.Table, second: pa.Table) -> bool:
    """Return True if two tables have the same sentences and targets in the same order."""
    keys = ["dataset", "split", "ref_id", "sent_id", "target_ref_id", "no_target"]
    ours, theirs = (table.select(keys).replace_schema_metadata(None) for table in (first, second))
    return bool(ours.equals(theirs))


def _draw(table: pa.Table, scores: dict[str, Ratio]) -> dict[str, _Floats]:
    """Return the values of each score over `NUM_DRAWS` draws of images, shape (draws,).

    The draws depend only on the number of images, so two runs on the same images are drawn in the same way.
    """
    _, image = np.unique(table.column("image_id").to_numpy(), return_inverse=True)
    image = image.reshape(-1)
    num_images = int(image.max()) + 1
    above, below = (
        np.stack([np.bincount(image, getattr(ratio, part), num_images) for ratio in scores.values()], axis=1)
        for part in ("numerator", "denominator")
    )  # (images, scores)
    random = np.random.default_rng(_SEED)
    values = []
    for _ in range(NUM_DRAWS // _DRAWS_AT_ONCE):
        times = random.multinomial(num_images, np.full(num_images, 1 / num_images), _DRAWS_AT_ONCE).astype(np.float64)
        sums = times @ below
        if_none = np.array([ratio.if_none for ratio in scores.values()])
        values.append(np.divide(times @ above, sums, out=np.broadcast_to(if_none, sums.shape).copy(), where=sums > 0))
    return dict(zip(scores, np.concatenate(values).T, strict=True))


def _interval(values: _Floats) -> Interval:
    """Return the interval of the finite values, or NaN if there are none because no sentence counts for the score."""
    values = values[np.isfinite(values)]
    if not len(values):
        return Interval(float("nan"), float("nan"))
    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(low), float(high))


def _describe(table: pa.Table) -> str:
    splits = {f"{row['dataset']} {row['split']}" for row in table.select(["dataset", "split"]).slice(0, 1).to_pylist()}
    return f"{counted(len(table), 'sentence')} of {', '.join(splits) or 'nothing'}"
