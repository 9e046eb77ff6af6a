"""Reads the weights of another run from which fine-tuning starts. Records what they were trained on."""

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from refseg.config import Recipe
from refseg.errors import CheckpointError, RecipeError
from refseg.lineage import Ancestor
from refseg.models.fcnet import resize_native_grid
from refseg.models.mask_decoder import feature_grid
from refseg.models.model import SegmentationModel
from refseg.models.weight_files import file_sha256
from refseg.training.checkpoint import Checkpoint, fit_weights, load_checkpoint, weights_file
from refseg.training.checkpoint_state import CheckpointState

logger = logging.getLogger(__name__)

_NOT_ARCHITECTURE = {
    "image_weights", "text_weights", "random_start", "dropout", "location_weight", "location_target",
}  # fmt: skip
"""Keys of `[model]` that affect the training but not the architecture."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StartWeights:
    """The weights that a run starts from.

    Attributes:
        tensors: Tensors by name. They are the averaged weights if the earlier run kept an average.
        ancestors: The model to which the weights belong, followed by the models from which it was trained, the nearest
            first.
        path: The folder from which the weights were read.
    """

    tensors: Mapping[str, Tensor]
    ancestors: tuple[Ancestor, ...]
    path: Path

    def put_into(self, model: SegmentationModel) -> None:
        """Load the weights into a model.

        Raises:
            CheckpointError: If names or shapes differ. This happens with Swin at another input size.
        """
        fit_weights(
            model, self.tensors, where=str(self.path), remedy="set data.input_size and [model] to that run's values"
        )


def load_start_weights(recipe: Recipe) -> StartWeights:
    """Read the weights that `train.init_from` names. For a run's folder, its best checkpoint is used.

    Weights for another input size are accepted. If the weights contain a grid for their input size, it is resized to
    the grid of the recipe.

    Args:
        recipe: Recipe of the run, with `train.init_from` set.

    Raises:
        CheckpointError: If there is no model. If the model is damaged or was written by another program.
        RecipeError: If the architecture differs from the recipe. The message names each differing key.
    """
    given = recipe.train.init_from
    found = load_checkpoint(Path(given))
    _refuse_another_architecture(found, recipe)
    tensors = found.model.state_dict()
    grid = feature_grid(recipe.data.input_size)
    grids = [tuple(tensor.tolist()) for name, tensor in tensors.items() if name.endswith("native_grid")]
    if any(other != grid for other in grids):
        tensors = resize_native_grid(tensors, grid)
        logger.info(
            "%s was trained at %s pixels and this run uses %s: the native grid of its weights is resized",
            given, found.recipe.data.input_size, recipe.data.input_size,
        )  # fmt: skip
    idle = [key for key in ("image_weights", "text_weights") if getattr(recipe.model, key)]
    if idle:
        logger.info("train.init_from gives all weights, so model.%s is not read", " and model.".join(idle))
    ancestor = found.state.lineage.as_ancestor(
        path=given, weights_sha256=file_sha256(weights_file(found.folder)), step=found.step
    )
    logger.info(
        "starting from %s: step %d on %s, SHA-256 %s",
        found.folder, ancestor.step, ancestor.dataset, ancestor.weights_sha256[:12],
    )  # fmt: skip
    return StartWeights(tensors=tensors, ancestors=(ancestor, *found.state.lineage.ancestors), path=found.folder)


def refuse_another_start(state: CheckpointState, recipe: Recipe, *, out: Path) -> None:
    """Refuse to resume a run that started from other weights than the recipe now names.

    A resumed run reads its weights from a checkpoint, so the start weights may have been moved or removed. Only an
    existing file with other content is refused.

    Raises:
        RecipeError: If the run started from other weights, or without `train.init_from`.
    """
    given = recipe.train.init_from
    if not given:
        return
    if not state.lineage.ancestors:
        raise RecipeError(
            f"{out} holds a run that started without train.init_from, and only a new run can start with it: choose "
            "another --out, or leave train.init_from out to resume"
        )
    start = state.lineage.ancestors[0]
    if given == start.path:
        return
    try:
        sha256 = file_sha256(weights_file(Path(given)))
    except (CheckpointError, OSError):
        return
    if sha256 != start.weights_sha256:
        raise RecipeError(
            f"{out} holds a run that started from {start.path} (weights with SHA-256 {start.weights_sha256[:12]}), but "
            f"train.init_from names {given} ({sha256[:12]}); choose another --out, or set train.init_from to "
            f"{start.path} to resume"
        )


def _refuse_another_architecture(found: Checkpoint, recipe: Recipe) -> None:
    theirs, ours = found.recipe.to_dict()["model"], recipe.to_dict()["model"]
    ignored = set(_NOT_ARCHITECTURE)
    if theirs.get("reconstruction_weight") and ours.get("reconstruction_weight"):  # with 0 the module is not built
        ignored.add("reconstruction_weight")
    differing = [key for key in {**theirs, **ours} if key not in ignored and theirs.get(key) != ours.get(key)]
    if not differing:
        return
    listed = [
        f"model.{key} is {_shown(theirs.get(key))} in that model, {_shown(ours.get(key))} in the recipe"
        for key in differing
    ]
    wanted = [f"model.{key}={json.dumps(theirs[key])}" for key in differing if theirs.get(key) is not None]
    unwanted = [f"model.{key}" for key in differing if theirs.get(key) is None]
    advice = [f"--set {' '.join(wanted)}" if wanted else "", f"leave out {', '.join(unwanted)}" if unwanted else ""]
    raise RecipeError(
        f"train.init_from: {found.folder} holds a model of another architecture than the recipe's:\n"
        + "".join(f"  {line}\n" for line in listed)
        + f"  use that architecture ({'; '.join(part for part in advice if part)}), or leave out train.init_from"
    )


def _shown(value: object) -> str:
    return "absent" if value is None else json.dumps(value)
