"""Checkpoints: written aside, synced, renamed; a torn one is never loaded, the one before is.

OUT/checkpoints/
  step-00000120/
    model.safetensors    weights and buffers
    average.safetensors  the same, averaged over steps, where the recipe asks for it: what evaluation takes
    optimizer.pt         the optimiser's state and the fp16 scaler's (read with weights_only)
    state.json           `CheckpointState` with size and hash of the other files; readable by itself
  best                   name of the best checkpoint by validation
"""

import dataclasses
import json
import logging
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import xxhash
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from refseg.addresses import local_path
from refseg.config import Recipe
from refseg.errors import CheckpointError, RecipeError
from refseg.models import build_model
from refseg.models.hub_folder import CONFIG_NAME, PublishedModel
from refseg.models.model import SegmentationModel
from refseg.models.weight_file import save_weights
from refseg.storage import sync_path
from refseg.training.checkpoint_state import CheckpointState

logger = logging.getLogger(__name__)

CHECKPOINT_VERSION = 1
"""Version of the checkpoint format: raised when an older reader could misread a newer checkpoint."""

MODEL_NAME, AVERAGE_NAME, OPTIMIZER_NAME = "model.safetensors", "average.safetensors", "optimizer.pt"
STATE_NAME, BEST_NAME = "state.json", "best"
_FOLDER = re.compile(r"step-(\d{8})")


