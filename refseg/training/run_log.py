"""What a run says while it goes on: `metrics.jsonl`, Accelerate's trackers, a progress bar or lines of the log."""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from tqdm import tqdm

from refseg.config import Recipe
from refseg.training.run_files import MetricsLog

logger = logging.getLogger(__name__)


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
