"""The training loop: the same code for one process and many, and the same trace whether or not it was interrupted.

No state hides between two steps. The order of samples is a function of (digest, seed, epoch), the learning rate one of
the step, and before each step the random generators are seeded from (seed, step, rank): so weights, optimiser state and
the number of steps done are all that a checkpoint needs.
"""

import dataclasses
import hashlib
import logging
import math
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from pathlib import Path

import torch
from accelerate import Accelerator
from timm.layers import convert_sync_batchnorm
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from refseg.config import Recipe
from refseg.data.batch import Batch
from refseg.data.index import ManifestIndex
from refseg.data.loader import RefLoader, prepare_loader
from refseg.data.order import Cursor
from refseg.data.transforms import Geometry, normalise
from refseg.data.worker_death import named_worker_death
from refseg.errors import PreemptedError, RecipeError, TrainingError, UsageError
from refseg.evaluation.evaluate import evaluate_model
from refseg.evaluation.leaks import describe_leaks
from refseg.evaluation.protocols import find_protocol
from refseg.evaluation.scores import score
from refseg.models import build_model
from refseg.models.model import SegmentationModel
from refseg.models.weights import load_pretrained
from refseg.training.averaging import WeightAverage
from refseg.training.checkpoint import (
    AVERAGE_NAME,
    MODEL_NAME,
    checkpoint_name,
    drop_checkpoint,
    list_checkpoints,
    load_optimizer,
    load_weights,
    read_state,
    save_checkpoint,
    write_best,
)
from refseg.training.checkpoint_state import Best, CheckpointState
from refseg.training.compilation import CompiledModel
from refseg.training.launch import start_accelerator
from refseg.training.losses import LossWeights, training_loss
from refseg.training.micro_batches import split_batch
from refseg.training.optim import (
    build_optimizer,
    learning_rate_factor,
    load_optimizer_state,
    match_layouts,
    set_learning_rate,
)
from refseg.training.preemption import Preemption
from refseg.training.rank_death import named_rank_death
from refseg.training.resume import find_checkpoint, refuse_another_run
from refseg.training.run_files import lock_run, write_run_facts
from refseg.training.run_log import RunLog, open_run_log
from refseg.training.start_weights import StartWeights, load_start_weights
from refseg.training.validation_images import choose_images
from refseg.training.window import MetricsWindow

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TrainResult:
    """How a run ended.

    Attributes:
        checkpoint: The last checkpoint.
        step: Optimiser steps done.
        best: The best validation, None without one.
    """

    checkpoint: Path
    step: int
    best: Best | None


def train(recipe: Recipe, out: Path) -> TrainResult:
    """Train, going on from the newest checkpoint in `out` if there is one. Called by every process.

    Args:
        recipe: Settings of the run.
        out: The run's folder, made if absent and seen by all machines: `checkpoints/`, `metrics.jsonl`,
            `recipe.json`, `environment.json`.

    Raises:
        RecipeError: If the recipe asks for what cannot be, or `out` holds a run of another recipe.
        CheckpointError: If `out` holds checkpoints but no sound one, or weights to start from cannot be used.
        DatasetError: If the dataset is unusable, or not the one the run began with.
        TrainingError: If processes are missing, another run trains into `out`, or the loss stops being a number.
        PreemptedError: If SIGTERM came; the work is saved.
    """
    accelerator = start_accelerator(recipe.train, out)
    others = named_rank_death(accelerator.num_processes)
    with others, named_worker_death(), lock_run(out) if accelerator.is_main_process else nullcontext():
        trainer = _Trainer(recipe, out, accelerator)
        preemption = Preemption()
        with preemption.listening():  # from here on there is work to save
            return trainer.run(preemption)


