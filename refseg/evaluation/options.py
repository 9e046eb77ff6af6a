"""The arguments of evaluations, of the scoring of masks, and of reports; the command line is generated from them."""

from dataclasses import dataclass, field
from pathlib import Path

from refseg.mask_png import PngRule


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluateOptions:
    """Arguments of `refseg.apps.evaluate_checkpoint.evaluate_checkpoint`.

    Attributes:
        checkpoint: Folder of a run (its best checkpoint), of a checkpoint, or one that `refseg publish` wrote.
        data: Folder or URL of the dataset (default: that of the recipe).
        split: Split to score (default: the recipe's val_split).
        protocol: Evaluation protocols, all computed in one pass: original, cris, lavt, lisa, rela, or all; the first
            gives the headline scores (default: the recipe's protocol).
        out: Folder for rows and scores (default: RUN/evaluation).
        shuffled_sentences: Run the control experiment: score each sentence against another target of its image.
        save_predictions: Keep predicted masks with the rows, as `refseg report` needs and `refseg score` reads.
        allow_leak: Score images that the model was trained on, too; the report shows a warning in red.
    """

    checkpoint: Path
    data: Path | str | None = None
    split: str | None = None
    protocol: tuple[str, ...] = ()
    out: Path | None = None
    shuffled_sentences: bool = False
    save_predictions: bool = False
    allow_leak: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreOptions:
    """Arguments of `refseg.evaluation.score_masks.score_predictions`.

    Attributes:
        predictions: A .parquet, .json or .jsonl file of RLE masks, rows of `refseg evaluate --save-predictions`, or a
            folder of PNGs; with one mask for each sentence, of the image's size.
        data: Folder or URL of the dataset.
        split: Split for which the masks were predicted.
        protocol: Evaluation protocols: original, cris, lavt, lisa, rela, or all; the first gives the headline scores.
        out: Keep rows and scores in DIR/evaluation, for `refseg report DIR`.
        save_predictions: Keep the masks with the rows, for examples in the report.
        png_rule: Rule that says which pixels of a mask PNG are the object.
    """

    predictions: Path
    data: Path | str
    split: str
    protocol: tuple[str, ...] = ("original",)
    out: Path | None = None
    save_predictions: bool = False
    png_rule: PngRule = field(default_factory=PngRule)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportOptions:
    """Arguments of `refseg.apps.report_runs.report_runs`.

    Attributes:
        runs: Folders of runs, with results of `refseg evaluate` or `refseg score --out` in RUN/evaluation or in RUN
            itself; if there are several, each is compared with the first.
        data: Folder or URL of the dataset (default: the one recorded with the scores).
        out: HTML page to write, with a .md beside it (default: RUN/report.html, or RUN/comparison.html for several).
        explain: Load the checkpoint and shade the words of the examples by its attention.
    """

    runs: tuple[Path, ...]
    data: Path | str | None = None
    out: Path | None = None
    explain: bool = False
