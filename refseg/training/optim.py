"""Optimiser groups, and the learning rate as a pure function of the step."""

import math
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import nn

from refseg.config import TrainConfig

NamedParameters = Sequence[tuple[str, nn.Parameter]]


def build_optimizer(config: TrainConfig, groups: Mapping[str, NamedParameters]) -> torch.optim.Optimizer:
    """Build Adam or AdamW over a model's parameter groups.

    Each group of the optimiser holds its own `base_lr`; `set_learning_rate` multiplies it. CRIS's code means to
    give the backbone a tenth of the rate but sets `initial_lr` alone, so that its first epoch runs at the full one;
    here the tenth holds from the first step, as was meant.

    Args:
        config: The recipe's `[train]` section.
        groups: `backbone` and `rest`, as a model's `parameter_groups` gives them.
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
    # Not fused: on a CPU that kernel pairs weights and gradients by place in memory, which is wrong where one of the
    # two is channels_last and the other is not, and says nothing.
    return kind(settings)


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
