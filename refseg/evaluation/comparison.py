"""Several runs side by side: each against the first, image by image, on every split that both were scored on.

What cannot be compared is named with its reason, beside what can.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path

from refseg.errors import UsageError
from refseg.evaluation.bootstrap import LEVEL, NUM_DRAWS, Difference, are_of_same_sentences, compare
from refseg.evaluation.origin import OriginOfModel
from refseg.evaluation.pages import Report, render
from refseg.evaluation.protocols import Protocol
from refseg.evaluation.results import Results, find_results, load_results, results_name
from refseg.evaluation.rows import RowFacts
from refseg.evaluation.scores import Scores, score

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One run's results.

    Attributes:
        name: For the page.
        results: Of its splits; controls among them are not compared.
    """

    name: str
    results: Sequence[Results]


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """A run on one split under one protocol.

    Attributes:
        name: Of the run.
        results: What was scored.
        scores: By the protocol.
        differences: From the first run, by score; None: this is the first.
    """

    name: str
    results: Results
    scores: Scores
    differences: dict[str, Difference] | None

    @property
    def leak_warning(self) -> str:
        """What must stand beside the scores of a model trained with leaks; empty for others."""
        return self.results.origin.leak_warning

    @property
    def subject(self) -> str:
        """What was scored, and what it was trained on as far as that is known."""
        origin = self.results.origin
        return origin.subject + (f", trained on {origin.lineage.dataset}" if isinstance(origin, OriginOfModel) else "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """One split under one protocol.

    Attributes:
        title: Dataset, split and protocol.
        columns: Of each run that was scored so, the first run's first.
        missing: The runs without a column, each with the reason.
    """

    title: str
    columns: tuple[Column, ...]
    missing: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Place:
    """What scores must share to be compared: split and rules."""

    dataset: str
    split: str
    protocol: Protocol

    def __str__(self) -> str:
        return f"{self.dataset} {self.split} under {self.protocol.name}"


_Scored = Mapping[_Place, Results]


def build_comparison(runs: Sequence[Run], *, written_at: datetime) -> Report:
    """Put the scores of several runs beside each other.

    Args:
        runs: At least two; differences are from the first.
        written_at: For the foot of the page.

    Returns:
        The page. What is not compared stands there with its reason, and is logged as a warning.

    Raises:
        UsageError: If no other run shares a split and a protocol with the first, a run is given twice, or one holds
            several scores of one split under one protocol that are not the same.
    """
    scored = {run.name: _by_place(run) for run in runs}
    if len(scored) < len(runs):
        raise UsageError(f"found {', '.join(run.name for run in runs)}; expected each run once")
    (first, ours), *others = scored.items()
    comparisons = []
    left_out = []
    for place, own in ours.items():
        columns = [Column(name=first, results=own, scores=score(own.rows, place.protocol), differences=None)]
        missing = []
        for name, theirs in others:
            if reason := _why_not(first, own, name, theirs, place):
                missing.append(f"{name} is not compared: {reason}")
            else:
                columns.append(_column(own, name, theirs[place], place.protocol))
        if len(columns) > 1:
            title = f"{place.dataset} {place.split}, protocol {place.protocol.name}"
            comparisons.append(Comparison(title=title, columns=tuple(columns), missing=tuple(missing)))
        else:
            left_out += [f"{place}: {reason}" for reason in missing]
    for name, theirs in others:
        left_out += [f"{place}: {name} has scores, {first} has none" for place in theirs if place not in ours]
    if not comparisons:
        raise UsageError(
            f"found nothing to compare with {first}: {'; '.join(left_out) or f'{first} has no scores'}; evaluate them "
            "on the same split of one build under the same protocol"
        )
    left_out += [
        f"{run.name} {found.origin.scored_on}: a shuffled control, which is no score"
        for run in runs
        for found in run.results
        if found.is_control
    ]
    for comparison in comparisons:
        for reason in comparison.missing:
            logger.warning("%s: %s", comparison.title, reason)
    for reason in left_out:
        logger.warning("not compared: %s", reason)
    rule = (
        f"differences from {first}, each with {LEVEL:.0%} of {NUM_DRAWS:,} draws of the images, the same for both "
        "runs, and p: twice the share of draws on the other side of zero"
    )
    values = {"runs": runs, "comparisons": comparisons, "left_out": left_out, "difference_rule": rule}
    return render("comparison", values, written_at=written_at)


def load_runs(folders: Sequence[Path]) -> list[Run]:
    """Read the results of runs, each named by its folder.

    Raises:
        UsageError: If a folder has no results, or two have the same ones, however their paths are written.
    """
    places = [find_results(folder) for folder in folders]
    if len({place.resolve() for place in places}) < len(places):
        raise UsageError(f"found {', '.join(map(str, folders))}; expected each run once")
    return [
        Run(name=name, results=load_results(place)) for name, place in zip(short_names(folders), places, strict=True)
    ]


def short_names(folders: Sequence[Path]) -> list[str]:
    """As many last parts of each path as it takes to tell them apart."""
    paths = [folder.resolve().parts for folder in folders]
    for length in range(1, max(map(len, paths))):
        names = ["/".join(path[-length:]) for path in paths]
        if len(set(names)) == len(names):
            return names
    return [str(folder) for folder in folders]


def _by_place(run: Run) -> dict[_Place, Results]:
    """A run's scores by split and rules; controls are none."""
    found: dict[_Place, Results] = {}
    for results in run.results:
        for protocol in () if results.is_control else results.protocols:
            place = _Place(results.origin.dataset, results.origin.split, protocol)
            known = found.setdefault(place, results)
            if known is not results and score(known.rows, protocol).values != score(results.rows, protocol).values:
                raise UsageError(
                    f"{run.name} has other scores of {place} in scores-{results_name(known)}.json ({known.subject}) "
                    f"than in scores-{results_name(results)}.json ({results.subject}); remove the one that is not meant"
                )
    return found


def _why_not(first: str, own: Results, name: str, theirs: _Scored, place: _Place) -> str:
    """Why a run cannot stand beside the first; empty if it can."""
    where = f"{place.dataset} {place.split}"
    of_split = [other.protocol for other in theirs if (other.dataset, other.split) == (place.dataset, place.split)]
    if not of_split:
        return f"{name} has no scores of {where} (it has {', '.join(map(str, theirs)) or 'none'})"
    if place.protocol not in of_split:
        for protocol in of_split:
            if protocol.name == place.protocol.name:
                apart = _rules_apart(place.protocol, protocol)
                return f"{name} was scored by other rules of {protocol.name}: {apart}"
        return f"{name} has {where} under {', '.join(protocol.name for protocol in of_split)} alone"
    found = theirs[place]
    builds = [
        f"{results.origin.dataset_digest[:12]} (mask rule {RowFacts.of(results.rows).mask_rule}, "
        f"{len(results.rows):,} sentences)"
        for results in (own, found)
    ]
    if own.origin.dataset_digest != found.origin.dataset_digest:
        return f"{first} was scored on the build {builds[0]}, {name} on {builds[1]}; evaluate both on one build"
    if not are_of_same_sentences(own.rows, found.rows):
        return f"the sentences are not the same: {len(own.rows):,} of {first}, {len(found.rows):,} of {name}"
    return ""


def _rules_apart(first: Protocol, second: Protocol) -> str:
    ours, theirs = asdict(first), asdict(second)
    return ", ".join(f"{key} {theirs[key]} instead of {ours[key]}" for key in ours if ours[key] != theirs[key])


def _column(own: Results, name: str, found: Results, protocol: Protocol) -> Column:
    differences = {difference.name: difference for difference in compare(own.rows, found.rows, protocol)}
    return Column(name=name, results=found, scores=score(found.rows, protocol), differences=differences)
