"""Why a run ends before its last step: it diverged, it was asked to leave, or another of its processes is gone."""

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
"""What the errors of torch's collectives have in common: gloo's are plain RuntimeErrors, NCCL's a kind of them."""


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


class Preemption:
    """Whether this run has been asked to leave."""

    def __init__(self) -> None:
        self._asked = False

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Take SIGTERM as a request to leave as long as this is entered; then the handler from before is back."""
        before = signal.signal(signal.SIGTERM, lambda *_: self._note_request()), signal.set_wakeup_fd(-1)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, before[0])
            signal.set_wakeup_fd(before[1])

    def is_asked(self, accelerator: Accelerator) -> bool:
        """True if any process was asked; called by all of them together, so that all leave after the same step."""
        asked = torch.tensor(float(self._asked), device=accelerator.device)
        return bool(accelerator.reduce(asked, reduction="sum") > 0)

    def _note_request(self) -> None:
        self._asked = True


@contextmanager
def report_rank_death(num_processes: int) -> Iterator[None]:
    """Raise one error for what the death of another process makes of the collective that this one is in.

    The connections of a process that ends are cut at once, whatever ended it, and all others are in a collective with
    it at the latest at the end of their step.

    Args:
        num_processes: Processes of the run; with 1 no error is taken for the death of another process.

    Raises:
        TrainingError: If another process is gone.
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
            "message or the system's (memory); the same command goes on from the newest checkpoint"
        ) from error


def _divergence(what: str, out: Path, step: int) -> TrainingError:
    folders = list_checkpoints(out)
    last = "there is no checkpoint yet"
    remedy = "begin again in another --out, with a smaller train.lr or with train.clip_norm"
    if folders:
        last = f"the last good checkpoint is {folders[-1]}"
        remedy += ", from its weights by train.init_from or, if they had gone astray by then, from the start"
    return TrainingError(f"{what} at or shortly before step {step}; {last}; {remedy}")
