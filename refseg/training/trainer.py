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
from contextlib import AbstractContextManager, closing, nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from timm.layers import convert_sync_batchnorm
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm
from tqdm import tqdm

from refseg.config import Recipe, recipe_differences
from refseg.data.batch import Batch
from refseg.data.index import ManifestIndex
from refseg.data.loader import RefLoader, prepare_loader
from refseg.data.order import Cursor
from refseg.data.transforms import Geometry, normalise
from refseg.data.worker_death import named_worker_death
from refseg.errors import CheckpointError, RecipeError, TrainingError
from refseg.evaluation.evaluate import evaluate_model
from refseg.evaluation.leaks import describe_leaks
from refseg.evaluation.protocols import find_protocol
from refseg.evaluation.scores import score
from refseg.models import build_model
from refseg.models.model import SegmentationModel
from refseg.models.weights import load_pretrained
from refseg.training.checkpoint import (
    Best,
    CheckpointState,
    checkpoint_name,
    drop_checkpoint,
    latest_checkpoint,
    list_checkpoints,
    load_optimizer,
    load_weights,
    read_state,
    save_checkpoint,
    write_best,
)
from refseg.training.compilation import CompiledModel
from refseg.training.launch import start_accelerator
from refseg.training.losses import LossWeights, training_loss
from refseg.training.optim import build_optimizer, learning_rate_factor, set_learning_rate
from refseg.training.run_files import MetricsLog, lock_run, write_run_facts
from refseg.training.window import MetricsWindow

logger = logging.getLogger(__name__)

