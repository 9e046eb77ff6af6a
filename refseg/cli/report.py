"""`refseg report`: one self-contained page of scores, curves and examples, or of several runs side by side."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from refseg.addresses import address_argument, path_argument

if TYPE_CHECKING:
    from refseg.data.index import ManifestIndex
    from refseg.evaluation.explanation import Explainer
    from refseg.evaluation.pages import Report
    from refseg.evaluation.results import Results

EXAMPLE = """refseg evaluate runs/toy --split val --save-predictions
  refseg report runs/toy --out report.html
  refseg report runs/toy runs/other --out comparison.html"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "run_folders",
        type=path_argument,
        nargs="+",
        metavar="RUN",
        help="a run's folder, with what `refseg evaluate` or `refseg score --out` wrote in RUN/evaluation or in RUN "
        "itself; of several, each is compared with the first",
    )
    parser.add_argument(
        "--data",
        type=address_argument,
        metavar="DIR",
        help="the dataset's folder or URL (default: where it was scored)",
    )
    parser.add_argument(
        "--out",
        type=path_argument,
        metavar="FILE.html",
        help="the page; a .md goes beside it (default: RUN/report.html, of several runs RUN/comparison.html)",
    )
    parser.add_argument(
        "--explain", action="store_true", help="load the checkpoint and shade the examples' words by its attention"
    )


def run(args: argparse.Namespace) -> int:
    from datetime import UTC, datetime

    from refseg.errors import UsageError
    from refseg.evaluation.comparison import build_comparison, load_runs
    from refseg.evaluation.report import RunRecord, build_report
    from refseg.evaluation.results import find_results, load_results
    from refseg.training.run_files import ENVIRONMENT_NAME, RECIPE_NAME, read_facts, read_metrics

    folder: Path = args.run_folders[0]
    several = len(args.run_folders) > 1
    out: Path = args.out or folder / ("comparison.html" if several else "report.html")
    if out.suffix != ".html":
        raise UsageError(f"--out: found {out}, expected a file name that ends in .html")
    _refuse_foreign(out)
    for run_folder in args.run_folders:
        if not run_folder.is_dir():
            raise UsageError(f"{run_folder}: no such folder; expected a run that refseg/train.py wrote")
    if several:
        _write(out, build_comparison(load_runs(args.run_folders), written_at=datetime.now(UTC)))
        return 0
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
        _open_indexes(results, args.data),
        written_at=datetime.now(UTC),
        explainers=_load_explainers(results) if args.explain else None,
    )
    _write(out, report)
    return 0


_MARK = " – refseg report</title>"
"""In the head of every page."""


def _refuse_foreign(out: Path) -> None:
    """Refuse to replace a file that no earlier call wrote; the Markdown belongs to the page beside it."""
    from refseg.errors import UsageError

    if out.is_file() and _MARK.encode() in out.read_bytes()[:_MARKED_BYTES]:
        return
    for path in (out, out.with_suffix(".md")):
        if path.exists():
            raise UsageError(f"--out: {path} is not a page of `refseg report`; remove it, or name another file")


_MARKED_BYTES = 4096


def _write(out: Path, report: "Report") -> None:
    """Write the page and the Markdown beside it, each whole or not at all."""
    from refseg.aside import write_aside

    out.parent.mkdir(parents=True, exist_ok=True)
    for path, text in ((out, report.html), (out.with_suffix(".md"), report.markdown)):
        write_aside(path, text)
        print(path)


def _open_indexes(results: "list[Results]", data: str | None) -> "dict[str, ManifestIndex]":
    """The images of each split; a dataset that has moved is left out unless its folder was named."""
    from refseg.data.index import ManifestIndex
    from refseg.errors import UsageError
    from refseg.storage import open_folder

    indexes = {}
    for scored in results:
        folder = data or scored.origin.data
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


def _load_explainers(results: "list[Results]") -> "dict[str, Explainer]":
    """The model behind each of the results; scored masks have none."""
    import torch

    from refseg.data.transforms import Geometry
    from refseg.evaluation.explanation import Explainer
    from refseg.evaluation.origin import OriginOfModel
    from refseg.training.checkpoint import load_checkpoint

    explainers = {}
    for name in {scored.origin.checkpoint for scored in results if isinstance(scored.origin, OriginOfModel)}:
        checkpoint = load_checkpoint(Path(name), "cuda" if torch.cuda.is_available() else "cpu")
        model, data = checkpoint.model, checkpoint.recipe.data
        geometry = Geometry(kind=data.geometry, size=data.input_size, mean=model.image_mean)
        explainers[name] = Explainer(model=model, geometry=geometry, num_tokens=data.num_tokens)
    return explainers
