"""Ends a run before its last step if it diverged, received SIGTERM, or lost another process."""

import math
import re
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor

from refseg.errors import RefsegError, TrainingError
from refseg.training.checkpoint import list_checkpoints

_RANK_DEATH_SIGNS = re.compile(r"gloo|nccl|peer|socket|broken pipe|store", re.IGNORECASE)
"""Words in the errors of torch's collectives. Gloo raises plain RuntimeErrors, NCCL a subclass of it, so the type alone
does not tell them from other errors."""


def refuse_non_finite(loss_sum: float, norm_sum: float, *, out: Path, step: int) -> None:
    """End the run if the sums over a window of steps are not finite.

    Args:
        loss_sum: Sum of the losses.
        norm_sum: Sum of the gradient norms.
        out: The run's folder. The error message names the last checkpoint in it.
        step: Number of completed steps.

    Raises:
        TrainingError: If a sum is infinite or NaN.
    """
    if not math.isfinite(loss_sum):
        raise _divergence(f"the loss became {loss_sum}", out, step)
    if not math.isfinite(norm_sum):
        raise _divergence(f"the gradient's norm became {norm_sum}", out, step)


def refuse_divergence(loss: float, first_loss: float | None, *, factor: float, out: Path, step: int) -> None:
    """End the run if the mean loss of a window is many times the mean loss of the run's first window.

    A first loss below 1 counts as 1, which is about the loss of an untrained model. Fine-tuning starts with a low loss,
    so that a single difficult batch may have a loss many times as high.

    Args:
        loss: Mean loss of the steps since the last line of the log.
        first_loss: Mean loss of the run's first window. None if the first window has not ended.
        factor: Factor above which the loss counts as diverged. 0 disables the check.
        out: The run's folder. The error message names the last checkpoint in it.
        step: Number of completed steps.

    Raises:
        TrainingError: If the loss has diverged.
    """
    if factor and first_loss is not None and loss > factor * max(first_loss, 1.0):
        raise _divergence(
            f"the loss rose from {first_loss:.4g} at the start to {loss:.4g} (train.divergence_factor {factor:g})",
            out,
            step,
        )


def refuse_non_finite_weights(weights: Mapping[str, Tensor], *, out: Path, step: int) -> None:
    """End the run before it writes a checkpoint with weights that are not finite.

    Args:
        weights: Weights of the checkpoint, by name.
        out: The run's folder. The error message names the last checkpoint in it.
        step: Number of completed steps.

    Raises:
        TrainingError: If a weight is infinite or NaN.
    """
    for name, tensor in weights.items():
        if not torch.isfinite(tensor).all():
            raise _divergence(f"weights became infinite or NaN ({name})", out, step)


class Preemption:
    """Records whether SIGTERM has asked this run to stop."""

    def __init__(self) -> None:
        self._is_requested = False

    @contextmanager
    def catch_sigterm(self) -> Iterator[None]:
        """Record SIGTERM as a request to stop while the context is active. Restore the earlier handler afterwards."""
        before = signal.signal(signal.SIGTERM, lambda *_: self._record_request()), signal.set_wakeup_fd(-1)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, before[0])
            signal.set_wakeup_fd(before[1])

    def is_requested(self, accelerator: Accelerator) -> bool:
        """Return True if any process received SIGTERM.

        All processes must call this together, so that all stop at the same step.
        """
        requested = torch.tensor(float(self._is_requested), device=accelerator.device)
        return bool(accelerator.reduce(requested, reduction="sum") > 0)

    def _record_request(self) -> None:
        self._is_requested = True


@contextmanager
def report_rank_death(num_processes: int) -> Iterator[None]:
    """Convert the errors that the death of another process causes in collectives into one `TrainingError`.

    When a process ends, its connections are closed at once. The other processes call a collective at the latest at the
    end of their step, and this collective then fails.

    Args:
        num_processes: Number of processes of the run. If it is 1, no error is attributed to another process.

    Raises:
        TrainingError: If another process has ended.
    """
    try:
        yield
    except RefsegError:
        raise
    except RuntimeError as error:
        text = str(error).strip()
        if num_processes == 1 or not _RANK_DEATH_SIGNS.search(text):
            raise
        raise TrainingError(
            f"another process of the run ended or cannot be reached ({text.splitlines()[0][:300]}); look for its own "
            "message, or the system's message about memory; the same command resumes from the newest checkpoint"
        ) from error


def _divergence(what: str, out: Path, step: int) -> TrainingError:
    folders = list_checkpoints(out)
    last = "there is no checkpoint yet"
    remedy = "start again in another --out, with a smaller train.lr or with train.clip_norm"
    if folders:
        last = f"the last checkpoint is {folders[-1]}"
        remedy += ", from its weights by train.init_from or, if they had already diverged, from the beginning"
    return TrainingError(f"{what} at or shortly before step {step}; {last}; {remedy}")
