"""Implements `refseg report`. Writes the report of a run, or the comparison of several runs."""

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import torch

from refseg.aside import write_aside
from refseg.data.index import ManifestIndex
from refseg.data.transforms import Geometry
from refseg.errors import UsageError
from refseg.evaluation.comparison import build_comparison, load_runs
from refseg.evaluation.explanation import Explainer
from refseg.evaluation.options import ReportOptions
from refseg.evaluation.origin import OriginOfModel
from refseg.evaluation.pages import Report
from refseg.evaluation.report import RunRecord, build_report
from refseg.evaluation.results import Results, find_results, load_results
from refseg.storage import open_folder
from refseg.training.checkpoint import load_checkpoint
from refseg.training.run_files import ENVIRONMENT_NAME, RECIPE_NAME, read_facts, read_metrics

_MARK = " – refseg report</title>"
"""End of the title of every report."""
_MARKED_BYTES = 4096


def report_runs(options: ReportOptions) -> tuple[Path, Path]:
    """Write the report of one run, or the comparison of several.

    Returns:
        The page and the Markdown file beside it.

    Raises:
        UsageError: If a folder is missing. If `out` does not end in `.html` or is another file. If a dataset is not the
            one that was scored. If several runs have nothing to compare.
        ResultsError: If a run has no results, or the results cannot be read.
        CheckpointError: If the examples are to be explained and a checkpoint cannot be loaded.
    """
    folder, *others = options.runs
    out = options.out or folder / ("comparison.html" if others else "report.html")
    if out.suffix != ".html":
        raise UsageError(f"--out: found {out}, expected a file name that ends in .html")
    _refuse_foreign(out)
    for run in options.runs:
        if not run.is_dir():
            raise UsageError(f"{run}: no such folder; expected a run that refseg/train.py wrote")
    if others:
        runs = load_runs(options.runs)
        indexes = _open_indexes(runs[0].results, options.data)
        return _write(out, build_comparison(runs, indexes, written_at=datetime.now(UTC)))
    evaluation = find_results(folder)
    results = load_results(evaluation)
    record = RunRecord(
        name=folder.resolve().name,
        folder=str(folder),
        evaluation=str(evaluation),
        metrics=read_metrics(folder),
        recipe=read_facts(folder / RECIPE_NAME, sections=None),
        environment=read_facts(folder / ENVIRONMENT_NAME, sections=["packages"]),
    )
    report = build_report(
        record,
        results,
        _open_indexes(results, options.data),
        written_at=datetime.now(UTC),
        explainers=_load_explainers(results) if options.explain else None,
    )
    return _write(out, report)


def _refuse_foreign(out: Path) -> None:
    """Refuse to replace a file that no earlier call wrote. The Markdown file is checked together with the page."""
    if out.is_file() and _MARK.encode() in out.read_bytes()[:_MARKED_BYTES]:
        return
    for path in (out, out.with_suffix(".md")):
        if path.exists():
            raise UsageError(f"--out: {path} is not a page of `refseg report`; remove it, or name another file")


def _write(out: Path, report: Report) -> tuple[Path, Path]:
    """Write the page and the Markdown file beside it, each completely or not at all."""
    out.parent.mkdir(parents=True, exist_ok=True)
    markdown = out.with_suffix(".md")
    for path, text in ((out, report.html), (markdown, report.markdown)):
        write_aside(path, text)
    return out, markdown


def _open_indexes(results: Sequence[Results], data: Path | str | None) -> dict[str, ManifestIndex]:
    """Open the index of each split. A dataset that has moved is left out unless its folder was named."""
    indexes = {}
    for scored in results:
        folder = str(data or scored.origin.data)
        if scored.is_control or (data is None and not open_folder(folder).exists()):
            continue
        index = ManifestIndex.open(folder, [scored.origin.split])
        if index.descriptor.digest != scored.origin.dataset_digest:
            raise UsageError(
                f"{folder}: found the dataset with digest {index.descriptor.digest[:12]}, but "
                f"{scored.origin.split} was scored on {scored.origin.dataset_digest[:12]}; "
                "name the one that was scored with --data, or evaluate again"
            )
        indexes[scored.origin.scored_on] = index
    return indexes


def _load_explainers(results: Sequence[Results]) -> dict[str, Explainer]:
    """Load the model of each result. Results of other projects' masks have no model."""
    explainers = {}
    for name in {scored.origin.checkpoint for scored in results if isinstance(scored.origin, OriginOfModel)}:
        checkpoint = load_checkpoint(Path(name), "cuda" if torch.cuda.is_available() else "cpu")
        model, data = checkpoint.model, checkpoint.recipe.data
        geometry = Geometry(kind=data.geometry, size=data.input_size, mean=model.image_mean)
        explainers[name] = Explainer(model=model, geometry=geometry, num_tokens=data.num_tokens)
    return explainers
