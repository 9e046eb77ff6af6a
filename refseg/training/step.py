"""One step of the optimiser: a pure function of weights, optimiser state, batch, seed, step and rank.

`OptimizerStep` takes the step; `split_batch`, `CompiledModel` and `WeightAverage` are what a recipe may add to it.
"""

import copy
import hashlib
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import get_ema_multi_avg_fn

from refseg.config import Recipe
from refseg.data.batch import Batch
from refseg.data.transforms import normalise
from refseg.models.model import ModelOutput, SegmentationModel
from refseg.training.checkpoint import AVERAGE_NAME, MODEL_NAME, load_optimizer, load_weights
from refseg.training.losses import LossWeights, training_loss
from refseg.training.optim import (
    build_optimizer,
    learning_rate_factor,
    load_optimizer_state,
    match_layouts,
    set_learning_rate,
)


class OptimizerStep:
    """All that a step changes: the model's weights, their average, the state of optimiser and scaler.

    Attributes:
        model: The model itself, for checkpoints.
        average: Of its weights, where the recipe wants one.
    """

    def __init__(
        self, recipe: Recipe, model: SegmentationModel, accelerator: Accelerator, *, steps_per_epoch: int
    ) -> None:
        """Wrap a model for training.

        Args:
            recipe: Of the run.
            model: With the weights to start from, on the device.
            accelerator: Of this process.
            steps_per_epoch: For the schedule.
        """
        self.model = model
        self._recipe = recipe
        self._accelerator = accelerator
        self._steps_per_epoch = steps_per_epoch
        optimizer = build_optimizer(recipe.train, model.parameter_groups(), device=accelerator.device.type)
        trained: nn.Module = model
        if recipe.train.compile:
            trained = CompiledModel(model, fixed_sentences=recipe.data.expressions_per_image == 1)
        self._wrapped, self._optimizer = accelerator.prepare(trained, optimizer)
        decay = recipe.train.ema_decay
        self.average = WeightAverage(model, decay=decay) if decay else None

    @property
    def result(self) -> SegmentationModel:
        """What is validated and kept as the result: the average where there is one."""
        return self.model if self.average is None else self.average.model

    def take(self, batch: Batch, step: int) -> tuple[Tensor, Tensor | None]:
        """Take a step.

        Args:
            batch: This rank's share.
            step: Its number, from 0.

        Returns:
            The rank's share of the loss; and the gradient's norm, where it is clipped and must be finite.
        """
        config = self._recipe.train
        torch.manual_seed(step_seed(config.seed, step, self._accelerator.process_index))
        set_learning_rate(self._optimizer, self._learning_rate_factor(step))
        parts = split_batch(batch, config.accumulate_steps)
        total = torch.zeros((), device=self._accelerator.device)
        for number, part in enumerate(parts, 1):
            # Gradients are exchanged once a step, with the last part.
            with nullcontext() if number == len(parts) else self._accelerator.no_sync(self._wrapped):
                total += self._backward(part)
        if self._accelerator.device.type == "cuda":
            match_layouts(self._optimizer)
        norm = None
        if config.clip_norm:
            norm = self._accelerator.clip_grad_norm_(self.model.parameters(), config.clip_norm)
        was_taken = self._update_weights()
        self._optimizer.zero_grad(set_to_none=True)
        if self.average is not None and was_taken:
            self.average.update(self.model)
        # With a scaler an infinite norm only lowers the scale, and the step is left out.
        return total, norm if self._accelerator.scaler is None else None

    def train_mode(self) -> None:
        """Go to training mode, in which frozen batch norms keep their statistics."""
        self._wrapped.train()
        if self._recipe.train.batchnorm == "frozen":
            for module in self.model.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()

    def learning_rates(self, step: int) -> dict[str, float]:
        """`lr` and `lr_backbone` of a step, counted from 0."""
        config, factor = self._recipe.train, self._learning_rate_factor(step)
        return {"lr": config.lr * factor, "lr_backbone": config.lr * config.backbone_lr_scale * factor}

    def share_buffers(self) -> None:
        """Give all ranks rank 0's BatchNorm statistics, as each step of DistributedDataParallel does at its start.

        They are those of rank 0's samples, and what checkpoints hold; the ranks differ by the last step's update.
        """
        if self._accelerator.num_processes > 1:
            averaged = [] if self.average is None else self.average.model.buffers()
            for buffer in (*self.model.buffers(), *averaged):
                torch.distributed.broadcast(buffer, src=0)

    def weights(self) -> dict[str, Mapping[str, Tensor]]:
        """State dicts by the file of a checkpoint that holds them."""
        named: dict[str, Mapping[str, Tensor]] = {MODEL_NAME: self.model.state_dict()}
        if self.average is not None:
            named[AVERAGE_NAME] = self.average.model.state_dict()
        return named

    def optimizer_states(self) -> dict[str, Any]:
        """State dicts of optimiser and scaler."""
        scaler = self._accelerator.scaler
        return {
            "optimizer": self._optimizer.state_dict(),
            "scaler": scaler.state_dict() if scaler is not None else {},
        }

    def restore(self, folder: Path) -> None:
        """Go on from a checkpoint, whose weights the model has already.

        Raises:
            CheckpointError: If the average does not fit.
        """
        if self.average is not None:
            load_weights(self.average.model, folder, averaged=True)
        states = load_optimizer(folder)
        load_optimizer_state(self._optimizer.optimizer, states["optimizer"])
        if self._accelerator.scaler is not None:
            self._accelerator.scaler.load_state_dict(states["scaler"])

    def _backward(self, batch: Batch) -> Tensor:
        """Add the gradients of a batch or a part of it; returns its share of the loss."""
        images = normalise(batch.images, self.model.image_mean, self.model.image_std)
        output = self._wrapped(images, batch.token_ids, batch.token_mask, batch.image_index)
        loss = training_loss(
            output,
            batch.masks,
            LossWeights.of(self._recipe),
            is_pad=batch.is_pad,
            num_global=batch.num_global,
            num_processes=self._accelerator.num_processes,
        )
        self._accelerator.backward(loss)
        return loss.detach()

    def _update_weights(self) -> bool:
        """Let the optimiser change the weights; False if the scaler left the step out.

        accelerate's `step_was_skipped` is wrong for a fused optimiser: torch's scaler calls it in any case, and its
        kernel leaves the weights alone. The scaler lowers its scale after such a step and after no other. Reading the
        scale waits for the device, so it is read only where there is an average.
        """
        scaler = self._accelerator.scaler
        if scaler is None or self.average is None:
            self._optimizer.step()
            return True
        scale = scaler.get_scale()
        self._optimizer.step()
        return scaler.get_scale() >= scale

    def _learning_rate_factor(self, step: int) -> float:
        return learning_rate_factor(self._recipe.train, step, steps_per_epoch=self._steps_per_epoch)


