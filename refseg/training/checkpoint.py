"""Finds, checks and reads checkpoints. A damaged checkpoint is skipped, and the previous one is loaded instead.

OUT/checkpoints/
  step-00000120/
    model.safetensors    weights and buffers
    average.safetensors  weights averaged over steps, if the recipe asks for it; evaluation uses these
    optimizer.pt         state of the optimiser and of the fp16 scaler (read with weights_only)
    state.json           `CheckpointState`, size and hash of the other files, and a hash of its own content
  best                   name of the best checkpoint by validation, for users; programs read the newest state.json
"""

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import xxhash
from pydantic import TypeAdapter
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from refseg.addresses import local_path
from refseg.config import Recipe
from refseg.errors import CheckpointError, DatasetError, MissingCheckpointError, RecipeError
from refseg.models import build_model
from refseg.models.hub_folder import CONFIG_NAME, PublishedModel
from refseg.models.model import SegmentationModel
from refseg.sealed import BrokenSealError, open_seal, parse_object
from refseg.training.checkpoint_state import CheckpointState
from refseg.wording import counted

logger = logging.getLogger(__name__)

CHECKPOINT_VERSION = 2
"""Version of the checkpoint format; it is increased when older releases could misread a new checkpoint."""

MODEL_NAME, AVERAGE_NAME, OPTIMIZER_NAME = "model.safetensors", "average.safetensors", "optimizer.pt"
STATE_NAME, BEST_NAME = "state.json", "best"
_FOLDER = re.compile(r"step-(\d{8})")
_FILES = TypeAdapter(dict[str, dict[str, int | str]])


class TornCheckpointError(CheckpointError):
    """A checkpoint is damaged. A file is missing, or a file was changed after it was written."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A trained model and the state of the run that trained it.

    Attributes:
        model: The model in evaluation mode, on the requested device.
        state: Content of `state.json`.
        folder: Folder of the checkpoint or of the published model.
    """

    model: SegmentationModel
    state: CheckpointState
    folder: Path

    @property
    def recipe(self) -> Recipe:
        """Settings of the run."""
        return self.state.recipe

    @property
    def step(self) -> int:
        """Number of completed optimiser steps."""
        return self.state.step

    @property
    def dataset_digest(self) -> str:
        """Digest of the dataset that the model was trained on."""
        return self.state.lineage.dataset_digest


def checkpoint_name(step: int) -> str:
    """Return the folder name of the checkpoint after `step` steps."""
    return f"step-{step:08d}"


def list_checkpoints(out: Path) -> list[Path]:
    """List the checkpoint folders of a run from the oldest to the newest, damaged ones included."""
    checkpoints = out / "checkpoints"
    if not checkpoints.is_dir():
        return []
    return sorted(path for path in checkpoints.iterdir() if path.is_dir() and _FOLDER.fullmatch(path.name))


def latest_checkpoint(out: Path) -> Path | None:
    """Find the newest undamaged checkpoint of a run. Return None if the run has no checkpoint.

    Damaged checkpoints are skipped with a warning.

    Raises:
        CheckpointError: If all checkpoints are damaged. If a checkpoint has another format or cannot be read.
    """
    newest = _latest(out)
    return None if newest is None else newest[0]


def _latest(out: Path) -> tuple[Path, CheckpointState] | None:
    folders = list_checkpoints(out)
    for folder in reversed(folders):
        try:
            return folder, read_state(folder)
        except TornCheckpointError as error:
            logger.warning("%s; trying the checkpoint before it", error)
    if folders:
        raise CheckpointError(
            f"{out / 'checkpoints'}: all {len(folders)} checkpoints are damaged; restore one or choose another --out"
        )
    return None


