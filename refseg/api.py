"""The Python interface of `import refseg`: open a built dataset, load a trained model, and score it."""

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
        folder: Path or URL of a folder that `refseg build-shards` or `refseg mix` wrote.
        splits: Names of one or more splits of the dataset.

    Raises:
        DatasetError: If the dataset is unfinished, was made with another tokenizer, or its files differ from those
            that its descriptor names.
        UsageError: If the dataset does not have the split, no split is given, or `folder` or a split has a wrong type.
        StorageError: If remote storage refuses a request or fails.
    """
    _refuse_other_than_names(folder=folder)
    for split in splits:
        if not isinstance(split, str):
            raise UsageError(f"split: found {split!r:.60}, expected a name; several names are separate arguments")
    return RefDataset(ManifestIndex.open(folder, splits))


def load_model(folder: Path | str, *, device: str = "cpu") -> TrainedModel:
    """Load a trained model: `refseg.load_model("runs/toy").segment("photo.jpg", "the red cup").masks`.

    Args:
        folder: A run's folder, a checkpoint's folder, or a folder that `refseg publish` wrote. From a run, the best
            checkpoint by validation is loaded, or the newest one if there was no validation.
        device: Name of a torch device, for example `cpu` or `cuda:0`.

    Raises:
        CheckpointError: If the folder holds no model, or the model is incomplete, was written by another program, or
            does not fit its recipe.
        UsageError: If this machine does not have the device, or `folder` has a wrong type.
    """
    _refuse_other_than_names(folder=folder)
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, TypeError, ValueError) as error:  # torch raises one of these by the cause
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

    Under `accelerate launch`, every process must call this function, and each receives all rows.

    Args:
        checkpoint: A run's folder (its best checkpoint is scored), a checkpoint's folder, or a folder that
            `refseg publish` wrote.
        dataset: Path or URL of a built dataset; None: the dataset of the recipe.
        split: Split to score; None: the recipe's `val_split`.
        protocols: Names of the evaluation protocols, all computed in one pass over the images; the first gives the
            headline scores. `all` selects every protocol. Empty: the recipe's protocol.
        out: Folder for rows and scores, as `refseg report` reads them. An interrupted evaluation resumes there.
            None: nothing is written.
        shuffled_sentences: Run the control experiment: score each sentence against another target of its image.
        save_predictions: Keep the predicted masks with the rows.
        allow_leak: Score images that the model was trained on, too.

    Returns:
        `rows`: a table with one row per sentence. `scores`: the scores by the first protocol; `other_scores`: those
        by the others. `origin`: the model and dataset that were scored.

    Raises:
        CheckpointError: If the folder holds no model, or the model is incomplete, was written by another program, or
            does not fit its recipe.
        DatasetError: If the dataset is unusable.
        UsageError: If `checkpoint` has a wrong type, or if no dataset is named, or if the split or a protocol is
            unknown. Also if the model was trained on images of the split and `allow_leak` is False.
        TrainingError: If processes are missing, or a file cannot be written.
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