_MAY_CHANGE = {
    "data.root", "data.val_root", "data.num_workers", "data.worker_kind",
    "data.cache_gigabytes",
    "train.max_steps", "train.log_every_steps", "train.checkpoint_every_steps", "train.keep_checkpoints",
    "train.val_every_epochs", "train.compile", "eval.images_per_batch",
}  # fmt: skip
"""Keys that may differ on resume: none of them moves a weight. (That the data is the same, its digest says.)"""


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
        CheckpointError: If `out` holds checkpoints but no sound one.
        DatasetError: If the dataset is unusable, or not the one the run began with.
        TrainingError: If processes are missing, another run trains into `out`, or the loss stops being a number.
    """
    accelerator = start_accelerator(recipe.train)
    with named_worker_death(), lock_run(out) if accelerator.is_main_process else nullcontext():
        return _Trainer(recipe, out, accelerator).run()


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
        self.val_index: ManifestIndex | None = None
        if recipe.train.val_every_epochs:
            self.val_index = ManifestIndex.open(recipe.data.val_root or recipe.data.root, [recipe.data.val_split])

        resumed = self._find_checkpoint()
        state = None
        if resumed is not None:
            state = read_state(resumed)
            self._refuse_another_run(state)

        model = _build(recipe, accelerator)
        self.geometry = Geometry(kind=recipe.data.geometry, size=recipe.data.input_size, mean=model.image_mean)
        self.loader = self._build_loader()
        self.batches = prepare_loader(accelerator, self.loader)
        self.steps_per_epoch = self.loader.steps_per_epoch
        self.total_steps = min(self.steps_per_epoch * recipe.train.epochs, recipe.train.max_steps or sys.maxsize)
        if resumed is not None:
            load_weights(model, resumed)
        optimizer = build_optimizer(recipe.train, model.parameter_groups())
        self.model = model
        """The model itself, for validation and checkpoints."""
        trained: torch.nn.Module = model
        if recipe.train.compile:
            trained = CompiledModel(model, fixed_sentences=recipe.data.expressions_per_image == 1)
        self.wrapped, self.optimizer = accelerator.prepare(trained, optimizer)

        self.step = 0
        self.best: Best | None = None
        self.window = MetricsWindow(accelerator)
        if resumed is not None and state is not None:
            self._restore(resumed, state)

    def run(self) -> TrainResult:
        """Train to the end."""
        config = self.recipe.train
        if self.step >= self.total_steps:
            logger.info("%s is trained: %d of %d steps are done", self.out, self.step, self.total_steps)
        self._train_mode()
        with self._open_metrics() as metrics, self._progress_bar() as bar:
            for batch in self._steps():
                self.window.add(self._train_step(batch), batch.num_global)
                self.step += 1
                bar.update()
                is_last = self.step == self.total_steps
                log_due = is_last or self.step % config.log_every_steps == 0
                save_due = is_last or self.step % config.checkpoint_every_steps == 0
                val_due = self._validation_due()
                if log_due or save_due or val_due:
                    self._refuse_non_finite(self.window.flush())
                if log_due:
                    self._log(metrics, bar)
                if val_due and self._validate(metrics):
                    save_due = True
                if save_due:
                    self._save(metrics)
        checkpoint = self.out / "checkpoints" / checkpoint_name(self.step)
        return TrainResult(checkpoint=checkpoint, step=self.step, best=self.best)

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

    def _find_checkpoint(self) -> Path | None:
        """The checkpoint to go on from; rank 0 looks, so that all ranks take the same."""
        found: list[Path | None] = [None]
        if self.is_main:
            found[0] = latest_checkpoint(self.out)
        broadcast_object_list(found)
        folder = found[0]
        if folder is None:
            return None
        if not folder.is_dir():
            raise CheckpointError(f"{folder}: rank 0 sees this checkpoint and this machine does not; share --out")
        return folder

    def _restore(self, folder: Path, state: CheckpointState) -> None:
        self.step, self.best = state.step, state.best
        self.window.load(state.window)
        states = load_optimizer(folder)
        self.optimizer.load_state_dict(states["optimizer"])
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(states["scaler"])
        self.loader.load_cursor(Cursor.from_dict(state.cursor))
        if self.is_main:
            for torn in list_checkpoints(self.out):
                if torn.name > folder.name:  # its name will be needed again
                    drop_checkpoint(torn)
            write_best(folder.parent, state)  # a crash may have come between the checkpoint and its mark
        logger.info("going on from %s: step %d of %d", folder, self.step, self.total_steps)

    def _refuse_another_run(self, state: CheckpointState) -> None:
        differing = [key for key in recipe_differences(state.recipe, self.recipe) if key not in _MAY_CHANGE]
        if self.recipe.train.schedule == "multistep" and "train.epochs" in differing:
            differing.remove("train.epochs")  # that schedule does not know where the end is
        if differing:
            raise RecipeError(
                f"{self.out} holds a run of another recipe ({', '.join(differing)} differ); "
                "choose another --out, or the same settings to go on"
            )
        if state.dataset_digest != self.index.descriptor.digest:
            raise RecipeError(
                f"{self.out} holds a run on {state.dataset} with digest {state.dataset_digest[:12]}, "
                f"but {self.recipe.data.root} has {self.index.descriptor.digest[:12]}; choose another --out"
            )
        if state.val_dataset_digest and self._val_digest not in ("", state.val_dataset_digest):
            raise RecipeError(
                f"{self.out} holds a run validated on the dataset with digest {state.val_dataset_digest[:12]}, but "
                f"{self.recipe.data.val_root or self.recipe.data.root} has {self._val_digest[:12]}: its best could not "
                "be told; choose another --out"
            )

    @property
    def _val_digest(self) -> str:
        return "" if self.val_index is None else self.val_index.descriptor.digest

    def _open_metrics(self) -> AbstractContextManager[MetricsLog | None]:
        """Say what the run is; the main process writes it down."""
        if not self.is_main:
            return nullcontext()
        device = self.accelerator.device.type
        write_run_facts(self.out, self.recipe, self.index.descriptor, num_processes=self.num_processes, device=device)
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
        return closing(MetricsLog(self.out, step=self.step))

    def _progress_bar(self) -> "tqdm[Any]":
        on_terminal = self.is_main and sys.stderr.isatty()
        return tqdm(total=self.total_steps, initial=self.step, unit="step", disable=not on_terminal)

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
        if config.clip_norm:
            self.accelerator.clip_grad_norm_(self.model.parameters(), config.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
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

    def _refuse_non_finite(self, loss_sum: float) -> None:
        if not math.isfinite(loss_sum):
            raise self._divergence(f"the loss became {loss_sum}")

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

    def _log(self, metrics: MetricsLog | None, bar: "tqdm[Any]") -> None:
        line = self.window.summarise()
        if metrics is not None:
            factor = self._learning_rate_factor(self.step - 1)
            config = self.recipe.train
            line = {
                "epoch": round(self.step / self.steps_per_epoch, 4),
                "loss": line.pop("loss"),
                "lr": config.lr * factor,
                "lr_backbone": config.lr * config.backbone_lr_scale * factor,
                **line,
            }
            metrics.write("train", self.step, line)
            bar.set_postfix(loss=f"{line['loss']:.4f}")
            if bar.disable:
                logger.info(
                    "step %d/%d  epoch %.2f  loss %.4f  lr %.2e  %.1f samples/s  data wait %.0f %%  %s left",
                    self.step, self.total_steps, line["epoch"], line["loss"], line["lr"], line["samples_per_second"],
                    100 * line["data_wait_share"],
                    timedelta(seconds=round((self.total_steps - self.step) * line["seconds_per_step"])),
                )  # fmt: skip

    def _validation_due(self) -> bool:
        every = self.recipe.train.val_every_epochs
        epoch, into_epoch = divmod(self.step, self.steps_per_epoch)
        return every > 0 and into_epoch == 0 and (epoch % every == 0 or epoch == self.recipe.train.epochs)

    def _validate(self, metrics: MetricsLog | None) -> bool:
        """Score the validation split on all processes; True if it is the best so far."""
        assert self.val_index is not None
        started = time.perf_counter()
        self._share_buffers()
        rows = evaluate_model(
            self.model,
            self.val_index,
            accelerator=self.accelerator,
            geometry=self.geometry,
            num_tokens=self.recipe.data.num_tokens,
            images_per_batch=self.recipe.eval.images_per_batch,
            num_workers=self.recipe.data.num_workers,
            protocols=[find_protocol(self.recipe.eval.protocol)],
        )
        self._train_mode()
        scores = score(rows, find_protocol(self.recipe.eval.protocol))
        improved = self.best is None or scores.overall_iou > self.best.overall_iou
        if improved:
            self.best = Best(overall_iou=scores.overall_iou, step=self.step)
        if metrics is not None:
            seconds = round(time.perf_counter() - started, 3)
            epoch = round(self.step / self.steps_per_epoch, 4)
            metrics.write(
                "val", self.step,
                {"epoch": epoch, "split": self.recipe.data.val_split, **scores.by_name(), "seconds": seconds},
            )  # fmt: skip
            logger.info(
                "step %d  %s: oIoU %.4f  mIoU %.4f  (%d sentences, %.0f s)%s",
                self.step, self.recipe.data.val_split, scores.overall_iou, scores.mean_iou, scores.num_sentences,
                seconds, "  best so far" if improved else "",
            )  # fmt: skip
        self.window.forget_time()
        return improved

    def _share_buffers(self) -> None:
        """Give all ranks rank 0's BatchNorm statistics, as each step of DistributedDataParallel does at its start.

        They are those of rank 0's samples, and what checkpoints hold; the ranks differ by the last step's update.
        """
        if self.num_processes > 1:
            for buffer in self.model.buffers():
                torch.distributed.broadcast(buffer, src=0)

    def _save(self, metrics: MetricsLog | None) -> None:
        epoch, steps_done = divmod(self.step, self.steps_per_epoch)
        if metrics is not None:
            metrics.sync()
            weights = self.model.state_dict()
            self._refuse_non_finite_weights(weights)
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
                    dataset=self.index.descriptor.dataset,
                    dataset_digest=self.index.descriptor.digest,
                    val_dataset_digest=self._val_digest,
                    leaks_allowed=self.index.descriptor.leaks_allowed,
                    leaks=self.index.descriptor.leaks,
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


def step_seed(seed: int, step: int, rank: int) -> int:
    """Seed of the random generators in one step of one rank: unrelated for neighbours, equal on every machine."""
    digest = hashlib.sha256(f"{seed} {step} {rank}".encode()).digest()
    return int.from_bytes(digest[:7], "little")


def _build(recipe: Recipe, accelerator: Accelerator) -> SegmentationModel:
    """The model with its start weights on the device, the same on every rank."""
    torch.manual_seed(recipe.train.seed)
    model = build_model(recipe.model, input_size=recipe.data.input_size)
    load_pretrained(model, recipe.model)
    if recipe.train.batchnorm == "sync" and accelerator.num_processes > 1:
        model = convert_sync_batchnorm(model)
    if accelerator.device.type == "cuda":
        return model.to(memory_format=torch.channels_last).to(accelerator.device)
    return model
