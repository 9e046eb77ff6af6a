"""The log of a run: sums between two of its lines, `metrics.jsonl`, Accelerate's trackers, a progress bar or text."""

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


class RunLog:
    """Of the main process; those of the others stay silent."""

    def __init__(self, accelerator: Accelerator, metrics: MetricsLog | None, bar: "tqdm[Any]") -> None:
        self._accelerator = accelerator
        self._metrics = metrics
        self._bar = bar

    def advance(self) -> None:
        """A step is done."""
        self._bar.update()

    def training(self, step: int, line: dict[str, float]) -> None:
        """Write the means of a window: loss, rates, samples per second, share of the time spent waiting for data."""
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
        """Make what was written outlive a power cut; called before a checkpoint that counts on it."""
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
    """Open all of them, and close them at the end.

    Args:
        accelerator: Knows the trackers.
        out: The run's folder.
        recipe: Its settings go to the trackers too.
        step: Steps done.
        total_steps: Where the run ends.
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
    """Settings by key path; trackers take numbers and strings alone."""
    return {
        f"{section}.{key}": value if isinstance(value, bool | int | float | str) else str(value)
        for section, settings in recipe.to_dict().items()
        for key, value in settings.items()
    }
