"""What is summed up between two lines of the log: losses over steps and ranks, samples, seconds."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from accelerate import Accelerator
from torch import Tensor


class MetricsWindow:
    """Sums since the last line of the log. What is summed on the device is brought over only when it is needed."""

    def __init__(self, accelerator: Accelerator) -> None:
        self._accelerator = accelerator
        self._losses: list[Tensor] = []
        self._nums: list[Tensor] = []
        self._norms: list[Tensor] = []
        self._loss_sum = 0.0
        self._num_steps = 0
        self.first_loss: float | None = None
        """Mean loss of the run's first window, None before its end."""
        self._started = time.perf_counter()
        self._forget_rates()

    def add(self, loss: Tensor, num_samples: Tensor) -> None:
        """Take a step's share of the loss and its number of samples over all ranks."""
        self._losses.append(loss)
        self._nums.append(num_samples)

    def add_gradient_norm(self, norm: Tensor) -> None:
        """Take a step's norm of the gradient, which is the same on all ranks."""
        self._norms.append(norm)

    def flush(self) -> tuple[float, float]:
        """Sum over steps and ranks; called by all ranks together.

        Returns:
            The losses that came in since the last time, and the norms.
        """
        if not self._losses:
            return 0.0, 0.0
        local = torch.stack(self._losses).double().sum()
        loss_sum = float(self._accelerator.reduce(local, reduction="sum")) / self._accelerator.num_processes
        self._loss_sum += loss_sum
        self._num_steps += len(self._losses)
        self._timed_steps += len(self._losses)
        self._num_samples += int(torch.stack(self._nums).sum())
        norm_sum = float(torch.stack(self._norms).double().sum()) if self._norms else 0.0
        self._losses, self._nums, self._norms = [], [], []
        self._seconds += time.perf_counter() - self._started
        self._started = time.perf_counter()
        return loss_sum, norm_sum

    @property
    def mean_loss(self) -> float:
        """Of the window's steps that have been flushed; at least one has."""
        return self._loss_sum / self._num_steps

    def summarise(self) -> dict[str, float]:
        """Means of the window, which then starts again; the rates leave out validation, saving and earlier runs."""
        seconds = max(self._seconds, 1e-9)
        if self.first_loss is None:
            self.first_loss = self.mean_loss
        line = {
            "loss": self.mean_loss,
            "samples_per_second": round(self._num_samples / seconds, 2),
            "seconds_per_step": round(seconds / max(1, self._timed_steps), 4),
            "data_wait_share": round(min(1.0, self._waited / seconds), 4),
        }
        self._loss_sum, self._num_steps = 0.0, 0
        self._forget_rates()
        return line

    def to_dict(self) -> dict[str, float]:
        """For a checkpoint."""
        first = {} if self.first_loss is None else {"first_loss": self.first_loss}
        return {"loss_sum": self._loss_sum, "num_steps": self._num_steps, **first}

    def load(self, fields: dict[str, float]) -> None:
        """Undo `to_dict`."""
        self._loss_sum, self._num_steps = fields["loss_sum"], int(fields["num_steps"])
        self.first_loss = fields.get("first_loss")

    def forget_time(self) -> None:
        """Leave the time since the last flush out."""
        self._started = time.perf_counter()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Time the wait for data."""
        started = time.perf_counter()
        yield
        self._waited += time.perf_counter() - started

    def _forget_rates(self) -> None:
        self._seconds = self._waited = 0.0
        self._num_samples = self._timed_steps = 0
        self._started = time.perf_counter()
