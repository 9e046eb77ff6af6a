"""Resuming a run: from which checkpoint, and whether it is the same run."""

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
"""Keys that may differ on resume: none of them moves a weight any more, except that batch norms see the parts in which
a batch is accumulated. (That the data is the same, its digest says; that it began from the same weights, theirs.)"""


def find_checkpoint(out: Path, accelerator: Accelerator) -> Path | None:
    """The newest sound checkpoint of a run, None for a new one; rank 0 looks, so that all ranks take the same.

    Raises:
        CheckpointError: If there are checkpoints but no sound one, or this machine does not see rank 0's.
    """
    found: list[Path | None] = [None]
    if accelerator.is_main_process:
        found[0] = latest_checkpoint(out)
    broadcast_object_list(found)
    folder = found[0]
    if folder is None:
        return None
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: rank 0 sees this checkpoint and this machine does not; share --out")
    return folder


def refuse_another_run(state: CheckpointState, recipe: Recipe, *, out: Path, digest: str, val_digest: str) -> None:
    """Refuse to go on with a run of other settings or other data.

    Args:
        state: Of the checkpoint.
        recipe: Of this call.
        out: The run's folder.
        digest: Of the dataset of this call.
        val_digest: Of the dataset it validates on; empty without validation.

    Raises:
        RecipeError: If anything differs that moves a weight.
    """
    differing = [key for key in recipe_differences(state.recipe, recipe) if key not in _MAY_CHANGE]
    if recipe.train.schedule == "multistep" and "train.epochs" in differing:
        differing.remove("train.epochs")  # that schedule does not know where the end is
    if differing:
        raise RecipeError(
            f"{out} holds a run of another recipe ({', '.join(differing)} differ); "
            "choose another --out, or the same settings to go on"
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
            f"{recipe.data.val_root or recipe.data.root} has {val_digest[:12]}: its best could not "
            "be told; choose another --out"
        )
