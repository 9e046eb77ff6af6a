"""Writes checkpoints under a temporary name, flushes and renames them, so that an unfinished one is never visible."""

import json
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from refseg.aside import folder_aside, write_aside
from refseg.errors import CheckpointError
from refseg.models.weight_files import save_weights
from refseg.sealed import seal
from refseg.training.checkpoint import (
    BEST_NAME,
    CHECKPOINT_VERSION,
    OPTIMIZER_NAME,
    STATE_NAME,
    checkpoint_name,
    file_facts,
    list_checkpoints,
)
from refseg.training.checkpoint_state import CheckpointState


def save_checkpoint(
    checkpoints: Path,
    state: CheckpointState,
    *,
    weights: Mapping[str, Mapping[str, Tensor]],
    optimizer: Mapping[str, Any],
    keep: int,
) -> Path:
    """Write a checkpoint, and then remove old ones. The checkpoint becomes visible only when it is complete.

    Args:
        checkpoints: The run's `checkpoints` folder.
        state: Content of `state.json`.
        weights: State dicts by file name. They are the state dict of the model and, if there is one, of the weight
            average.
        optimizer: State dicts for `optimizer.pt`. They may contain tensors, numbers, strings and containers.
        keep: Number of newest checkpoints to keep. The best one is kept in addition.

    Returns:
        The checkpoint's folder.

    Raises:
        CheckpointError: If the checkpoint cannot be written. Unfinished files are removed, and earlier checkpoints are
            not changed.
    """
    folder = checkpoints / checkpoint_name(state.step)
    try:
        # It may replace a checkpoint of the same step that was written before a due validation.
        with folder_aside(folder, synced=True, replace=True) as aside:
            _write(aside, state, weights=weights, optimizer=optimizer)
        write_best(checkpoints, state)
    except (OSError, RuntimeError, SafetensorError) as error:  # torch and safetensors raise their own for a full disk
        raise CheckpointError(
            f"{folder}: cannot be written ({error}); free disk space, then resume from the checkpoint before it"
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
    """Write all files of a checkpoint into a folder."""
    for name, named in weights.items():
        save_weights(aside / name, named)
    torch.save(dict(optimizer), aside / OPTIMIZER_NAME)
    files = {name: file_facts(aside / name) for name in (*weights, OPTIMIZER_NAME)}
    head = {"format": "refseg-checkpoint", "format_version": CHECKPOINT_VERSION, "files": files}
    sealed = seal({**head, **state.to_dict()})
    (aside / STATE_NAME).write_text(json.dumps(sealed, indent=1) + "\n", encoding="utf-8")


def write_best(checkpoints: Path, state: CheckpointState) -> None:
    """Write the name of the best checkpoint into the file `best` for users. Programs read it from `state.json`."""
    if state.best is None:
        return
    text = checkpoint_name(state.best.step) + "\n"
    with suppress(OSError, UnicodeDecodeError):  # raised if the file is missing or damaged
        if (checkpoints / BEST_NAME).read_text(encoding="utf-8") == text:
            return
    write_aside(checkpoints / BEST_NAME, text, synced=True)


def _drop_old(checkpoints: Path, state: CheckpointState, *, keep: int) -> None:
    kept = {checkpoint_name(state.best.step)} if state.best else set()
    old = list_checkpoints(checkpoints.parent)[:-keep]
    for folder in old:
        if folder.name not in kept:
            drop_checkpoint(folder)


def drop_checkpoint(folder: Path) -> None:
    """Remove a checkpoint. It is renamed first, so that a reader never finds a partly removed checkpoint."""
    gone = folder.with_name(f".{folder.name}.gone")
    shutil.rmtree(gone, ignore_errors=True)
    folder.rename(gone)
    shutil.rmtree(gone)
