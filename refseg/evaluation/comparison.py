"""Compares several runs with the first one on every split and protocol for which both have scores.

Scores that cannot be compared are listed with the reason. If both runs saved their predicted masks, the page shows
examples with the masks of both runs.
"""

import logging
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path

from refseg.data.index import ManifestIndex
from refseg.errors import UsageError
from refseg.evaluation.bootstrap import LEVEL, NUM_DRAWS, Difference, are_of_same_sentences, compare
from refseg.evaluation.compared_examples import RIGHT, ComparedGroup, choose_compared_examples
from refseg.evaluation.origin import OriginOfModel
from refseg.evaluation.pages import Report, render
from refseg.evaluation.protocols import Protocol
from refseg.evaluation.report import describe_splits, evaluate_command
from refseg.evaluation.results import Results, find_results, load_results, results_name
from refseg.evaluation.rows import RowFacts, has_predictions
from refseg.evaluation.scores import Scores, score

logger = logging.getLogger(__name__)

EXAMPLES_PER_GROUP = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """The results of one run.

    Attributes:
        name: Name of the run on the page.
        folder: Folder of the run, as the user names it.
        evaluation: Folder with the run's results. It is either `folder` or `folder/evaluation`.
        results: Results of the run's splits. Shuffled controls are included but not compared.
    """

    name: str
    folder: str
    evaluation: str
    results: Sequence[Results]


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """The scores of a run on one split under one protocol.

    Attributes:
        name: Name of the run.
        results: Results of the run on the split.
        scores: Scores under the protocol.
        differences: Differences from the first run, by the name of the score. None for the first run.
        groups: Examples that compare this run with the first run. Empty for the first run, and if masks or images are
            missing.
        why_no_groups: Message that says what is missing for examples. Empty if nothing is missing.
        commands: Commands to run for a page with examples.
    """

    name: str
    results: Results
    scores: Scores
    differences: dict[str, Difference] | None
    groups: tuple[ComparedGroup, ...] = ()
    why_no_groups: str = ""
    commands: tuple[str, ...] = ()

    @property
    def leak_warning(self) -> str:
        """Warning to show with the scores of a model that was trained with leaks. Empty for other models."""
        return self.results.origin.leak_warning

    @property
    def subject(self) -> str:
        """Description of what was scored and, if recorded, of its training set."""
        origin = self.results.origin
        return origin.subject + (f", trained on {origin.lineage.dataset}" if isinstance(origin, OriginOfModel) else "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """The comparison on one split under one protocol.

    Attributes:
        title: Dataset, split and protocol.
        columns: One column per run that has scores for this split and protocol, the first run first.
        missing: One message per run without a column, which gives the reason.
    """

    title: str
    columns: tuple[Column, ...]
    missing: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Setting:
    """The split and protocol that scores must share to be compared."""

    dataset: str
    split: str
    protocol: Protocol

    def __str__(self) -> str:
        return f"{self.dataset} {self.split} under {self.protocol.name}"


_Scored = Mapping[_Setting, Results]


def build_comparison(
    runs: Sequence[Run], indexes: Mapping[str, ManifestIndex] | None = None, *, written_at: datetime
) -> Report:
    """Build the page that compares several runs.

    Args:
        runs: At least two runs. Each is compared with the first one.
        indexes: Indexes of the images, by dataset and split (`toy/refseg val`). The page reports a missing index.
        written_at: Time for the title and the foot of the page.

    Returns:
        The page. Scores that are not compared are listed with the reason, and they are logged as warnings.

    Raises:
        UsageError: If no other run shares a split and a protocol with the first run. If a run is given twice. If a run
            has two different sets of scores for one split and protocol.
    """
    scored = {run.name: _by_setting(run) for run in runs}
    if len(scored) < len(runs):
        raise UsageError(f"found {', '.join(run.name for run in runs)}; expected each run once")
    (first, ours), *others = scored.items()
    by_name = {run.name: run for run in runs}
    comparisons = []
    left_out = []
    for setting, own in ours.items():
        columns = [Column(name=first, results=own, scores=score(own.rows, setting.protocol), differences=None)]
        missing = []
        for name, theirs in others:
            if reason := _why_not(first, own, name, theirs, setting):
                missing.append(f"{name} is not compared: {reason}")
            else:
                index = (indexes or {}).get(own.origin.scored_on)
                pair = (by_name[first], by_name[name])
                columns.append(_column(pair, (own, theirs[setting]), setting.protocol, index))
        if len(columns) > 1:
            title = f"{setting.dataset} {setting.split}, protocol {setting.protocol.name}"
            comparisons.append(Comparison(title=title, columns=tuple(columns), missing=tuple(missing)))
        else:
            left_out += [f"{setting}: {reason}" for reason in missing]
    for name, theirs in others:
        left_out += [f"{setting}: {name} has scores, {first} has none" for setting in theirs if setting not in ours]
    if not comparisons:
        raise UsageError(
            f"found nothing to compare with {first}: {'; '.join(left_out) or f'{first} has no scores'}; evaluate them "
            "on the same split of one build under the same protocol"
        )
    left_out += [
        f"{run.name} {found.origin.scored_on}: a shuffled control, which is not a score of the model"
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
        f"Differences from {first}, each with the interval of {LEVEL:.0%} of {NUM_DRAWS:,} draws of images, the same "
        "for both runs, and p: twice the share of draws on the other side of zero"
    )
    compared = [column.results for comparison in comparisons for column in comparison.columns]
    values = {
        "runs": runs,
        "title": " against ".join(run.name for run in runs),
        "scored_on": describe_splits(compared),
        "comparisons": comparisons,
        "left_out": left_out,
        "difference_rule": rule,
        "right": RIGHT,
        "has_examples": any(column.groups for comparison in comparisons for column in comparison.columns),
    }
    return render("comparison", values, written_at=written_at)


def load_runs(folders: Sequence[Path]) -> list[Run]:
    """Read the results of runs. Each run is named after its folder.

    Raises:
        UsageError: If a folder has no results, or two paths lead to the same results.
    """
    found = [find_results(folder) for folder in folders]
    if len({path.resolve() for path in found}) < len(found):
        raise UsageError(f"found {', '.join(map(str, folders))}; expected each run once")
    return [
        Run(name=name, folder=str(folder), evaluation=str(path), results=load_results(path))
        for name, folder, path in zip(short_names(folders), folders, found, strict=True)
    ]


def short_names(folders: Sequence[Path]) -> list[str]:
    """Shorten each path to the fewest last parts that distinguish all paths."""
    paths = [folder.resolve().parts for folder in folders]
    for length in range(1, max(map(len, paths))):
        names = ["/".join(path[-length:]) for path in paths]
        if len(set(names)) == len(names):
            return names
    return [str(folder) for folder in folders]


def _by_setting(run: Run) -> dict[_Setting, Results]:
    """Return a run's results by split and protocol. Shuffled controls are left out."""
    found: dict[_Setting, Results] = {}
    for results in run.results:
        for protocol in () if results.is_control else results.protocols:
            setting = _Setting(results.origin.dataset, results.origin.split, protocol)
            known = found.setdefault(setting, results)
            if known is not results and score(known.rows, protocol).values != score(results.rows, protocol).values:
                raise UsageError(
                    f"{run.name} has different scores of {setting} in scores-{results_name(known)}.json "
                    f"({known.subject}) and in scores-{results_name(results)}.json ({results.subject}), expected one "
                    "set of scores; remove the file that is not meant"
                )
    return found


def _why_not(first: str, own: Results, name: str, theirs: _Scored, setting: _Setting) -> str:
    """Return the reason why a run cannot be compared with the first run, or an empty text if it can."""
    where = f"{setting.dataset} {setting.split}"
    of_split = [other.protocol for other in theirs if (other.dataset, other.split) == (setting.dataset, setting.split)]
    if not of_split:
        return f"{name} has no scores of {where} (it has {', '.join(map(str, theirs)) or 'none'})"
    if setting.protocol not in of_split:
        for protocol in of_split:
            if protocol.name == setting.protocol.name:
                differing = _differing_rules(setting.protocol, protocol)
                return f"{name} was scored by other rules of {protocol.name}: {differing}"
        return f"{name} has {where} only under {', '.join(protocol.name for protocol in of_split)}"
    found = theirs[setting]
    builds = [
        f"{results.origin.dataset_digest[:12]} (mask rule {RowFacts.of(results.rows).mask_rule}, "
        f"{len(results.rows):,} sentences)"
        for results in (own, found)
    ]
    if own.origin.dataset_digest != found.origin.dataset_digest:
        return f"{first} was scored on the build {builds[0]}, {name} on {builds[1]}; evaluate both on one build"
    if not are_of_same_sentences(own.rows, found.rows):
        return f"the sentences differ: {len(own.rows):,} of {first}, {len(found.rows):,} of {name}"
    return ""


def _differing_rules(first: Protocol, second: Protocol) -> str:
    ours, theirs = asdict(first), asdict(second)
    return ", ".join(f"{key} {theirs[key]} instead of {ours[key]}" for key in ours if ours[key] != theirs[key])


def _column(
    runs: tuple[Run, Run], results: tuple[Results, Results], protocol: Protocol, index: ManifestIndex | None
) -> Column:
    """Build the column of a run that is compared with the first run.

    Args:
        runs: The first run and this one.
        results: Results of both runs on the split.
        protocol: The protocol.
        index: Index of the split's images. None if the images are not available.
    """
    own, found = results
    differences = {difference.name: difference for difference in compare(own.rows, found.rows, protocol)}
    why, commands, groups = "", [], list[ComparedGroup]()
    bare = [run for run, of_run in zip(runs, results, strict=True) if not has_predictions(of_run.rows, protocol)]
    report = shlex.join(["refseg", "report", *(run.folder for run in runs)])
    if bare:
        why = f"The predicted masks of {' and '.join(run.name for run in bare)} were not kept. For examples:"
        commands = [
            evaluate_command(of_run, run.evaluation, save_predictions=True)
            for run, of_run in zip(runs, results, strict=True)
            if run in bare
        ] + [report]
    elif index is None:
        why = f"For examples, give the folder of the dataset; it is not at {own.origin.data}:"
        commands = [f"{report} --data DIR"]
    else:
        names = (runs[0].name, runs[1].name)
        groups = choose_compared_examples((own.rows, found.rows), names, protocol, index, number=EXAMPLES_PER_GROUP)
    return Column(
        name=runs[1].name,
        results=found,
        scores=score(found.rows, protocol),
        differences=differences,
        groups=tuple(groups),
        why_no_groups=why,
        commands=tuple(commands),
    )
