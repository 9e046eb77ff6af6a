"""The training loop for one or many processes. A resumed run gives the same result as an uninterrupted one.

There is no hidden state between two steps. The order of samples is a function of (digest, seed, epoch). The learning
rate is a function of the step. Before each step, the random generators are seeded from (seed, step, rank). A checkpoint
therefore needs only the weights, the optimiser's state and the number of completed steps.
"""

import dataclasses
import logging
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor

from refseg.addresses import whole_address
from refseg.config import Recipe
from refseg.data.batch import Batch
from refseg.data.index import ManifestIndex
from refseg.data.loader import prepare_loader
from refseg.data.order import Cursor
from refseg.data.transforms import Geometry
from refseg.data.worker_death import report_worker_death
from refseg.errors import CheckpointError, PreemptedError
from refseg.lineage import Lineage, describe_leaks
from refseg.training.checkpoint import MODEL_NAME, checkpoint_name, list_checkpoints, load_weights, read_state
from refseg.training.checkpoint_state import Best, CheckpointState
from refseg.training.checkpoint_writer import drop_checkpoint, save_checkpoint, write_best
from refseg.training.launch import start_accelerator
from refseg.training.resume import find_checkpoint, refuse_another_run
from refseg.training.run_files import write_environment, write_recipe
from refseg.training.run_folder import lock_run, refuse_other_contents
from refseg.training.run_log import MetricsWindow, RunLog, open_run_log
from refseg.training.setup import build_loader, build_start_model, refuse_random_start, refuse_unknown_splits
from refseg.training.start_weights import load_start_weights
from refseg.training.step import OptimizerStep
from refseg.training.stopping import (
    Preemption,
    refuse_divergence,
    refuse_non_finite,
    refuse_non_finite_weights,
    report_rank_death,
)
from refseg.training.validation import Validation

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TrainResult:
    """The result of a run.

    Attributes:
        checkpoint: Folder of the last checkpoint.
        step: Number of completed optimiser steps.
        best: The best validation. None without validation.
    """

    checkpoint: Path
    step: int
    best: Best | None


def train(recipe: Recipe, out: Path) -> TrainResult:
    """Train a model, or resume from the newest checkpoint in `out`. Every process must call this function.

    Args:
        recipe: Settings of the run.
        out: The run's folder. It must be on a file system that all machines share, and it is created if it does not
            exist. The run writes `checkpoints/`, `metrics.jsonl`, `recipe.json` and `environment.json`.

    Raises:
        UsageError: If `out` contains something other than a run.
        RecipeError: If the recipe does not fit this machine or dataset. If `out` contains a run of another recipe. If a
            new run would start from random weights without `model.random_start`.
        CheckpointError: If all checkpoints in `out` are damaged. If the start weights cannot be used.
        DatasetError: If the dataset cannot be used. If it is not the dataset with which the run started.
        TrainingError: If processes are missing. If another run uses `out`. If the loss diverges.
        PreemptedError: If SIGTERM stopped the run. The state of the run was saved.
    """
    refuse_other_contents(out)
    accelerator = start_accelerator(recipe.train, out, image_encoder=recipe.model.image_encoder)
    others = report_rank_death(accelerator.num_processes)
    with others, report_worker_death(), lock_run(out) if accelerator.is_main_process else nullcontext():
        trainer = _Trainer(recipe, out, accelerator)
        preemption = Preemption()
        with preemption.catch_sigterm():  # from here on there is work to save
            return trainer.run(preemption)


