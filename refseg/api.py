"""What `import refseg` offers from Python: a built dataset and a trained model, by their folders."""

from pathlib import Path

from refseg.apps.trained_model import TrainedModel
from refseg.data.index import ManifestIndex
from refseg.data.samples import RefDataset
from refseg.training.checkpoint import load_checkpoint


def load_dataset(folder: Path | str, *splits: str) -> RefDataset:
    """Open a built dataset: `refseg.load_dataset("shards/refcoco-unc", "train")`.

    Args:
        folder: What `refseg build-shards` or `refseg mix` wrote: a path or a URL.
        splits: One or more of its splits.

    Raises:
        DatasetError: If the dataset is unfinished, made with another tokenizer, or its files are not those it names.
        UsageError: If it has no such split, or none is asked for.
        StorageError: If remote storage refuses or fails.
    """
    return RefDataset(ManifestIndex.open(folder, splits))


def load_model(folder: Path | str, *, device: str = "cpu") -> TrainedModel:
    """Load a trained model: `refseg.load_model("runs/toy").segment("photo.jpg", "the red cup").masks`.

    Args:
        folder: A run's folder (its best checkpoint by validation, or else its newest), a checkpoint's, or what
            `refseg publish` wrote.
        device: Where it runs, as torch says it.

    Raises:
        CheckpointError: If there is no model, or it is torn, foreign, or does not fit its recipe.
    """
    return TrainedModel(load_checkpoint(Path(folder), device))