def split_batch(batch: Batch, parts: int) -> list[Batch]:
    """Split by images, so that expressions stay with the image they share.

    `num_global` stays that of the whole step, so the parts' losses add up to the step's. What differs from the
    whole batch is what a batch norm sees: the images of a part.

    Args:
        batch: Batch of one rank, with `image_index` in ascending order.
        parts: How many; fewer where there are fewer images.
    """
    if parts == 1:
        return [batch]
    split = []
    for images in torch.arange(len(batch.images), device=batch.images.device).chunk(parts):
        first, last = int(images[0]), int(images[-1])
        mine = (batch.image_index >= first) & (batch.image_index <= last)
        split.append(
            Batch(
                images=batch.images[first : last + 1],
                image_index=batch.image_index[mine] - first,
                masks=batch.masks[mine],
                token_ids=batch.token_ids[mine],
                token_mask=batch.token_mask[mine],
                row_index=batch.row_index[mine],
                sentence_index=batch.sentence_index[mine],
                is_pad=batch.is_pad[mine],
                num_global=batch.num_global,
            )
        )
    return split


class CompiledModel(nn.Module):
    """A model's forward pass with `encode_image` and `decode_all` compiled, each as one graph without a break.

    The sentence side stays as it is: it is 4 % of a pair's work. Shapes are taken as fixed, so recipes with
    `train.compile` do not trim tokens. The model itself is not changed: validation runs it uncompiled, with batches of
    other sizes.
    """

    def __init__(self, model: SegmentationModel, *, fixed_sentences: bool, backend: str = "inductor") -> None:
        """Wrap; compilation comes with the first call.

        Args:
            model: Holds the parameters.
            fixed_sentences: Each batch has as many sentences; False compiles the decoder for any number of them.
            backend: As of `torch.compile`; tests take one that needs no C++ compiler.
        """
        super().__init__()
        self.model = model
        self._encode_image = torch.compile(model.encode_image, fullgraph=True, dynamic=False, backend=backend)
        self._decode_all = torch.compile(
            model.decode_all, fullgraph=True, dynamic=False if fixed_sentences else None, backend=backend
        )

    def forward(
        self,
        images: Float[Tensor, "I 3 H W"],
        token_ids: Int64[Tensor, "B L"],
        token_mask: Bool[Tensor, "B L"],
        image_index: Int64[Tensor, "B"],
    ) -> ModelOutput:
        """As the model's own."""
        text_state = self.model.encode_text(token_ids, token_mask)
        output: ModelOutput = self._decode_all(self._encode_image(images), text_state, image_index)
        return output


class WeightAverage:
    """After each step: average = decay * average + (1 - decay) * weights.

    Parameters are averaged, and so are the floating-point buffers that are saved with them: the statistics of batch
    norms, which belong to the averaged weights. All other buffers are copied. Whole numbers (a grid, an index, a
    counter) have no mean, and a buffer that is not saved is built anew by a reader of the weights, so that only a copy
    gives the model that is read from a checkpoint.

    Attributes:
        model: The averaged model.
    """

    def __init__(self, model: SegmentationModel, *, decay: float) -> None:
        """Begin with the weights as they are.

        Args:
            model: Stays as it is; the average is a copy of it.
            decay: Between 0 and 1.
        """
        self.model = copy.deepcopy(model)
        self._average = get_ema_multi_avg_fn(decay)
        self._saved = frozenset(model.state_dict())

    @torch.no_grad()
    def update(self, model: SegmentationModel) -> None:
        """Take in the weights after a step that was taken."""
        averages: list[Tensor] = []
        values: list[Tensor] = []
        for (name, average), (_, value) in zip(_tensors(self.model), _tensors(model), strict=True):
            if name in self._saved and average.is_floating_point():
                averages.append(average)
                values.append(value)
            else:
                average.copy_(value)
        self._average(averages, values, None)


def _tensors(model: SegmentationModel) -> Iterator[tuple[str, Tensor]]:
    return chain(model.named_parameters(), model.named_buffers())


def step_seed(seed: int, step: int, rank: int) -> int:
    """Seed of the random generators in one step of one rank: unrelated for neighbours, equal on every machine."""
    digest = hashlib.sha256(f"{seed} {step} {rank}".encode()).digest()
    return int.from_bytes(digest[:7], "little")