def leave_process_group() -> None:
    """Wait for the other processes and destroy the process group. Otherwise some runs hang or abort at exit."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


class _Trainer:
    def __init__(self, recipe: Recipe, out: Path, accelerator: Accelerator) -> None:
        self.recipe = recipe
        self.out = out
        self.accelerator = accelerator
        self.is_main: bool = accelerator.is_main_process
        self.num_processes: int = accelerator.num_processes
        resumed = find_checkpoint(out, accelerator)
        if resumed is None and not recipe.train.init_from:
            refuse_random_start(recipe)
        refuse_unknown_splits(recipe)
        self.index = ManifestIndex.open(recipe.data.root, [recipe.data.train_split])
        self.validation = Validation(recipe, accelerator)
        state = None
        if resumed is not None:
            state = read_state(resumed)
            refuse_another_run(
                state, recipe, out=out, digest=self.index.descriptor.digest, val_digest=self.validation.digest
            )

        start = load_start_weights(recipe) if recipe.train.init_from and state is None else None
        trained_on = self.index.descriptor
        self.lineage = Lineage(
            dataset=trained_on.dataset,
            dataset_digest=trained_on.digest,
            split=recipe.data.train_split,
            root=whole_address(self.index.folder),
            recipe_root=recipe.data.root,
            leaks_allowed=trained_on.leaks_allowed,
            leaks=trained_on.leaks,
            ancestors=start.ancestors if start is not None else state.lineage.ancestors if state is not None else (),
        )
        if self.is_main:
            self.validation.warn_about_leaks(self.lineage)
        model = build_start_model(recipe, accelerator, start, is_resumed=state is not None)
        self.geometry = Geometry(kind=recipe.data.geometry, size=recipe.data.input_size, mean=model.image_mean)
        self.loader = build_loader(recipe, self.index, self.geometry, accelerator)
        self.batches = prepare_loader(accelerator, self.loader)
        self.steps_per_epoch = self.loader.steps_per_epoch
        self.total_steps = min(self.steps_per_epoch * recipe.train.epochs, recipe.train.max_steps or sys.maxsize)
        if resumed is not None:
            load_weights(model, resumed)
        self.model = model
        self.stepping = OptimizerStep(recipe, model, accelerator, steps_per_epoch=self.steps_per_epoch)
        self.step = 0
        self.best: Best | None = None
        self.validation_due = False
        self.window = MetricsWindow(accelerator)
        if resumed is not None and state is not None:
            self._restore(resumed, state)

    def run(self, preemption: Preemption) -> TrainResult:
        """Train to the end. A finished run is not changed, so it may be on read-only storage."""
        if self.is_main:
            self._warn_about_leaks()
        if self.step >= self.total_steps and not self.validation_due:
            logger.info("%s is complete: all %d steps are done", self.out, self.step)
            return self._result()
        if self.is_main:
            self._log_run_facts()
        self.stepping.train_mode()
        opened = open_run_log(
            self.accelerator, self.out, self.recipe, step=self.step, total_steps=self.total_steps
        )  # fmt: skip
        with opened as log:
            if self.validation_due:  # SIGTERM stopped the run before this validation
                self.validation_due = False
                self._validate(log)
                self._end_by_patience()
                self._save(log)
            for batch in self._steps():
                self.window.add(self._train_step(batch), batch.num_global)
                self.step += 1
                log.advance()
                self._finish_step(log, preemption)
        return self._result()

    def _result(self) -> TrainResult:
        checkpoint = self.out / "checkpoints" / checkpoint_name(self.step)
        return TrainResult(checkpoint=checkpoint, step=self.step, best=self.best)

    def _finish_step(self, log: RunLog, preemption: Preemption) -> None:
        """Write a log line, validate, and save a checkpoint, each if it is due after this step.

        After the last step, a log line and a checkpoint are always written. A validation also follows if the recipe
        requests validation.
        """
        config = self.recipe.train
        is_last = self.step == self.total_steps
        log_due = is_last or self.step % config.log_every_steps == 0
        save_due = is_last or self.step % config.checkpoint_every_steps == 0
        val_due = self.validation.is_due(self.step, steps_per_epoch=self.steps_per_epoch)
        # The request is exchanged between ranks. On a GPU this waits for all queued steps, so there it is checked only
        # together with the log.
        is_checked = log_due or self.accelerator.device.type == "cpu"
        stop = is_checked and not is_last and preemption.is_requested(self.accelerator)
        if log_due or save_due or val_due or stop:
            refuse_non_finite(*self.window.flush(), out=self.out, step=self.step)
            refuse_divergence(
                self.window.mean_loss,
                self.window.first_loss,
                factor=config.divergence_factor,
                out=self.out,
                step=self.step,
            )
        if log_due:
            self._log(log)
        # After SIGTERM a validation is postponed, because it may take longer than the time until the process is killed.
        self.validation_due = val_due and stop
        if val_due and not stop:
            save_due = self._validate(log) or save_due
            save_due = self._end_by_patience() or save_due
        if save_due or stop:
            self._save(log)
        if stop:
            raise PreemptedError(
                f"{self.out}: stopped by SIGTERM after step {self.step} of {self.total_steps}; all work is saved, "
                "and the same command resumes the run"
            )

    # Setting up

    def _restore(self, folder: Path, state: CheckpointState) -> None:
        self.step, self.best, self.validation_due = state.step, state.best, state.validation_due
        self.window.load(state.window)
        self.stepping.restore(folder)
        self._set_loader_position(folder, state.cursor)
        if self.is_main:
            for damaged in list_checkpoints(self.out):
                if damaged.name > folder.name:  # the resumed run will write a checkpoint of the same name
                    drop_checkpoint(damaged)
            write_best(folder.parent, state)  # a crash may have happened between the checkpoint and the file `best`
        if not self.validation_due:
            self._end_by_patience()
        if self.step < self.total_steps:
            logger.info("resuming from %s: step %d of %d", folder, self.step, self.total_steps)

    def _set_loader_position(self, folder: Path, cursor: Cursor | None) -> None:
        """Check that the checkpoint's cursor belongs to the checkpoint's step, and set the loader to the cursor."""
        if cursor is None or (cursor.epoch, cursor.samples_done) != (self._cursor().epoch, self._cursor().samples_done):
            raise CheckpointError(
                f"{folder}: found the cursor {cursor} after step {self.step}, expected {self._cursor()}; restore the "
                "checkpoint, or start a new run"
            )
        self.loader.load_cursor(cursor)

    def _cursor(self) -> Cursor:
        """Compute the run's position in the data. It is a function of the step."""
        epoch, steps_done = divmod(self.step, self.steps_per_epoch)
        return dataclasses.replace(self.loader.cursor(steps_done), epoch=epoch)

    def _log_run_facts(self) -> None:
        """Write `environment.json`. Unless all steps are done, also write `recipe.json` and a log line."""
        device = self.accelerator.device.type
        write_environment(
            self.out,
            self.lineage,
            val_digest=self.validation.digest,
            num_processes=self.num_processes,
            device=device,
        )
        if self.step < self.total_steps:  # else all steps were trained by the recipe that is already there
            write_recipe(self.out, self.recipe)
            logger.info(
                "training %s on %s: %s epochs of %d steps, %d processes on %s",
                self.recipe.model.image_encoder, self.index.descriptor.dataset, self.recipe.train.epochs,
                self.steps_per_epoch, self.num_processes, device,
            )  # fmt: skip

    def _warn_about_leaks(self) -> None:
        if self.lineage.leaks_allowed:
            logger.warning(
                "%s was mixed with leaks allowed: %s; checkpoints and reports will record this",
                self.recipe.data.root, describe_leaks(self.lineage.leaks),
            )  # fmt: skip

    # Steps

    def _steps(self) -> Iterator[Batch]:
        """Yield the batches from the current step to the end of the run. The caller increments `self.step`."""
        while self.step < self.total_steps:
            epoch, steps_done = divmod(self.step, self.steps_per_epoch)
            if steps_done == 0:  # within an epoch, the cursor has already set the loader's position
                self.loader.set_epoch(epoch)
            batches = iter(self.batches)
            while True:
                with self.window.waiting():
                    batch = next(batches, None)
                if batch is None:
                    break
                yield batch
                if self.step >= self.total_steps:
                    return

    def _train_step(self, batch: Batch) -> Tensor:
        """Take one optimiser step. Return this rank's share of the loss."""
        loss, norm = self.stepping.take(batch, self.step)
        if norm is not None:
            self.window.add_gradient_norm(norm)
        return loss

    # After a step

    def _log(self, log: RunLog) -> None:
        line = self.window.summarise()
        lr = self.stepping.learning_rates(self.step - 1)
        epoch = round(self.step / self.steps_per_epoch, 4)
        log.training(self.step, {"epoch": epoch, "loss": line.pop("loss"), **lr, **line})

    def _end_by_patience(self) -> bool:
        """End the run at this step if the last validations did not improve. Return True if the run ends."""
        if self.validation.is_out_of_patience(self.step, self.best, steps_per_epoch=self.steps_per_epoch):
            self.total_steps = self.step
            return True
        return False

    def _validate(self, log: RunLog) -> bool:
        """Score the validation split on all processes. Return True if the score is the best so far."""
        self.stepping.share_buffers()
        scores, line = self.validation.score(self.stepping.result, self.geometry)
        self.stepping.train_mode()
        improved = self.best is None or scores.overall_iou > self.best.overall_iou
        if improved:
            self.best = Best(overall_iou=scores.overall_iou, step=self.step)
        log.validation(self.step, {"epoch": round(self.step / self.steps_per_epoch, 4), **line}, improved=improved)
        self.window.restart_clock()
        return improved

    def _save(self, log: RunLog) -> None:
        if self.is_main:
            log.sync()
            weights = self.stepping.weights()
            refuse_non_finite_weights(weights[MODEL_NAME], out=self.out, step=self.step)
            save_checkpoint(
                self.out / "checkpoints",
                CheckpointState(
                    recipe=self.recipe,
                    step=self.step,
                    epoch=self.step // self.steps_per_epoch,
                    cursor=self._cursor(),
                    window=self.window.to_dict(),
                    best=self.best,
                    validation_due=self.validation_due,
                    lineage=self.lineage,
                    val_dataset_digest=self.validation.digest,
                    num_processes=self.num_processes,
                ),
                weights=weights,
                optimizer=self.stepping.optimizer_states(),
                keep=self.recipe.train.keep_checkpoints,
            )
        self.accelerator.wait_for_everyone()
        self.window.restart_clock()