def leave_process_group() -> None:
    """Wait for the others and take the processes apart; without it some runs hang or abort at exit."""
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
        self.index = ManifestIndex.open(recipe.data.root, [recipe.data.train_split])
        self.val_index = _open_validation(recipe) if recipe.train.val_every_epochs else None

        resumed = find_checkpoint(out, accelerator)
        state = None
        if resumed is not None:
            state = read_state(resumed)
            refuse_another_run(state, recipe, out=out, digest=self.index.descriptor.digest, val_digest=self._val_digest)

        start = load_start_weights(recipe) if recipe.train.init_from and state is None else None
        self.ancestors = start.ancestors if start is not None else state.ancestors if state is not None else ()
        model = _build(recipe, accelerator, start, goes_on=state is not None)
        self.geometry = Geometry(kind=recipe.data.geometry, size=recipe.data.input_size, mean=model.image_mean)
        self.loader = self._build_loader()
        self.batches = prepare_loader(accelerator, self.loader)
        self.steps_per_epoch = self.loader.steps_per_epoch
        self.total_steps = min(self.steps_per_epoch * recipe.train.epochs, recipe.train.max_steps or sys.maxsize)
        if resumed is not None:
            load_weights(model, resumed)
        optimizer = build_optimizer(recipe.train, model.parameter_groups(), device=accelerator.device.type)
        self.model = model
        """The model itself, for validation and checkpoints."""
        trained: torch.nn.Module = model
        if recipe.train.compile:
            trained = CompiledModel(model, fixed_sentences=recipe.data.expressions_per_image == 1)
        self.wrapped, self.optimizer = accelerator.prepare(trained, optimizer)

        decay = recipe.train.ema_decay
        self.average = WeightAverage(model, decay=decay) if decay else None
        self.step = 0
        self.best: Best | None = None
        self.owes_validation = False
        self.window = MetricsWindow(accelerator)
        if resumed is not None and state is not None:
            self._restore(resumed, state)

    def run(self, preemption: Preemption) -> TrainResult:
        """Train to the end."""
        if self.step >= self.total_steps:
            logger.info("%s is trained: %d of %d steps are done", self.out, self.step, self.total_steps)
        if self.is_main:
            self._say_what_it_is()
        self._train_mode()
        opened = open_run_log(
            self.accelerator, self.out, self.recipe, step=self.step, total_steps=self.total_steps
        )  # fmt: skip
        with opened as log:
            if self.owes_validation:  # the run was asked to leave when it was due
                self.owes_validation = False
                self._validate(log)
                self._end_by_patience()
                self._save(log)
            for batch in self._steps():
                self.window.add(self._train_step(batch), batch.num_global)
                self.step += 1
                log.advance()
                self._do_what_is_due(log, preemption)
        checkpoint = self.out / "checkpoints" / checkpoint_name(self.step)
        return TrainResult(checkpoint=checkpoint, step=self.step, best=self.best)

    def _do_what_is_due(self, log: RunLog, preemption: Preemption) -> None:
        """After a step: a line of the log, a validation, a checkpoint; the last step has all three."""
        config = self.recipe.train
        is_last = self.step == self.total_steps
        log_due = is_last or self.step % config.log_every_steps == 0
        save_due = is_last or self.step % config.checkpoint_every_steps == 0
        val_due = self._validation_due()
        # On a GPU the question waits for all steps in flight: there it is asked with the log alone.
        may_ask = log_due or self.accelerator.device.type == "cpu"
        leave = may_ask and not is_last and preemption.is_asked(self.accelerator)
        if log_due or save_due or val_due or leave:
            self._refuse_non_finite(*self.window.flush())
        if log_due:
            self._log(log)
        self.owes_validation = val_due and leave  # it may take longer than there is time
        if val_due and not leave:
            save_due = self._validate(log) or save_due
            save_due = self._end_by_patience() or save_due
        if save_due or leave:
            self._save(log)
        if leave:
            raise PreemptedError(
                f"{self.out}: asked to leave (SIGTERM) after step {self.step} of {self.total_steps}; all is saved, "
                "and the same command goes on"
            )

    # Setting up

    def _build_loader(self) -> RefLoader:
        data, config = self.recipe.data, self.recipe.train
        if config.global_batch % self.num_processes:
            raise RecipeError(
                f"train.global_batch: {config.global_batch} cannot be shared evenly by {self.num_processes} processes; "
                "take a multiple"
            )
        return RefLoader(
            self.index,
            geometry=self.geometry,
            sampling=data.sampling,
            expressions_per_image=data.expressions_per_image,
            global_batch=config.global_batch,
            num_tokens=data.num_tokens,
            trim_tokens=not config.compile,  # exact: text is causal and padding is masked
            seed=config.seed,
            shuffle=True,
            remainder=data.remainder,
            rank=self.accelerator.process_index,
            world_size=self.num_processes,
            num_workers=data.num_workers,
            worker_kind=data.worker_kind,
            decode=data.decode,
            cache_bytes=int(data.cache_gigabytes * 1e9),
        )

    def _restore(self, folder: Path, state: CheckpointState) -> None:
        self.step, self.best, self.owes_validation = state.step, state.best, state.owes_validation
        self.window.load(state.window)
        if self.average is not None:
            load_weights(self.average.model, folder, averaged=True)
        states = load_optimizer(folder)
        load_optimizer_state(self.optimizer.optimizer, states["optimizer"])
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(states["scaler"])
        self.loader.load_cursor(Cursor.from_dict(state.cursor))
        if self.is_main:
            for torn in list_checkpoints(self.out):
                if torn.name > folder.name:  # its name will be needed again
                    drop_checkpoint(torn)
            write_best(folder.parent, state)  # a crash may have come between the checkpoint and its mark
        logger.info("going on from %s: step %d of %d", folder, self.step, self.total_steps)
        if not self.owes_validation:
            self._end_by_patience()

    @property
    def _val_digest(self) -> str:
        return "" if self.val_index is None else self.val_index.descriptor.digest

    def _say_what_it_is(self) -> None:
        """Write down what the run is."""
        device = self.accelerator.device.type
        write_run_facts(
            self.out,
            self.recipe,
            self.index.descriptor,
            val_digest=self._val_digest,
            ancestors=self.ancestors,
            num_processes=self.num_processes,
            device=device,
        )
        logger.info(
            "training %s on %s: %s epochs of %d steps, %d processes on %s",
            self.recipe.model.image_encoder, self.index.descriptor.dataset, self.recipe.train.epochs,
            self.steps_per_epoch, self.num_processes, device,
        )  # fmt: skip
        if self.index.descriptor.leaks_allowed:
            logger.warning(
                "%s was mixed with leaks allowed: %s; checkpoints and reports will say so",
                self.recipe.data.root, describe_leaks(self.index.descriptor.leaks),
            )  # fmt: skip

    # Steps

    def _steps(self) -> Iterator[Batch]:
        """Batches from where the run stands to its end; the caller counts `self.step`."""
        while self.step < self.total_steps:
            epoch, steps_done = divmod(self.step, self.steps_per_epoch)
            if steps_done == 0:  # else the cursor has put the loader where it must be
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
        """One step of the optimiser; returns the rank's share of the loss."""
        config = self.recipe.train
        torch.manual_seed(step_seed(config.seed, self.step, self.accelerator.process_index))
        set_learning_rate(self.optimizer, self._learning_rate_factor(self.step))
        parts = split_batch(batch, config.accumulate_steps)
        total = torch.zeros((), device=self.accelerator.device)
        for number, part in enumerate(parts, 1):
            # Gradients are exchanged once a step, with the last part.
            with nullcontext() if number == len(parts) else self.accelerator.no_sync(self.wrapped):
                total += self._backward(part)
        if self.accelerator.device.type == "cuda":
            match_layouts(self.optimizer)
        if config.clip_norm:
            norm = self.accelerator.clip_grad_norm_(self.model.parameters(), config.clip_norm)
            if self.accelerator.scaler is None:  # else an infinite one only lowers the scale, and the step is left out
                self.window.add_gradient_norm(norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.average is not None:
            self.average.update(self.model)
        return total

    def _backward(self, batch: Batch) -> Tensor:
        """Add the gradients of a batch or a part of it; returns its share of the loss."""
        images = normalise(batch.images, self.model.image_mean, self.model.image_std)
        output = self.wrapped(images, batch.token_ids, batch.token_mask, batch.image_index)
        loss = training_loss(
            output,
            batch.masks,
            LossWeights.of(self.recipe),
            is_pad=batch.is_pad,
            num_global=batch.num_global,
            num_processes=self.num_processes,
        )
        self.accelerator.backward(loss)
        return loss.detach()

    def _learning_rate_factor(self, step: int) -> float:
        return learning_rate_factor(self.recipe.train, step, steps_per_epoch=self.steps_per_epoch)

    def _train_mode(self) -> None:
        self.wrapped.train()
        if self.recipe.train.batchnorm == "frozen":
            for module in self.model.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()

    # What is due after a step

    def _refuse_non_finite(self, loss_sum: float, norm_sum: float) -> None:
        if not math.isfinite(loss_sum):
            raise self._divergence(f"the loss became {loss_sum}")
        if not math.isfinite(norm_sum):
            raise self._divergence(f"the gradient's norm became {norm_sum}")

    def _refuse_non_finite_weights(self, weights: Mapping[str, Tensor]) -> None:
        for name, tensor in weights.items():
            if not torch.isfinite(tensor).all():
                raise self._divergence(f"weights stopped being numbers ({name})")

    def _divergence(self, what: str) -> TrainingError:
        folders = list_checkpoints(self.out)
        last = f"the last good checkpoint is {folders[-1]}" if folders else "there is no checkpoint yet"
        return TrainingError(
            f"{what} at or shortly before step {self.step}; {last}; try a smaller train.lr, or set train.clip_norm"
        )

    def _log(self, log: RunLog) -> None:
        line = self.window.summarise()
        config, factor = self.recipe.train, self._learning_rate_factor(self.step - 1)
        lr = {"lr": config.lr * factor, "lr_backbone": config.lr * config.backbone_lr_scale * factor}
        epoch = round(self.step / self.steps_per_epoch, 4)
        log.training(self.step, {"epoch": epoch, "loss": line.pop("loss"), **lr, **line})

    def _validation_due(self) -> bool:
        every = self.recipe.train.val_every_epochs
        epoch, into_epoch = divmod(self.step, self.steps_per_epoch)
        return every > 0 and into_epoch == 0 and (epoch % every == 0 or epoch == self.recipe.train.epochs)

    def _end_by_patience(self) -> bool:
        """Let the run end where it stands if the last validations were not better; called after one."""
        config = self.recipe.train
        if not config.patience or self.best is None or not self._validation_due():
            return False
        if (self.step - self.best.step) // (self.steps_per_epoch * config.val_every_epochs) < config.patience:
            return False
        logger.info("no better validation for %d: the run ends here", config.patience)
        self.total_steps = self.step
        return True

    def _validate(self, log: RunLog) -> bool:
        """Score the validation split on all processes; True if it is the best so far."""
        assert self.val_index is not None
        started = time.perf_counter()
        self._share_buffers()
        rows = evaluate_model(
            self.model if self.average is None else self.average.model,
            self.val_index,
            accelerator=self.accelerator,
            geometry=self.geometry,
            num_tokens=self.recipe.data.num_tokens,
            images_per_batch=self.recipe.eval.images_per_batch,
            num_workers=self.recipe.data.num_workers,
            decode=self.recipe.data.decode,
            protocols=[find_protocol(self.recipe.eval.protocol)],
            only_images=choose_images(self.val_index, self.recipe.train.val_images),
        )
        self._train_mode()
        scores = score(rows, find_protocol(self.recipe.eval.protocol))
        improved = self.best is None or scores.overall_iou > self.best.overall_iou
        if improved:
            self.best = Best(overall_iou=scores.overall_iou, step=self.step)
        line = {
            "epoch": round(self.step / self.steps_per_epoch, 4),
            "split": self.recipe.data.val_split,
            **scores.by_name(),
            "num_sentences": scores.num_sentences,
            "seconds": round(time.perf_counter() - started, 3),
        }
        log.validation(self.step, line, improved=improved)
        self.window.forget_time()
        return improved

    def _share_buffers(self) -> None:
        """Give all ranks rank 0's BatchNorm statistics, as each step of DistributedDataParallel does at its start.

        They are those of rank 0's samples, and what checkpoints hold; the ranks differ by the last step's update.
        """
        if self.num_processes > 1:
            averaged = [] if self.average is None else self.average.model.buffers()
            for buffer in (*self.model.buffers(), *averaged):
                torch.distributed.broadcast(buffer, src=0)

    def _save(self, log: RunLog) -> None:
        epoch, steps_done = divmod(self.step, self.steps_per_epoch)
        if self.is_main:
            log.sync()
            weights = {MODEL_NAME: self.model.state_dict()}
            self._refuse_non_finite_weights(weights[MODEL_NAME])
            if self.average is not None:
                weights[AVERAGE_NAME] = self.average.model.state_dict()
            scaler = self.accelerator.scaler
            save_checkpoint(
                self.out / "checkpoints",
                CheckpointState(
                    recipe=self.recipe,
                    step=self.step,
                    epoch=epoch,
                    cursor=dataclasses.replace(self.loader.cursor(steps_done), epoch=epoch).to_dict(),
                    window=self.window.to_dict(),
                    best=self.best,
                    owes_validation=self.owes_validation,
                    dataset=self.index.descriptor.dataset,
                    dataset_digest=self.index.descriptor.digest,
                    val_dataset_digest=self._val_digest,
                    leaks_allowed=self.index.descriptor.leaks_allowed,
                    leaks=self.index.descriptor.leaks,
                    ancestors=self.ancestors,
                    num_processes=self.num_processes,
                ),
                weights=weights,
                optimizer={
                    "optimizer": self.optimizer.state_dict(),
                    "scaler": scaler.state_dict() if scaler is not None else {},
                },
                keep=self.recipe.train.keep_checkpoints,
            )
        self.accelerator.wait_for_everyone()
        self.window.forget_time()


def _open_validation(recipe: Recipe) -> ManifestIndex:
    try:
        return ManifestIndex.open(recipe.data.val_root or recipe.data.root, [recipe.data.val_split])
    except UsageError as error:
        raise RecipeError(
            f"data.val_split: {error}; name one with data.val_split=, or train without validation: "
            "train.val_every_epochs=0"
        ) from error


def step_seed(seed: int, step: int, rank: int) -> int:
    """Seed of the random generators in one step of one rank: unrelated for neighbours, equal on every machine."""
    digest = hashlib.sha256(f"{seed} {step} {rank}".encode()).digest()
    return int.from_bytes(digest[:7], "little")


def _build(recipe: Recipe, accelerator: Accelerator, start: StartWeights | None, *, goes_on: bool) -> SegmentationModel:
    """The model on the device with its start weights, the same on every rank; one that goes on reads none."""
    torch.manual_seed(recipe.train.seed)
    model = build_model(recipe.model, input_size=recipe.data.input_size)
    if start is not None:
        start.put_into(model)
    elif not goes_on:
        load_pretrained(model, recipe.model)
    if recipe.train.batchnorm == "sync" and accelerator.num_processes > 1:
        model = convert_sync_batchnorm(model)
    if accelerator.device.type == "cuda":
        return model.to(memory_format=torch.channels_last).to(accelerator.device)
    return model
