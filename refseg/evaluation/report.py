"""Builds the report of a run as a self-contained HTML page and as Markdown."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from refseg.data.index import ManifestIndex
from refseg.evaluation.bootstrap import Interval, confidence_intervals
from refseg.evaluation.breakdown import BREAKDOWNS, Group, iou_histogram
from refseg.evaluation.curves import HEIGHT, WIDTH, Chart, draw_chart
from refseg.evaluation.examples import ExampleGroup, choose_examples
from refseg.evaluation.explanation import Explain
from refseg.evaluation.origin import Origin, OriginOfMasks, OriginOfModel
from refseg.evaluation.pages import Report, render
from refseg.evaluation.results import INTERVAL_RULE, Results, results_name
from refseg.evaluation.rows import has_predictions
from refseg.evaluation.scores import Scores
from refseg.lineage import TrainingSet

EXAMPLES_PER_GROUP = 6
WORST_EXAMPLES = 24
"""Number of the worst examples, which is larger because readers sort and search these."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRecord:
    """The recorded files of a run, as plain JSON values.

    Attributes:
        name: Name of the run for the title.
        folder: The run's folder, as the user wrote it.
        evaluation: Folder with the results of the run. It is `folder` or its subfolder `evaluation`.
        metrics: Lines of `metrics.jsonl`.
        recipe: Settings by section. Empty if they were not recorded.
        environment: Versions, hardware and commit. Empty if they were not recorded.
    """

    name: str
    folder: str
    evaluation: str
    metrics: Sequence[Mapping[str, Any]]
    recipe: Mapping[str, Mapping[str, Any]]
    environment: Mapping[str, Any]


@dataclass(frozen=True)
class ReportedSplit:
    """The results of one split in the report, with the shuffled control, the images and the model if available."""

    folder: str
    evaluation: str
    results: Results
    control: Results | None
    index: ManifestIndex | None
    explain: Explain | None

    @cached_property
    def scores(self) -> Scores:
        """Scores of the split by the first protocol."""
        return self.results.scores

    @cached_property
    def control_scores(self) -> Scores | None:
        """Scores of the shuffled control. None if there is no control."""
        return self.control.scores if self.control else None

    @property
    def title(self) -> str:
        """Dataset and split."""
        return self.results.origin.scored_on

    @property
    def anchor(self) -> str:
        """Name of the split's anchor in the page."""
        return results_name(self.results)

    @cached_property
    def all_scores(self) -> list[Scores]:
        """Scores under each protocol, headline protocol first."""
        return [self.scores, *self.results.other_scores]

    @cached_property
    def intervals(self) -> dict[str, dict[str, Interval]]:
        """Confidence interval of each score, by protocol."""
        return {
            scores.protocol.name: confidence_intervals(self.results.rows, scores.protocol) for scores in self.all_scores
        }

    @property
    def leak_warning(self) -> str:
        """Warning to show with the scores of a model that was trained with leaks. Empty for other models."""
        return self.results.origin.leak_warning

    @cached_property
    def breakdowns(self) -> dict[str, list[Group]]:
        """Scores of groups of sentences, by the title of the grouping."""
        found = {title: group(self.results.rows, self.scores.protocol) for title, group in BREAKDOWNS.items()}
        return {title: groups for title, groups in found.items() if groups}

    @cached_property
    def histogram(self) -> list[int]:
        """Number of sentences in each tenth of IoU."""
        return iou_histogram(self.results.rows, self.scores.protocol, num_bins=10)

    @cached_property
    def examples(self) -> list[ExampleGroup]:
        """The best, worst and random examples. Empty if the images are not available."""
        if self.index is None:
            return []
        return choose_examples(
            self.results.rows,
            self.scores.protocol,
            self.index,
            number=EXAMPLES_PER_GROUP,
            num_worst=WORST_EXAMPLES,
            explain=self.explain,
        )

    @property
    def why_no_examples(self) -> str:
        """Message that says what is missing for examples. Empty if nothing is missing."""
        if has_predictions(self.results.rows, self.scores.protocol):
            return "" if self.index else f"The dataset was not found at {self.results.origin.data}: name its folder."
        again = "score" if isinstance(self.results.origin, OriginOfMasks) else "evaluate"
        return f"No predicted masks were kept. For examples, {again} again and keep them:"

    @property
    def examples_commands(self) -> list[str]:
        """The commands to run for a page with examples."""
        if has_predictions(self.results.rows, self.scores.protocol):
            return [shlex.join(["refseg", "report", self.folder, "--data"]) + " DIR"]
        again = evaluate_command(self.results, self.evaluation, save_predictions=True)
        return [again, shlex.join(["refseg", "report", self.folder])]