def read_state(folder: Path) -> CheckpointState:
    """Read `state.json`, and compare it and the checkpoint's other files with their recorded hashes.

    Raises:
        TornCheckpointError: If a file is missing or was changed.
        CheckpointError: If another program wrote the checkpoint. If it has another format version or cannot be read.
    """
    path = folder / STATE_NAME
    try:
        fields = parse_object(path.read_bytes())
    except (FileNotFoundError, BrokenSealError) as error:
        raise TornCheckpointError(f"{folder}: damaged checkpoint, {STATE_NAME} cannot be read ({error})") from error
    except OSError as error:
        raise _unreadable(path, error) from error
    if fields.get("format") != "refseg-checkpoint":
        raise CheckpointError(f"{path}: not a refseg checkpoint; use a folder that refseg/train.py wrote")
    version = fields.get("format_version")
    if version != CHECKPOINT_VERSION:
        raise CheckpointError(
            f"{path}: found checkpoint format version {version}, expected {CHECKPOINT_VERSION}; "
            "use the refseg release that wrote this checkpoint"
        )
    try:
        content = open_seal(fields)
        files = _FILES.validate_python(content.pop("files"))
        content = {key: value for key, value in content.items() if key not in ("format", "format_version")}
        state = CheckpointState.from_dict(content, where=str(path))
    except RecipeError as error:
        release = fields.get("refseg_version")
        raise CheckpointError(f"{error}\n  use the refseg release that wrote this checkpoint: {release}") from error
    except (BrokenSealError, DatasetError, KeyError, TypeError, ValueError) as error:
        raise TornCheckpointError(f"{path}: damaged checkpoint, unexpected content ({error})") from error
    _compare_step(folder, state)
    for name in (MODEL_NAME, AVERAGE_NAME, OPTIMIZER_NAME):
        _compare_file(folder / name, files.get(name))
    return state


def _compare_step(folder: Path, state: CheckpointState) -> None:
    """Compare the step with the epoch, the best step and, if the folder has a checkpoint's name, with this name."""
    named = _FOLDER.fullmatch(folder.name)
    if named and int(named[1]) != state.step:
        found = f"the folder is named after step {int(named[1])}"
    elif state.cursor is None or state.cursor.epoch != state.epoch:
        found = f"epoch {state.epoch} does not agree with the cursor {state.cursor}"
    elif state.best is not None and state.best.step > state.step:
        found = f"the best checkpoint is that of the later step {state.best.step}"
    else:
        return
    raise TornCheckpointError(f"{folder / STATE_NAME}: damaged checkpoint, found step {state.step}, but {found}")


def _compare_file(path: Path, expected: Mapping[str, int | str] | None) -> None:
    """Compare a file with the size and hash in `state.json`. If these are None, the file must not exist."""
    try:
        found = file_facts(path)
    except FileNotFoundError:
        found = None
    except OSError as error:
        raise _unreadable(path, error) from error
    if found == expected:
        return
    if found is None:
        raise TornCheckpointError(f"{path.parent}: damaged checkpoint, {path.name} is missing")
    raise TornCheckpointError(f"{path.parent}: damaged checkpoint, {path.name} was changed after it was written")


def _unreadable(path: Path, error: OSError) -> CheckpointError:
    """Return the error for a file that cannot be read. The checkpoint may be undamaged, so it is not skipped."""
    return CheckpointError(f"{path}: cannot be read ({error.strerror}); check its permissions and its disk")


def load_checkpoint(path: Path, device: torch.device | str = "cpu") -> Checkpoint:
    """Load a trained model.

    Args:
        path: Folder of a checkpoint, of a run, or of a model that `refseg publish` wrote. The recipe of a published
            model has no paths. From a run, the best checkpoint by validation is loaded, or the newest one if there was
            no validation.
        device: Device to which the model is moved.

    Raises:
        CheckpointError: If there is no checkpoint. If the checkpoint is damaged, was written by another program, or
            does not fit the model of the recipe.
    """
    path = local_path(path)
    if (path / CONFIG_NAME).is_file():
        published = PublishedModel.from_pretrained(path, device=device)
        state = CheckpointState(
            recipe=published.recipe,
            step=published.step,
            epoch=published.epoch,
            cursor=None,
            window={},
            best=None,
            lineage=published.lineage,
            num_processes=published.num_processes,
        )
        return Checkpoint(model=published.model, state=state, folder=path)
    folder = _resolve(path)
    state = read_state(folder)
    model = build_model(state.recipe.model, input_size=state.recipe.data.input_size)
    _load(model, weights_file(folder))
    return Checkpoint(model=model.to(device).eval(), state=state, folder=folder)


