"""Fine-tuning: the weights of another training that a run starts from, and what those were trained on."""

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

_NO_ARCHITECTURE = {
    "image_weights", "text_weights", "random_start", "dropout", "location_weight", "location_target",
}  # fmt: skip
"""Keys of `[model]` that change how a model is trained and not what its weights mean."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StartWeights:
    """What a run starts from.

    Attributes:
        tensors: By name; averaged ones where that training kept an average.
        ancestors: The model they are of, and those that it came from itself; the nearest first.
        path: The folder they were read from.
    """

    tensors: Mapping[str, Tensor]
    ancestors: tuple[Ancestor, ...]
    path: Path

    def put_into(self, model: SegmentationModel) -> None:
        """Start a model with them.

        Raises:
            CheckpointError: If it has other weights, as Swin may at another input size.
        """
        fit_weights(
            model, self.tensors, where=str(self.path), remedy="set data.input_size and [model] as they are there"
        )


def load_start_weights(recipe: Recipe) -> StartWeights:
    """Read the weights that `train.init_from` names, found as `refseg predict` finds them.

    Weights of another input size are taken: where they hold a native grid, they are resized to the recipe's.

    Args:
        recipe: Of the run; `train.init_from` is set.

    Raises:
        CheckpointError: If there is no model, or it is torn or foreign.
        RecipeError: If it is of another architecture than the recipe's; each key is named.
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
            "%s was trained at %s pixels, this run at %s: its native grid is resized",
            given, found.recipe.data.input_size, recipe.data.input_size,
        )  # fmt: skip
    idle = [key for key in ("image_weights", "text_weights") if getattr(recipe.model, key)]
    if idle:
        logger.info("train.init_from gives all weights: model.%s is not read", " and model.".join(idle))
    ancestor = found.state.lineage.as_ancestor(
        path=given, weights_sha256=file_sha256(weights_file(found.folder)), step=found.step
    )
    logger.info(
        "starting from %s: step %d on %s, SHA-256 %s",
        found.folder, ancestor.step, ancestor.dataset, ancestor.weights_sha256[:12],
    )  # fmt: skip
    return StartWeights(tensors=tensors, ancestors=(ancestor, *found.state.lineage.ancestors), path=found.folder)


def refuse_another_start(state: CheckpointState, recipe: Recipe, *, out: Path) -> None:
    """Refuse to go on with a run that began from other weights than the recipe names now.

    A run that goes on has weights of its own: what it began from may be moved or gone, and only a file that is there
    and another one is refused.

    Raises:
        RecipeError: If the run began from other weights, or from none.
    """
    given = recipe.train.init_from
    if not given:
        return
    if not state.lineage.ancestors:
        raise RecipeError(
            f"{out} holds a run that began without train.init_from, which only a new run can begin with: choose "
            "another --out, or leave it out to go on"
        )
    began = state.lineage.ancestors[0]
    if given == began.path:
        return
    try:
        sha256 = file_sha256(weights_file(Path(given)))
    except (CheckpointError, OSError):
        return
    if sha256 != began.weights_sha256:
        raise RecipeError(
            f"{out} holds a run that began from {began.path} (weights with SHA-256 {began.weights_sha256[:12]}), but "
            f"train.init_from names {given} ({sha256[:12]}); choose another --out, or leave it as it was to go on"
        )


def _refuse_another_architecture(found: Checkpoint, recipe: Recipe) -> None:
    theirs, ours = found.recipe.to_dict()["model"], recipe.to_dict()["model"]
    ignored = set(_NO_ARCHITECTURE)
    if theirs.get("reconstruction_weight") and ours.get("reconstruction_weight"):  # with 0 its module is not built
        ignored.add("reconstruction_weight")
    differing = [key for key in {**theirs, **ours} if key not in ignored and theirs.get(key) != ours.get(key)]
    if not differing:
        return
    said = [f"model.{key} is {_shown(theirs.get(key))} there, {_shown(ours.get(key))} here" for key in differing]
    wanted = [f"model.{key}={json.dumps(theirs[key])}" for key in differing if theirs.get(key) is not None]
    unwanted = [f"model.{key}" for key in differing if theirs.get(key) is None]
    advice = [f"--set {' '.join(wanted)}" if wanted else "", f"leave out {', '.join(unwanted)}" if unwanted else ""]
    raise RecipeError(
        f"train.init_from: {found.folder} holds a model of another architecture than the recipe's:\n"
        + "".join(f"  {line}\n" for line in said)
        + f"  take what is there ({'; '.join(part for part in advice if part)}), or train without it"
    )


def _shown(value: object) -> str:
    return "absent" if value is None else json.dumps(value)