def build_report(
    run: RunRecord,
    results: Sequence[Results],
    indexes: Mapping[str, ManifestIndex],
    *,
    written_at: datetime,
    explainers: Mapping[str, Explain] | None = None,
) -> Report:
    """Build a page with a run's scores, curves and examples.

    Args:
        run: Recorded files of the run.
        results: Results of at least one split, with the shuffled controls if there are any.
        indexes: Indexes of the images, by dataset and split (`toy/refseg val`). Without one, the page says what is
            missing for examples.
        written_at: Time that is shown at the end of the page.
        explainers: Functions that explain sentences, by the checkpoint that the results name. They are used to shade
            the words of examples. If None, words are not shaded.
    """
    controls = {_control_key(other): other for other in results if other.is_control}
    sections = [
        ReportedSplit(
            folder=run.folder,
            evaluation=run.evaluation,
            results=own,
            control=controls.get(_control_key(own)),
            index=indexes.get(own.origin.scored_on),
            explain=(explainers or {}).get(own.origin.checkpoint) if isinstance(own.origin, OriginOfModel) else None,
        )
        for own in results
        if not own.is_control
    ]
    values = {
        "run": run,
        "title": f"{_describe_model(run, results[0])} on {describe_splits(results)}, {written_at:%Y-%m-%d}",
        "sections": sections,
        "has_examples": any(section.examples for section in sections),
        "interval_rule": INTERVAL_RULE,
        "charts": _charts(run.metrics),
        "facts": _facts(run, results),
        "chart_size": (WIDTH, HEIGHT),
    }
    return render("report", values, written_at=written_at)


def _describe_model(run: RunRecord, results: Results) -> str:
    """Return a description of what was scored for the title, if possible the architecture and image encoder."""
    model = run.recipe.get("model", {})
    if isinstance(results.origin, OriginOfMasks) or "name" not in model:
        return results.subject[:1].upper() + results.subject[1:]
    return f"{model['name']} ({model['image_encoder']})" if "image_encoder" in model else str(model["name"])


def describe_splits(results: Sequence[Results]) -> str:
    """Return the datasets with their splits, for example `refcoco/unc val, testA; refcocog/umd val`."""
    splits: dict[str, list[str]] = {}
    for own in results:
        names = splits.setdefault(own.origin.dataset, [])
        if own.origin.split not in names:
            names.append(own.origin.split)
    return "; ".join(f"{dataset} {', '.join(names)}" for dataset, names in splits.items())


def _control_key(results: Results) -> tuple[str, ...]:
    """Return a key that is the same for results and their shuffled control."""
    return (results.origin.scored_on, results.subject, results.protocols[0].name)


def _charts(metrics: Sequence[Mapping[str, Any]]) -> list[Chart]:
    def points(kind: str, key: str) -> list[tuple[int, float]]:
        return [(line["step"], line[key]) for line in metrics if line["kind"] == kind and key in line]

    charts = (
        draw_chart("Training loss", {"loss": points("train", "loss")}),
        draw_chart("Validation, %", {name: points("val", name) for name in ("oIoU", "mIoU")}, percent=True),
        draw_chart("Learning rate", {"lr": points("train", "lr")}),
    )
    return [chart for chart in charts if chart is not None]


def _describe_training(trained: TrainingSet) -> str:
    return (
        f"{trained.dataset}, digest {trained.dataset_digest[:16]}{', LEAKS ALLOWED' if trained.leaks_allowed else ''}"
    )


def _describe_subject(origin: Origin) -> dict[str, str]:
    """Describe what was scored. For a model, also describe its training set and the origin of its start weights."""
    if isinstance(origin, OriginOfMasks):
        return {"predictions": origin.predictions}
    ancestors = [
        f"{each.path} at step {each.step:,}, trained on {_describe_training(each)}" for each in origin.lineage.ancestors
    ]
    return {
        "checkpoint": origin.checkpoint,
        "step": f"{origin.step:,}",
        "trained on": _describe_training(origin.lineage),
        **({"started from": "; before that ".join(ancestors)} if ancestors else {}),
    }


def _facts(run: RunRecord, results: Sequence[Results]) -> dict[str, dict[str, str]]:
    """Return all recorded information about the run as text, by heading."""
    origin = results[0].origin
    scored = {
        **_describe_subject(origin),
        "scored on": f"{origin.dataset}, digest {origin.dataset_digest[:16]}",
        **({"leaks": leaks} if (leaks := origin.leak_warning or origin.leak_statement) else {}),
        "again with": "; ".join(
            evaluate_command(other, run.evaluation, save_predictions=has_predictions(other.rows, other.protocols[0]))
            for other in results
        ),
    }
    packages = run.environment.get("packages", {})
    surroundings = {name: str(value) for name, value in run.environment.items() if name != "packages"}
    if packages:
        surroundings["packages"] = ", ".join(f"{name} {version}" for name, version in packages.items())
    return {
        "Scored": scored,
        **({"Trained with": surroundings} if surroundings else {}),
        **{
            f"Recipe: {section}": {key: _plain(value) for key, value in settings.items()}
            for section, settings in run.recipe.items()
        },
    }


def evaluate_command(results: Results, evaluation: str, *, save_predictions: bool) -> str:
    """Return the command line that writes these results again into their folder."""
    origin = results.origin
    out = Path(evaluation)
    if isinstance(origin, OriginOfMasks):
        words = ["refseg", "score", origin.predictions]
        out = out.parent if out.name == "evaluation" else out  # the command makes the folder `evaluation` itself
    else:
        words = ["refseg", "evaluate", origin.checkpoint]
    words += ["--data", origin.data, "--split", origin.split]
    words += ["--protocol", *(protocol.name for protocol in results.protocols), "--out", str(out)]
    if isinstance(origin, OriginOfModel) and origin.leak_check is not None and origin.leak_check.num_shared:
        words.append("--allow-leak")
    if results.is_control:
        words.append("--shuffled-sentences")
    if save_predictions:
        words.append("--save-predictions")
    return shlex.join(words)


def _plain(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(str(entry) for entry in value)
    return "–" if value in (None, "") else str(value)
