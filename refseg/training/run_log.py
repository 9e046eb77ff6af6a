"""Writes the log of a run to `metrics.jsonl`, to Accelerate's trackers, and to a progress bar or lines of text.

`MetricsWindow` sums the values of the steps between two lines of the log.
"""

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from tqdm import tqdm

from refseg.config import Recipe
from refseg.training.run_files import MetricsLog

logger = logging.getLogger(__name__)


class MetricsWindow:
    """Sums the values of all steps since the last line of the log.

    Values stay on the device until they are needed, because a copy to the CPU waits for the device.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        self._accelerator = accelerator
        self._losses: list[Tensor] = []
        self._nums: list[Tensor] = []
        self._norms: list[Tensor] = []
        self._loss_sum = 0.0
        self._num_steps = 0
        self.first_loss: float | None = None
        """Mean loss of the run's first window; None before its end."""
        self._started = time.perf_counter()
        self._reset_rates()

    def add(self, loss: Tensor, num_samples: Tensor) -> None:
        """Add this rank's share of a step's loss, and the step's number of samples over all ranks."""
        self._losses.append(loss)
        self._nums.append(num_samples)

    def add_gradient_norm(self, norm: Tensor) -> None:
        """Add the norm of a step's gradient. It is the same on all ranks."""
        self._norms.append(norm)

    def flush(self) -> tuple[float, float]:
        """Sum the values over steps and ranks. All ranks must call this together.

        Returns:
            The sum of the losses and the sum of the gradient norms that were added since the last call.
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
        """Mean loss of the flushed steps of the window. At least one step must have been flushed."""
        return self._loss_sum / self._num_steps

    def summarise(self) -> dict[str, float]:
        """Return the means of the window and start a new one.

        The rates exclude the time of validation and saving. They also exclude steps before a resume.
        """
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
        self._reset_rates()
        return line

    def to_dict(self) -> dict[str, float]:
        """Return the sums for a checkpoint."""
        first = {} if self.first_loss is None else {"first_loss": self.first_loss}
        return {"loss_sum": self._loss_sum, "num_steps": self._num_steps, **first}

    def load(self, fields: dict[str, float]) -> None:
        """Restore the sums that `to_dict` returned."""
        self._loss_sum, self._num_steps = fields["loss_sum"], int(fields["num_steps"])
        self.first_loss = fields.get("first_loss")

    def restart_clock(self) -> None:
        """Exclude the time since the last flush from the rates."""
        self._started = time.perf_counter()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Measure the time that is spent waiting for data."""
        started = time.perf_counter()
        yield
        self._waited += time.perf_counter() - started

    def _reset_rates(self) -> None:
        self._seconds = self._waited = 0.0
        self._num_samples = self._timed_steps = 0
        self._started = time.perf_counter()


class RunLog:
    """The log of the main process. In other processes it writes nothing."""

    def __init__(self, accelerator: Accelerator, metrics: MetricsLog | None, bar: "tqdm[Any]") -> None:
        self._accelerator = accelerator
        self._metrics = metrics
        self._bar = bar

    def advance(self) -> None:
        """Advance the progress bar by one step."""
        self._bar.update()

    def training(self, step: int, line: dict[str, float]) -> None:
        """Write loss, learning rates, samples per second, and the share of time spent waiting for data."""
        self._write("train", step, line)
        wait = 100 * line["data_wait_share"]
        if not self._bar.disable:
            self._bar.set_postfix_str(
                f"loss {line['loss']:.4f}, {line['samples_per_second']:.1f} samples/s, data wait {wait:.0f} %"
            )
        elif self._metrics is not None:
            left = timedelta(seconds=round((self._bar.total - step) * line["seconds_per_step"]))
            logger.info(
                "step %d/%d  epoch %.2f  loss %.4f  lr %.2e  %.1f samples/s  data wait %.0f %%  %s left",
                step, self._bar.total, line["epoch"], line["loss"], line["lr"], line["samples_per_second"], wait, left,
            )  # fmt: skip

    def validation(self, step: int, line: dict[str, Any], *, improved: bool) -> None:
        """Write the scores of a validation."""
        self._write("val", step, line)
        if self._metrics is not None:
            logger.info(
                "step %d  %s: oIoU %.4f  mIoU %.4f  (%d sentences, %.0f s)%s",
                step, line["split"], line["oIoU"], line["mIoU"], line["num_sentences"], line["seconds"],
                "  best so far" if improved else "",
            )  # fmt: skip

    def sync(self) -> None:
        """Flush `metrics.jsonl` to the disk. This is called before a checkpoint is written."""
        if self._metrics is not None:
            self._metrics.sync()

    def _write(self, kind: str, step: int, line: dict[str, Any]) -> None:
        if self._metrics is not None:
            self._metrics.write(kind, step, line)
        numbers = {f"{kind}/{name}": value for name, value in line.items() if isinstance(value, int | float)}
        self._accelerator.log(numbers, step=step)


@contextmanager
def open_run_log(
    accelerator: Accelerator, out: Path, recipe: Recipe, *, step: int, total_steps: int
) -> Iterator[RunLog]:
    """Open `metrics.jsonl`, the trackers and the progress bar, and close them at the end.

    Args:
        accelerator: Accelerator of the run. It contains the trackers.
        out: The run's folder.
        recipe: Recipe of the run. The settings are sent to the trackers.
        step: Number of completed steps.
        total_steps: Number of steps at the end of the run.
    """
    is_main = accelerator.is_main_process
    metrics = MetricsLog(out, step=step) if is_main else None
    if recipe.train.trackers:
        accelerator.init_trackers("refseg", config=_flat(recipe))
    on_terminal = is_main and sys.stderr.isatty()
    with tqdm(total=total_steps, initial=step, unit="step", disable=not on_terminal) as bar:
        try:
            yield RunLog(accelerator, metrics, bar)
        finally:
            if metrics is not None:
                metrics.close()
            for tracker in accelerator.trackers:
                tracker.finish()


def _flat(recipe: Recipe) -> dict[str, Any]:
    """Return the settings by key path, as numbers and strings. Trackers accept no other types."""
    return {
        f"{section}.{key}": value if isinstance(value, bool | int | float | str) else str(value)
        for section, settings in recipe.to_dict().items()
        for key, value in settings.items()
    }
