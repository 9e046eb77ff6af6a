"""What `import refseg` offers from Python: a built dataset, a trained model and its scores, by their folders."""

from collections.abc import Sequence
from pathlib import Path

import torch

from refseg.addresses import local_path, parse_address
from refseg.apps.evaluate_checkpoint import evaluate_checkpoint
from refseg.apps.trained_model import TrainedModel
from refseg.data.index import ManifestIndex
from refseg.data.samples import RefDataset
from refseg.errors import UsageError
from refseg.evaluation.options import EvaluateOptions
from refseg.evaluation.results import Results
from refseg.training.checkpoint import load_checkpoint


def load_dataset(folder: Path | str, *splits: str) -> RefDataset:
    """Open a built dataset: `refseg.load_dataset("shards/refcoco-unc", "train")`.

    Args:
        folder: What `refseg build-shards` or `refseg mix` wrote: a path or a URL.
        splits: One or more of its splits.

    Raises:
        DatasetError: If the dataset is unfinished, made with another tokenizer, or its files are not those it names.
        UsageError: If it has no such split, none is asked for, or the folder or a split is no name.
        StorageError: If remote storage refuses or fails.
    """
    _refuse_other_than_names(folder=folder)
    for split in splits:
        if not isinstance(split, str):
            raise UsageError(f"split: found {split!r:.60}, expected a name; several are given one by one")
    return RefDataset(ManifestIndex.open(folder, splits))


def load_model(folder: Path | str, *, device: str = "cpu") -> TrainedModel:
    """Load a trained model: `refseg.load_model("runs/toy").segment("photo.jpg", "the red cup").masks`.

    Args:
        folder: A run's folder (its best checkpoint by validation, or else its newest), a checkpoint's, or what
            `refseg publish` wrote.
        device: Where it runs, as torch says it.

    Raises:
        CheckpointError: If there is no model, or it is torn, foreign, or does not fit its recipe.
        UsageError: If there is no such device here, or the folder is no name.
    """
    _refuse_other_than_names(folder=folder)
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, TypeError, ValueError) as error:  # torch's, by what is wrong with it
        reason = str(error).partition("\n")[0]
        raise UsageError(f"device: found {device!r:.60}, which cannot be used here ({reason}); take 'cpu'") from error
    return TrainedModel(load_checkpoint(local_path(folder), device))


def evaluate(
    checkpoint: Path | str,
    dataset: Path | str | None = None,
    split: str | None = None,
    *,
    protocols: Sequence[str] = (),
    out: Path | str | None = None,
    shuffled_sentences: bool = False,
    save_predictions: bool = False,
    allow_leak: bool = False,
) -> Results:
    """Score a trained model: `refseg.evaluate("runs/toy", "shards/toy", "val").scores.by_name()`.

    Every process of an `accelerate launch` calls it, and each gets all rows.

    Args:
        checkpoint: A run's folder (its best checkpoint), a checkpoint's, or what `refseg publish` wrote.
        dataset: Path or URL of a built dataset; None: that of the recipe.
        split: Split to score; None: the recipe's `val_split`.
        protocols: Names of the rules to score by, from one pass, the headline's first; or `all`. None: the recipe's.
        out: Folder for rows and scores, as `refseg report` reads them; a pass that was interrupted is continued there.
            None: nothing is written.
        shuffled_sentences: The control: score each sentence against another target of its image.
        save_predictions: Keep the predicted masks with the rows.
        allow_leak: Score images that were trained on, too.

    Returns:
        `rows`, a table with one row per sentence; `scores` by the first protocol, `other_scores` by the others; and
        `origin`: what was scored.

    Raises:
        CheckpointError: If there is no model, or it is torn, foreign, or does not fit its recipe.
        DatasetError: If the dataset is unusable.
        UsageError: If a folder is no name, no dataset is named, it has no such split, a protocol is not known, or
            images of the split were trained on and that is not allowed.
        TrainingError: If processes are missing, or the disk refuses.
    """
    _refuse_other_than_names(folder=checkpoint)
    return evaluate_checkpoint(
        EvaluateOptions(
            checkpoint=local_path(checkpoint),
            data=None if dataset is None else parse_address(dataset),
            split=split,
            protocol=(protocols,) if isinstance(protocols, str) else tuple(protocols),
            out=None if out is None else local_path(out),
            shuffled_sentences=shuffled_sentences,
            save_predictions=save_predictions,
            allow_leak=allow_leak,
        )
    )


def _refuse_other_than_names(*, folder: object) -> None:
    if not isinstance(folder, str | Path):
        raise UsageError(f"folder: found {folder!r:.60}, expected a path")
