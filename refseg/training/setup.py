"""Builds the model and the loader of this rank's batches. Refuses recipes that cannot be trained."""

import torch
from accelerate import Accelerator
from timm.layers import convert_sync_batchnorm

from refseg.config import Recipe
from refseg.data.index import ManifestIndex
from refseg.data.loader import RefLoader
from refseg.data.transforms import Geometry
from refseg.dataset.descriptor import load_descriptor, unknown_split
from refseg.errors import RecipeError
from refseg.models import build_model
from refseg.models.model import SegmentationModel
from refseg.models.pretrained import load_pretrained
from refseg.reading import Reading
from refseg.training.start_weights import StartWeights


def refuse_random_start(recipe: Recipe) -> None:
    """Refuse a new run whose encoders would start from random weights, unless the recipe requests this.

    The GRU of LTS is exempt. It has no published weights and always starts from random weights.

    Args:
        recipe: Recipe of a run that neither resumes nor has `train.init_from`.

    Raises:
        RecipeError: If weights are missing. The message names the keys to set.
    """
    model = recipe.model
    keys = ["image_weights"] + ["text_weights"] * (getattr(model, "text_encoder", "clip") != "bigru")
    missing = [f"model.{key}" for key in keys if not getattr(model, key)]
    if missing and not model.random_start:
        raise RecipeError(
            f"{' and '.join(missing)}: not set, so the run would start from random weights and not reach the published "
            f"scores; name the files (docs/weights.md says where to get them): --set "
            f"{' '.join(f'{key}=FILE' for key in missing)}; or ask for random weights: --set "
            "model.random_start=true"
        )


def refuse_unknown_splits(recipe: Recipe) -> None:
    """Refuse a training or validation split that does not exist in its dataset.

    Raises:
        DatasetError: If a dataset is unfinished or damaged.
        RecipeError: If splits do not exist. The message has one line per missing split.
    """
    data = recipe.data
    asked = [("train_split", data.root, data.train_split, "name one with data.train_split=")]
    if recipe.train.val_every_epochs:
        hint = "name one with data.val_split=, or train without validation: train.val_every_epochs=0"
        asked.append(("val_split", data.val_root or data.root, data.val_split, hint))
    mistakes = []
    for key, folder, split, hint in asked:
        descriptor = load_descriptor(folder)
        if split not in descriptor.splits:
            mistakes.append(f"data.{key}: {unknown_split(folder, descriptor, split)}; {hint}")
    if mistakes:
        raise RecipeError("\n".join(mistakes))


def build_start_model(
    recipe: Recipe, accelerator: Accelerator, start: StartWeights | None, *, is_resumed: bool
) -> SegmentationModel:
    """Build the model on the device with its start weights. They are the same on every rank.

    Args:
        recipe: Recipe of the run.
        accelerator: Accelerator of the run. It provides the device.
        start: Weights of another run. If None, the model gets the pretrained weights that the recipe names. All
            remaining weights are random.
        is_resumed: True if a checkpoint's weights will be loaded afterwards. No pretrained weights are read in this
            case.

    Raises:
        CheckpointError: If weights do not fit the model.
    """
    torch.manual_seed(recipe.train.seed)
    model = build_model(recipe.model, input_size=recipe.data.input_size)
    if start is not None:
        start.put_into(model)
    elif not is_resumed:
        load_pretrained(model, recipe.model)
    if recipe.train.batchnorm == "sync" and accelerator.num_processes > 1:
        model = convert_sync_batchnorm(model)
    if accelerator.device.type == "cuda":
        return model.to(memory_format=torch.channels_last).to(accelerator.device)
    return model


def build_loader(recipe: Recipe, index: ManifestIndex, geometry: Geometry, accelerator: Accelerator) -> RefLoader:
    """Build the loader of this rank's share of each global batch.

    Raises:
        RecipeError: If the processes cannot share a batch evenly.
        UsageError: If the split has fewer samples than a batch.
    """
    config = recipe.train
    if config.global_batch % accelerator.num_processes:
        raise RecipeError(
            f"train.global_batch: {config.global_batch} cannot be shared evenly by {accelerator.num_processes} "
            f"processes; take a multiple of {accelerator.num_processes}"
        )
    reading = Reading.of(
        recipe.data,
        global_batch=config.global_batch,
        seed=config.seed,
        trim_tokens=not config.compile,  # does not change results: text attention is causal and padding is masked
        image_mean=geometry.mean,
    )
    return RefLoader(index, reading, rank=accelerator.process_index, world_size=accelerator.num_processes)
