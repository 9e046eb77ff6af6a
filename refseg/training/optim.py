"""Builds the optimiser with its parameter groups, and computes the learning rate as a pure function of the step."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from refseg.config import TrainConfig

NamedParameters = Sequence[tuple[str, nn.Parameter]]


def build_optimizer(
    config: TrainConfig, groups: Mapping[str, NamedParameters], *, device: str = "cpu"
) -> torch.optim.Optimizer:
    """Build Adam or AdamW over a model's parameter groups. On CUDA the fused kernel is used.

    On a CPU the fused kernel is not used. It pairs weights and gradients by their order in memory. The result is
    silently wrong if only one of the two is channels_last. On CUDA the kernel refuses weights and gradients with
    different layouts. `match_layouts` makes the layouts equal.

    Each group of the optimiser has its own `base_lr`. `set_learning_rate` multiplies this rate by a factor. The code of
    CRIS is intended to train the backbone with a tenth of the learning rate. It sets only `initial_lr`, so that the
    first epoch uses the full rate. Here the backbone uses a tenth from the first step.

    Args:
        config: The recipe's `[train]` section.
        groups: Named parameters of `backbone` and `rest`, as a model's `parameter_groups` returns them.
        device: Type of the parameters' device, for example `cuda`.
    """
    scales = {"backbone": config.backbone_lr_scale, "rest": 1.0}
    settings = [
        {
            "params": parameters,
            "base_lr": config.lr * scales[name],
            "lr": config.lr * scales[name],
            "weight_decay": decay,
        }
        for name, named in groups.items()
        for decay, parameters in _by_decay(named, config.weight_decay)
        if parameters
    ]
    kind = torch.optim.Adam if config.optimizer == "adam" else torch.optim.AdamW
    return kind(settings, fused=device == "cuda")


def match_layouts(optimizer: torch.optim.Optimizer) -> None:
    """Copy gradients into memory with the strides of their weights, as the fused kernel requires.

    For 1 x 1 convolutions autograd may return different but equivalent strides. For example, for the shape (D, C, 1,
    1), the strides (C, 1, 1, 1) and (C, 1, C, C) describe the same layout.
    """
    for group in optimizer.param_groups:
        for weight in group["params"]:
            if weight.grad is not None and weight.grad.stride() != weight.stride():
                weight.grad = _laid_out_as(weight, weight.grad)


def load_optimizer_state(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Load the state of an optimiser. It may have been saved on another type of device.

    torch would also load the setting `fused` of the groups, and the strides of the saved tensors. This function keeps
    the setting `fused` of the given optimiser, and uses the strides of the weights.

    Args:
        optimizer: Optimiser over the same parameters in the same groups.
        state: Saved `state_dict`, on the CPU.
    """
    saved = state["param_groups"]
    groups = [{**old, "fused": own["fused"]} for old, own in zip(saved, optimizer.param_groups, strict=True)]
    optimizer.load_state_dict({**state, "param_groups": groups})
    for group in optimizer.param_groups:
        for weight in group["params"]:
            for name, value in optimizer.state[weight].items():
                if isinstance(value, Tensor) and value.shape == weight.shape and value.stride() != weight.stride():
                    optimizer.state[weight][name] = _laid_out_as(weight, value)


def _laid_out_as(weight: Tensor, values: Tensor) -> Tensor:
    """Copy values into new memory with the strides of the weight."""
    return torch.empty_like(weight, requires_grad=False).copy_(values)


def _by_decay(named: NamedParameters, weight_decay: float) -> Iterable[tuple[float, list[nn.Parameter]]]:
    if weight_decay == 0:
        yield 0.0, [parameter for _, parameter in named]
        return
    # Norms and biases are vectors; they are not decayed, because decay would not regularise the model.
    yield weight_decay, [parameter for _, parameter in named if parameter.ndim > 1]
    yield 0.0, [parameter for _, parameter in named if parameter.ndim <= 1]


def learning_rate_factor(config: TrainConfig, step: int, *, steps_per_epoch: int) -> float:
    """Return the factor by which every group's base learning rate is multiplied.

    The factor does not depend on `max_steps`. A run that stops early has used the same learning rates up to that step.

    Args:
        config: The recipe's `[train]` section.
        step: Number of the step about to be taken, from 0.
        steps_per_epoch: Number of optimiser steps in an epoch.
    """
    warmup = min(1.0, (step + 1) / config.warmup_steps) if config.warmup_steps else 1.0
    if config.schedule == "multistep":
        return warmup * config.gamma ** sum(step // steps_per_epoch >= epoch for epoch in config.milestones)
    total = config.epochs * steps_per_epoch
    progress = max(0, step - config.warmup_steps) / max(1, total - config.warmup_steps)
    return warmup * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def set_learning_rate(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Set every group's learning rate to its base rate times `factor`."""
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * factor