def weights_file(path: Path) -> Path:
    """Return the weight file that `load_checkpoint` reads from a folder. Averaged weights are preferred.

    Raises:
        CheckpointError: If `load_checkpoint` would find no checkpoint.
    """
    folder = path if (path / CONFIG_NAME).is_file() else _resolve(path)
    average = folder / AVERAGE_NAME
    return average if average.is_file() else folder / MODEL_NAME


def load_weights(model: torch.nn.Module, folder: Path, *, averaged: bool = False) -> None:
    """Load a checkpoint's weights, or the averaged weights if they exist, into a model of the same recipe.

    Raises:
        CheckpointError: If names or shapes differ.
    """
    _load(model, folder / (AVERAGE_NAME if averaged else MODEL_NAME))


def _load(model: torch.nn.Module, path: Path) -> None:
    try:
        weights = load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error}); use another checkpoint") from error
    fit_weights(model, weights, where=str(path), remedy="use the refseg release that wrote this checkpoint")


def fit_weights(model: torch.nn.Module, weights: Mapping[str, Tensor], *, where: str, remedy: str) -> None:
    """Load weights into a model. Names, shapes and types must be equal.

    Args:
        model: Model on any device.
        weights: Tensors by name.
        where: Source of the weights, for the error message.
        remedy: Advice for the user if the weights do not fit, for the error message.

    Raises:
        CheckpointError: If names, shapes or types differ. Without this check torch would cast values silently.
    """
    own = model.state_dict()
    common = own.keys() & weights.keys()
    wrong = {
        "missing": own.keys() - weights.keys(),
        "unknown": weights.keys() - own.keys(),
        "of another shape": {name for name in common if own[name].shape != weights[name].shape},
        "of another type": {name for name in common if own[name].dtype != weights[name].dtype},
    }
    for fault, names in wrong.items():
        if names:
            raise CheckpointError(
                f"{where}: does not fit the recipe's model: {counted(len(names), 'weight')} {fault}, the first is "
                f"{min(names)}; {remedy}"
            )
    model.load_state_dict(dict(weights))


def load_optimizer(folder: Path) -> dict[str, Any]:
    """Read `optimizer.pt` to the CPU without running code from it."""
    states: dict[str, Any] = torch.load(folder / OPTIMIZER_NAME, map_location="cpu", weights_only=True)
    return states


def _resolve(path: Path) -> Path:
    """Return the folder of a checkpoint. For a run's folder, return its best checkpoint, or else its newest one."""
    if (path / STATE_NAME).is_file() or _FOLDER.fullmatch(path.name):
        return path
    if not path.is_dir():
        raise MissingCheckpointError(
            f"{path}: found no checkpoint, expected a run's folder (with checkpoints/step-...) or a checkpoint's; "
            f"there is {'a file' if path.exists() else 'nothing'} at this path"
        )
    newest = _latest(path)
    if newest is None:
        raise CheckpointError(
            f"{path}: found no checkpoint, expected a run's folder (with checkpoints/step-...) or a checkpoint's"
        )
    folder, state = newest
    if state.best is None:
        return folder
    best = folder.with_name(checkpoint_name(state.best.step))
    if not best.is_dir():
        raise CheckpointError(
            f"{best}: the folder of the run's best checkpoint does not exist; restore it, or name another checkpoint, "
            f"such as {folder}"
        )
    return best


def file_facts(path: Path) -> dict[str, int | str]:
    """Return the size and the hash of a file, as `state.json` records them."""
    hasher = xxhash.xxh3_128()
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            hasher.update(block)
    return {"num_bytes": path.stat().st_size, "xxh3_128": hasher.hexdigest()}
