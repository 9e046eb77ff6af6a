"""What is asked of an evaluation, of scored masks and of a report: the arguments of their functions and commands."""

from dataclasses import dataclass, field
from pathlib import Path

from refseg.mask_png import PngRule


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluateOptions:
    """What `refseg.apps.evaluate_checkpoint.evaluate_checkpoint` does.

    Attributes:
        checkpoint: A run's folder (its best checkpoint), a checkpoint's, or what `refseg publish` wrote.
        data: The dataset's folder or URL (default: that of the recipe).
        split: Split to score (default: the recipe's val_split).
        protocol: Rules to score by, from one pass: original, cris, lavt, lisa, rela, or all; the first is the headline
            (default: the recipe's).
        out: Where rows and scores go (default: RUN/evaluation).
        shuffled_sentences: The control: score each sentence against another target of its image.
        save_predictions: Keep predicted masks with the rows, as `refseg report` needs and `refseg score` reads.
        allow_leak: Score images that were trained on, too; the report says so in red.
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
    """What `refseg.evaluation.score_masks.score_predictions` does.

    Attributes:
        predictions: A .parquet, .json or .jsonl file of RLE masks, rows of `refseg evaluate --save-predictions`, or a
            folder of PNGs; one mask for each sentence, of the image's size.
        data: The dataset's folder or URL.
        split: Split that was predicted.
        protocol: Rules to score by: original, cris, lavt, lisa, rela, or all; the first is the headline.
        out: Keep rows and scores in DIR/evaluation, for `refseg report DIR`.
        save_predictions: Keep the masks with the rows, for examples in the report.
        png_rule: Which pixels of a mask PNG are the object.
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
    """What `refseg.apps.report_runs.report_runs` does.

    Attributes:
        runs: A run's folder, with what `refseg evaluate` or `refseg score --out` wrote in RUN/evaluation or in RUN
            itself; of several, each is compared with the first.
        data: The dataset's folder or URL (default: where it was scored).
        out: The page; a .md goes beside it (default: RUN/report.html, of several runs RUN/comparison.html).
        explain: Load the checkpoint and shade the examples' words by its attention.
    """

    runs: tuple[Path, ...]
    data: Path | str | None = None
    out: Path | None = None
    explain: bool = False
