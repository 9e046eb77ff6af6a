"""Several runs side by side: each against the first, image by image, on every split that both were scored on."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from refseg.errors import UsageError
from refseg.evaluation.bootstrap import LEVEL, NUM_DRAWS, Difference, compare
from refseg.evaluation.leaks import leak_warning
from refseg.evaluation.pages import Report, render
from refseg.evaluation.protocols import Protocol
from refseg.evaluation.results import Results
from refseg.evaluation.scores import Scores, score


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
        return leak_warning(self.results.origin)


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """One split under one protocol.

    Attributes:
        title: Dataset, split and protocol.
        columns: Of each run that was scored so, the first run's first.
    """

    title: str
    columns: tuple[Column, ...]


def build_comparison(runs: Sequence[Run], *, written_at: datetime) -> Report:
    """Put the scores of several runs beside each other.

    Args:
        runs: At least two; differences are from the first.
        written_at: For the foot of the page.

    Raises:
        UsageError: If no other run shares a split and a protocol with the first, or one was scored on another build of
            the dataset.
    """
    first, *others = runs
    comparisons = []
    for own in first.results:
        for protocol in own.protocols if not own.is_control else ():
            columns = [Column(name=first.name, results=own, scores=score(own.rows, protocol), differences=None)]
            columns += [
                _column(first.name, own, other.name, found, protocol)
                for other in others
                if (found := _find(other, own, protocol)) is not None
            ]
            if len(columns) > 1:
                title = f"{own.origin['dataset']} {own.origin['split']}, protocol {protocol.name}"
                comparisons.append(Comparison(title=title, columns=tuple(columns)))
    if not comparisons:
        raise UsageError(
            f"found nothing to compare with {first.name}: {'; '.join(map(_describe, runs))}; evaluate them on the same "
            "split under the same protocol"
        )
    rule = (
        f"differences from {first.name}, each with {LEVEL:.0%} of {NUM_DRAWS:,} draws of the images, the same for both "
        "runs, and p: twice the share of draws on the other side of zero"
    )
    values = {"runs": runs, "comparisons": comparisons, "difference_rule": rule}
    return render("comparison", values, written_at=written_at)


def short_names(folders: Sequence[Path]) -> list[str]:
    """As many last parts of each path as it takes to tell them apart."""
    paths = [folder.resolve().parts for folder in folders]
    for length in range(1, max(map(len, paths))):
        names = ["/".join(path[-length:]) for path in paths]
        if len(set(names)) == len(names):
            return names
    return [str(folder) for folder in folders]


def _find(run: Run, like: Results, protocol: Protocol) -> Results | None:
    """The run's results on the same split by the same rules."""
    for found in run.results:
        same_split = all(found.origin[key] == like.origin[key] for key in ("dataset", "split"))
        if same_split and protocol in found.protocols and not found.is_control:
            return found
    return None


def _column(first_name: str, own: Results, name: str, found: Results, protocol: Protocol) -> Column:
    digests = own.origin["dataset_digest"][:12], found.origin["dataset_digest"][:12]
    if digests[0] != digests[1]:
        raise UsageError(
            f"{found.origin['dataset']} {found.origin['split']}: {first_name} was scored on the build {digests[0]}, "
            f"{name} on {digests[1]}; evaluate both on one build"
        )
    differences = {difference.name: difference for difference in compare(own.rows, found.rows, protocol)}
    return Column(name=name, results=found, scores=score(found.rows, protocol), differences=differences)


def _describe(run: Run) -> str:
    places = [
        f"{found.origin['dataset']} {found.origin['split']} under {protocol.name}"
        for found in run.results
        for protocol in found.protocols
        if not found.is_control
    ]
    return f"{run.name} has {', '.join(places) or 'no scores'}"
