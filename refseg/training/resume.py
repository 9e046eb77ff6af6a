"""Finds the checkpoint from which a run resumes. Refuses to resume a run with another recipe or other data."""

from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from refseg.config import Recipe, recipe_differences
from refseg.errors import CheckpointError, RecipeError
from refseg.training.checkpoint import latest_checkpoint
from refseg.training.checkpoint_state import CheckpointState
from refseg.training.start_weights import refuse_another_start

_MAY_CHANGE = {
    "model.image_weights", "model.text_weights", "model.random_start",
    "data.root", "data.val_root", "data.num_workers", "data.worker_kind", "data.cache_gigabytes",
    "train.max_steps", "train.log_every_steps", "train.checkpoint_every_steps", "train.keep_checkpoints",
    "train.val_every_epochs", "train.compile", "train.accumulate_steps", "train.patience", "train.trackers",
    "train.divergence_factor", "train.init_from",
    "eval.images_per_batch",
}  # fmt: skip
"""Keys that may differ on resume, because none of them affects the weights any more. The exception is
`accumulate_steps`, which changes the parts of a batch that batch norms see. Paths may differ, because digests show
whether the data are the same, and hashes whether the start weights are."""


def find_checkpoint(out: Path, accelerator: Accelerator) -> Path | None:
    """Find the newest undamaged checkpoint of a run. Return None for a new run.

    Rank 0 searches and sends the result to the other ranks, so that all ranks resume from the same checkpoint.

    Raises:
        CheckpointError: If all checkpoints are damaged. If the checkpoint that rank 0 found does not exist on this
            machine.
    """
    found: list[Path | None] = [None]
    if accelerator.is_main_process:
        found[0] = latest_checkpoint(out)
    broadcast_object_list(found)
    folder = found[0]
    if folder is None:
        return None
    if not folder.is_dir():
        raise CheckpointError(
            f"{folder}: rank 0 found this checkpoint, but it does not exist on this machine; all machines must share "
            "the folder --out"
        )
    return folder


def refuse_another_run(state: CheckpointState, recipe: Recipe, *, out: Path, digest: str, val_digest: str) -> None:
    """Refuse to resume a run that has other settings or other data.

    Args:
        state: State of the checkpoint.
        recipe: Recipe of the current command.
        out: The run's folder.
        digest: Digest of the dataset of the current command.
        val_digest: Digest of the validation dataset of the current command. Empty without validation.

    Raises:
        RecipeError: If the dataset, the start weights, or a setting that affects the weights differs.
    """
    differing = [key for key in recipe_differences(state.recipe, recipe) if key not in _MAY_CHANGE]
    if recipe.train.schedule == "multistep" and "train.epochs" in differing:
        differing.remove("train.epochs")  # the multistep schedule does not depend on the number of epochs
    if differing:
        raise RecipeError(
            f"{out} holds a run of another recipe ({', '.join(differing)} differ); "
            "choose another --out, or the same settings to resume it"
        )
    refuse_another_start(state, recipe, out=out)
    if state.lineage.dataset_digest != digest:
        raise RecipeError(
            f"{out} holds a run on {state.lineage.dataset} with digest {state.lineage.dataset_digest[:12]}, "
            f"but {recipe.data.root} has {digest[:12]}; choose another --out"
        )
    if state.val_dataset_digest and val_digest not in ("", state.val_dataset_digest):
        raise RecipeError(
            f"{out} holds a run validated on the dataset with digest {state.val_dataset_digest[:12]}, but "
            f"{recipe.data.val_root or recipe.data.root} has {val_digest[:12]}: the validations could not be compared "
            "to find the best; choose another --out"
        )
