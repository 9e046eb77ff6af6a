"""The end of a run whose loss, gradient or weights stopped being numbers, or whose loss grew beyond measure."""

import math
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from refseg.errors import TrainingError
from refseg.training.checkpoint import list_checkpoints


def refuse_non_finite(loss_sum: float, norm_sum: float, *, out: Path, step: int) -> None:
    """Look at what a window of steps summed up.

    Args:
        loss_sum: Of the losses.
        norm_sum: Of the gradient's norms.
        out: The run's folder, whose last checkpoint is named.
        step: Steps done.

    Raises:
        TrainingError: If one of them is no number.
    """
    if not math.isfinite(loss_sum):
        raise _divergence(f"the loss became {loss_sum}", out, step)
    if not math.isfinite(norm_sum):
        raise _divergence(f"the gradient's norm became {norm_sum}", out, step)


def refuse_divergence(loss: float, first_loss: float | None, *, factor: float, out: Path, step: int) -> None:
    """Compare a window's mean loss with that of the run's first.

    A first loss below 1 counts as 1, about what a model that knows nothing has: fine-tuning begins with losses so low
    that one odd batch is many times as much.

    Args:
        loss: Mean of the steps since the last line of the log.
        first_loss: Mean of the run's first window; None: that has not ended.
        factor: How many times as much is a divergence; 0: nothing is.
        out: As of `refuse_non_finite`.
        step: As of `refuse_non_finite`.

    Raises:
        TrainingError: If the loss is more than that.
    """
    if factor and first_loss is not None and loss > factor * max(first_loss, 1.0):
        raise _divergence(
            f"the loss became {loss:.4g} from {first_loss:.4g} in the beginning (train.divergence_factor {factor:g})",
            out,
            step,
        )


def refuse_non_finite_weights(weights: Mapping[str, Tensor], *, out: Path, step: int) -> None:
    """Look at the weights that a checkpoint is to hold; the rest as of `refuse_non_finite`.

    Raises:
        TrainingError: If one of them is no number.
    """
    for name, tensor in weights.items():
        if not torch.isfinite(tensor).all():
            raise _divergence(f"weights stopped being numbers ({name})", out, step)


def _divergence(what: str, out: Path, step: int) -> TrainingError:
    folders = list_checkpoints(out)
    last = "there is no checkpoint yet"
    remedy = "begin again in another --out, with a smaller train.lr or with train.clip_norm"
    if folders:
        last = f"the last good checkpoint is {folders[-1]}"
        remedy += ", from its weights by train.init_from or, if they had gone astray by then, from the start"
    return TrainingError(f"{what} at or shortly before step {step}; {last}; {remedy}")