class TornCheckpointError(CheckpointError):
    """A checkpoint lost a file or bytes after it was written."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A trained model with what it was made from.

    Attributes:
        model: In evaluation mode, on the device asked for.
        state: Its `state.json`.
        folder: Where it lies.
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
        """Optimiser steps done."""
        return self.state.step

    @property
    def dataset_digest(self) -> str:
        """Digest of the dataset it was trained on."""
        return self.state.dataset_digest


def checkpoint_name(step: int) -> str:
    """Folder name of the checkpoint after `step` steps."""
    return f"step-{step:08d}"


def save_checkpoint(
    checkpoints: Path,
    state: CheckpointState,
    *,
    weights: Mapping[str, Mapping[str, Tensor]],
    optimizer: Mapping[str, Any],
    keep: int,
) -> Path:
    """Write a checkpoint so that it is there whole or not at all, then drop the old ones.

    Args:
        checkpoints: The run's `checkpoints` folder.
        state: For `state.json`.
        weights: State dicts by file name: the model's, and that of the average if there is one.
        optimizer: State dicts for `optimizer.pt`: tensors, numbers, strings and containers only.
        keep: Newest checkpoints to keep; the best is kept besides.

    Returns:
        The checkpoint's folder.

    Raises:
        CheckpointError: If the disk refuses; what was written of it is gone, the ones before are untouched.
    """
    folder = checkpoints / checkpoint_name(state.step)
    aside = checkpoints / f".{folder.name}.part"
    try:
        _write(aside, state, weights=weights, optimizer=optimizer)
        if folder.exists():  # of the same step, before the validation that it owed
            drop_checkpoint(folder)
        aside.rename(folder)
        sync_path(checkpoints)
        write_best(checkpoints, state)
    except (OSError, RuntimeError, SafetensorError) as error:  # torch and safetensors have their own for a full disk
        shutil.rmtree(aside, ignore_errors=True)
        raise CheckpointError(
            f"{folder}: cannot be written ({error}); make room, then go on from the one before"
        ) from error
    _drop_old(checkpoints, state, keep=keep)
    return folder


def _write(
    aside: Path,
    state: CheckpointState,
    *,
    weights: Mapping[str, Mapping[str, Tensor]],
    optimizer: Mapping[str, Any],
) -> None:
    """Write all files of a checkpoint to disk."""
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    for name, named in weights.items():
        save_weights(aside / name, named)
    torch.save(dict(optimizer), aside / OPTIMIZER_NAME)
    files = {name: _facts(aside / name) for name in (*weights, OPTIMIZER_NAME)}
    head = {"format": "refseg-checkpoint", "format_version": CHECKPOINT_VERSION, "files": files}
    (aside / STATE_NAME).write_text(json.dumps({**head, **state.to_dict()}, indent=1) + "\n", encoding="utf-8")
    for path in (*aside.iterdir(), aside):
        sync_path(path)


def write_best(checkpoints: Path, state: CheckpointState) -> None:
    """Let `best` name the checkpoint that `state` holds for the best; `state.json` stays the truth."""
    if state.best is None:
        return
    aside = checkpoints / f".{BEST_NAME}.part"
    aside.write_text(checkpoint_name(state.best.step) + "\n", encoding="utf-8")
    sync_path(aside)
    aside.replace(checkpoints / BEST_NAME)
    sync_path(checkpoints)


def list_checkpoints(out: Path) -> list[Path]:
    """Checkpoint folders of a run, oldest first, torn ones included."""
    checkpoints = out / "checkpoints"
    if not checkpoints.is_dir():
        return []
    return sorted(path for path in checkpoints.iterdir() if path.is_dir() and _FOLDER.fullmatch(path.name))


def latest_checkpoint(out: Path) -> Path | None:
    """The newest sound checkpoint of a run; None if the run has none at all.

    Torn ones are passed over with a warning.

    Raises:
        CheckpointError: If there are checkpoints but all are torn, or one is of another format.
    """
    folders = list_checkpoints(out)
    for folder in reversed(folders):
        try:
            read_state(folder)
        except TornCheckpointError as error:
            logger.warning("%s; going back to the one before", error)
        else:
            return folder
    if folders:
        raise CheckpointError(
            f"{out / 'checkpoints'}: all {len(folders)} checkpoints are damaged; restore one or choose another --out"
        )
    return None


def read_state(folder: Path) -> CheckpointState:
    """Read `state.json` and check that the files beside it are the ones it was written with.

    Raises:
        TornCheckpointError: If anything is missing or changed.
        CheckpointError: If it is not a checkpoint of ours, or of another format version.
    """
    path = folder / STATE_NAME
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise TornCheckpointError(f"{folder}: damaged checkpoint, {STATE_NAME} cannot be read ({error})") from error
    if not isinstance(fields, dict) or fields.pop("format", None) != "refseg-checkpoint":
        raise CheckpointError(f"{path}: not a refseg checkpoint; take a folder that refseg/train.py wrote")
    version = fields.pop("format_version", None)
    if version != CHECKPOINT_VERSION:
        raise CheckpointError(
            f"{path}: found checkpoint format version {version}, expected {CHECKPOINT_VERSION}; "
            "use the refseg release that wrote it"
        )
    try:
        files = fields.pop("files")
        state = CheckpointState.from_dict(fields, where=str(path))
    except (KeyError, TypeError) as error:
        raise TornCheckpointError(f"{path}: damaged checkpoint, unexpected content ({error})") from error
    except RecipeError as error:
        raise CheckpointError(f"{error}\n  use the refseg release that wrote it: {fields['refseg_version']}") from error
    for name, facts in files.items():
        if not (folder / name).is_file():
            raise TornCheckpointError(f"{folder}: damaged checkpoint, {name} is missing")
        if _facts(folder / name) != facts:
            raise TornCheckpointError(f"{folder}: damaged checkpoint, {name} is not what was written")
    return state


def load_checkpoint(path: Path, device: torch.device | str = "cpu") -> Checkpoint:
    """Load a trained model.

    Args:
        path: A checkpoint's folder, or a run's: its best checkpoint by validation, or else its newest; or a folder that
            `refseg publish` wrote: its recipe has no paths.
        device: Where the model goes.

    Raises:
        CheckpointError: If there is none, or it is torn, foreign, or does not fit the model of its recipe.
    """
    path = local_path(path)
    if (path / CONFIG_NAME).is_file():
        published = PublishedModel.from_pretrained(path, device=device)
        origin = {entry.name: getattr(published.origin, entry.name) for entry in dataclasses.fields(published.origin)}
        state = CheckpointState(recipe=published.recipe, cursor={}, window={}, best=None, **origin)
        return Checkpoint(model=published.model, state=state, folder=path)
    folder = _resolve(path)
    state = read_state(folder)
    model = build_model(state.recipe.model, input_size=state.recipe.data.input_size)
    _load(model, weights_file(folder))
    return Checkpoint(model=model.to(device).eval(), state=state, folder=folder)


def weights_file(path: Path) -> Path:
    """The file of the weights that `load_checkpoint` takes from a folder: averaged ones where there are such.

    Raises:
        CheckpointError: As `load_checkpoint`.
    """
    folder = path if (path / CONFIG_NAME).is_file() else _resolve(path)
    average = folder / AVERAGE_NAME
    return average if average.is_file() else folder / MODEL_NAME


def load_weights(model: torch.nn.Module, folder: Path, *, averaged: bool = False) -> None:
    """Put a checkpoint's weights, or their average, into a model of the same recipe.

    Raises:
        CheckpointError: If names or shapes differ.
    """
    _load(model, folder / (AVERAGE_NAME if averaged else MODEL_NAME))


def _load(model: torch.nn.Module, path: Path) -> None:
    try:
        weights = load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error}); take another checkpoint") from error
    fit_weights(model, weights, where=str(path), remedy="use the release of refseg that wrote it")


def fit_weights(model: torch.nn.Module, weights: Mapping[str, Tensor], *, where: str, remedy: str) -> None:
    """Put weights into a model that has exactly these.

    Args:
        model: Built, on any device.
        weights: By name.
        where: They are from, for the error.
        remedy: What to do if they do not fit.

    Raises:
        CheckpointError: If names or shapes differ.
    """
    own = model.state_dict()
    wrong = {
        "missing": own.keys() - weights.keys(),
        "unknown": weights.keys() - own.keys(),
        "of another shape": {name for name in own.keys() & weights.keys() if own[name].shape != weights[name].shape},
    }
    for fault, names in wrong.items():
        if names:
            raise CheckpointError(
                f"{where}: does not fit the recipe's model: {len(names)} weights are {fault}, the first is "
                f"{min(names)}; {remedy}"
            )
    model.load_state_dict(dict(weights))


def load_optimizer(folder: Path) -> dict[str, Any]:
    """Read `optimizer.pt`, on the CPU, without running code from it."""
    states: dict[str, Any] = torch.load(folder / OPTIMIZER_NAME, map_location="cpu", weights_only=True)
    return states


def _resolve(path: Path) -> Path:
    if (path / STATE_NAME).is_file() or _FOLDER.fullmatch(path.name):
        return path
    best = path / "checkpoints" / BEST_NAME
    if best.is_file():
        folder = best.parent / best.read_text(encoding="utf-8").strip()
        if folder.is_dir():
            return folder
    newest = latest_checkpoint(path)
    if newest is None:
        raise CheckpointError(
            f"{path}: found no checkpoint, expected a run's folder (with checkpoints/step-...) or a checkpoint's"
        )
    return newest


def _drop_old(checkpoints: Path, state: CheckpointState, *, keep: int) -> None:
    kept = {checkpoint_name(state.best.step)} if state.best else set()
    old = list_checkpoints(checkpoints.parent)[:-keep]
    for folder in old:
        if folder.name not in kept:
            drop_checkpoint(folder)


def drop_checkpoint(folder: Path) -> None:
    """Remove a checkpoint; it stops being one at the first moment, so that no half of it is ever found."""
    gone = folder.with_name(f".{folder.name}.gone")
    shutil.rmtree(gone, ignore_errors=True)
    folder.rename(gone)
    shutil.rmtree(gone)


def _facts(path: Path) -> dict[str, Any]:
    hasher = xxhash.xxh3_128()
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            hasher.update(block)
    return {"num_bytes": path.stat().st_size, "xxh3_128": hasher.hexdigest()}
