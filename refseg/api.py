"""What `import refseg` offers from Python: a built dataset and a trained model, by their folders."""

from pathlib import Path

import torch

from refseg.addresses import local_path
from refseg.apps.trained_model import TrainedModel
from refseg.data.index import ManifestIndex
from refseg.data.samples import RefDataset
from refseg.errors import UsageError
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


def _refuse_other_than_names(*, folder: object) -> None:
    if not isinstance(folder, str | Path):
        raise UsageError(f"folder: found {folder!r:.60}, expected a path")
