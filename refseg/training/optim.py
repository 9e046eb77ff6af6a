"""Optimiser groups, and the learning rate as a pure function of the step."""

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
    """Build Adam or AdamW over a model's parameter groups, fused into one kernel on CUDA.

    Not fused on a CPU: there that kernel pairs weights and gradients by place in memory, which is wrong where one of
    the two is channels_last and the other is not, and says nothing. On CUDA it refuses such pairs: see `match_layouts`.

    Each group of the optimiser holds its own `base_lr`; `set_learning_rate` multiplies it. CRIS's code means to
    give the backbone a tenth of the rate but sets `initial_lr` alone, so that its first epoch runs at the full one;
    here the tenth holds from the first step, as was meant.

    Args:
        config: The recipe's `[train]` section.
        groups: `backbone` and `rest`, as a model's `parameter_groups` gives them.
        device: Kind of the device that the parameters are on.
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
    """Give gradients the strides of their weights, as the fused kernel wants them.

    autograd lets the gradient of a 1 x 1 convolution differ, whose strides say the same in two ways.
    """
    for group in optimizer.param_groups:
        for weight in group["params"]:
            if weight.grad is not None and weight.grad.stride() != weight.stride():
                weight.grad = _laid_out_as(weight, weight.grad)


def load_optimizer_state(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Go on with the state of an optimiser, which another kind of device may have left.

    torch takes over the groups' settings with it, `fused` among them, and the strides that the state had.

    Args:
        optimizer: Of the same parameters in the same groups.
        state: Its `state_dict`, on the CPU.
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
    """Values in new memory with the weight's strides."""
    return torch.empty_like(weight, requires_grad=False).copy_(values)


def _by_decay(named: NamedParameters, weight_decay: float) -> Iterable[tuple[float, list[nn.Parameter]]]:
    if weight_decay == 0:
        yield 0.0, [parameter for _, parameter in named]
        return
    # Norms and biases are vectors; to pull them to zero regularises nothing.
    yield weight_decay, [parameter for _, parameter in named if parameter.ndim > 1]
    yield 0.0, [parameter for _, parameter in named if parameter.ndim <= 1]


def learning_rate_factor(config: TrainConfig, step: int, *, steps_per_epoch: int) -> float:
    """The factor on every group's base rate.

    `max_steps` has no part in it: a run that stops early has followed the same curve.

    Args:
        config: The recipe's `[train]` section.
        step: The step about to be taken, from 0.
        steps_per_epoch: Optimiser steps of an epoch.
    """
    warmup = min(1.0, (step + 1) / config.warmup_steps) if config.warmup_steps else 1.0
    if config.schedule == "multistep":
        return warmup * config.gamma ** sum(step // steps_per_epoch >= epoch for epoch in config.milestones)
    total = config.epochs * steps_per_epoch
    progress = max(0, step - config.warmup_steps) / max(1, total - config.warmup_steps)
    return warmup * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def set_learning_rate(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Set every group's rate to its base rate times `factor`."""
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * factor
