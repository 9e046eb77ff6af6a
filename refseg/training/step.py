"""Takes one optimiser step. It is a pure function of weights, optimiser state, batch, seed, step and rank.

`OptimizerStep` takes the step. `split_batch`, `CompiledModel` and `WeightAverage` implement optional settings.
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
    """Holds the state that a step changes, which is the weights, their average, and the optimiser and scaler states.

    Attributes:
        model: The model without wrappers, for checkpoints.
        average: Average of the model's weights. None if the recipe does not request it.
    """

    def __init__(
        self, recipe: Recipe, model: SegmentationModel, accelerator: Accelerator, *, steps_per_epoch: int
    ) -> None:
        """Build the optimiser, compile the model if the recipe requests it, and wrap it for several processes.

        Args:
            recipe: Recipe of the run.
            model: Model with its start weights, on the device.
            accelerator: Accelerator of this process.
            steps_per_epoch: Number of optimiser steps in an epoch, for the learning rate schedule.
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
        """The model that is validated and saved as the result of the run. It is the average if there is one."""
        return self.model if self.average is None else self.average.model

    def take(self, batch: Batch, step: int) -> tuple[Tensor, Tensor | None]:
        """Take a step.

        Args:
            batch: This rank's share of the global batch.
            step: Number of the step, from 0.

        Returns:
            The rank's share of the loss, and the norm of the gradient. The norm is None without clipping. It is also
            None with a gradient scaler, because the norm may then be infinite.
        """
        config = self._recipe.train
        torch.manual_seed(step_seed(config.seed, step, self._accelerator.process_index))
        set_learning_rate(self._optimizer, self._learning_rate_factor(step))
        parts = split_batch(batch, config.accumulate_steps)
        total = torch.zeros((), device=self._accelerator.device)
        for number, part in enumerate(parts, 1):
            # The ranks exchange gradients once per step, after the last part.
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
        # With a scaler, an infinite norm is not an error: the scaler skips the step and lowers its scale.
        return total, norm if self._accelerator.scaler is None else None

    def train_mode(self) -> None:
        """Set the model to training mode. Frozen batch norms are excepted, so that they keep their statistics."""
        self._wrapped.train()
        if self._recipe.train.batchnorm == "frozen":
            for module in self.model.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()

    def learning_rates(self, step: int) -> dict[str, float]:
        """Return the learning rates `lr` and `lr_backbone` of a step, counted from 0."""
        config, factor = self._recipe.train, self._learning_rate_factor(step)
        return {"lr": config.lr * factor, "lr_backbone": config.lr * config.backbone_lr_scale * factor}

    def share_buffers(self) -> None:
        """Copy rank 0's batch norm statistics to all ranks, as DistributedDataParallel does at the start of each step.

        Checkpoints contain the statistics of rank 0. The ranks differ only by the update of the last step.
        """
        if self._accelerator.num_processes > 1:
            averaged = [] if self.average is None else self.average.model.buffers()
            for buffer in (*self.model.buffers(), *averaged):
                torch.distributed.broadcast(buffer, src=0)

    def weights(self) -> dict[str, Mapping[str, Tensor]]:
        """Return the state dicts, by the name of the checkpoint file that stores each."""
        named: dict[str, Mapping[str, Tensor]] = {MODEL_NAME: self.model.state_dict()}
        if self.average is not None:
            named[AVERAGE_NAME] = self.average.model.state_dict()
        return named

    def optimizer_states(self) -> dict[str, Any]:
        """Return the state dicts of optimiser and scaler."""
        scaler = self._accelerator.scaler
        return {
            "optimizer": self._optimizer.state_dict(),
            "scaler": scaler.state_dict() if scaler is not None else {},
        }

    def restore(self, folder: Path) -> None:
        """Load average, optimiser and scaler from a checkpoint. The model must already have its weights.

        Raises:
            CheckpointError: If the average does not fit the model.
        """
        if self.average is not None:
            load_weights(self.average.model, folder, averaged=True)
        states = load_optimizer(folder)
        load_optimizer_state(self._optimizer.optimizer, states["optimizer"])
        if self._accelerator.scaler is not None:
            self._accelerator.scaler.load_state_dict(states["scaler"])

    def _backward(self, batch: Batch) -> Tensor:
        """Compute and add the gradients of a batch, or of a part of it. Return the share of the loss."""
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
        """Update the weights. Return False if the scaler skipped the update.

        The value `step_was_skipped` of accelerate is wrong for a fused optimiser. torch's scaler always calls a fused
        optimiser, and the kernel skips the update. The scaler lowers its scale after a skipped update and at no other
        time. Therefore the scale before and after the update is compared. Reading the scale waits for the device, so it
        is read only if there is an average.
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
    """Split a batch by images, so that all expressions of an image are in the same part.

    `num_global` is not changed, so the losses of the parts add up to the loss of the step. Only batch norms give
    another result than for the whole batch, because their statistics come from the images of one part.

    Args:
        batch: Batch of one rank, with `image_index` in ascending order.
        parts: Number of parts. There are fewer parts if the batch has fewer images.
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
    """A model's forward pass in which `encode_image` and `decode_all` are each compiled as one graph.

    The text encoder is not compiled, because it accounts for only 4 % of the computation per image-sentence pair.
    Shapes are assumed to be fixed, so recipes with `train.compile` do not trim tokens. The model itself is not changed.
    Validation runs it uncompiled with batches of other sizes.
    """

    def __init__(self, model: SegmentationModel, *, fixed_sentences: bool, backend: str = "inductor") -> None:
        """Wrap a model. It is compiled at the first call.

        Args:
            model: Model that holds the parameters.
            fixed_sentences: True if every batch has the same number of sentences. If False, the decoder is compiled for
                any number of sentences.
            backend: Backend of `torch.compile`. Tests use a backend that needs no C++ compiler.
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
        """Run the forward pass. `SegmentationModel.forward` describes the arguments."""
        text_state = self.model.encode_text(token_ids, token_mask)
        output: ModelOutput = self._decode_all(self._encode_image(images), text_state, image_index)
        return output


class WeightAverage:
    """Averages the weights of a model after each step.

    The rule is average = decay * average + (1 - decay) * weights. It applies to parameters and to the floating-point
    buffers of the state dict, which are the statistics of batch norms. All other buffers are copied. A mean of whole
    numbers (a grid, an index, a counter) has no meaning. A buffer outside the state dict is computed again when a
    checkpoint is read, so only a copy gives the same model.

    Attributes:
        model: The averaged model.
    """

    def __init__(self, model: SegmentationModel, *, decay: float) -> None:
        """Start the average with the current weights.

        Args:
            model: Model whose weights are averaged. It is copied and not changed.
            decay: Decay of the average per step, between 0 and 1.
        """
        self.model = copy.deepcopy(model)
        self._average = get_ema_multi_avg_fn(decay)
        self._saved = frozenset(model.state_dict())

    @torch.no_grad()
    def update(self, model: SegmentationModel) -> None:
        """Update the average with the weights after a step."""
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
    """Return the random seed of one step on one rank. The seed is the same on every machine.

    The seeds of different steps and ranks are unrelated.
    """
    digest = hashlib.sha256(f"{seed} {step} {rank}".encode()).digest()
    return int.from_bytes(digest[:7], "little")
