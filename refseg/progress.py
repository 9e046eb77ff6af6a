"""Reports the progress of a long task: by a bar on a terminal, and elsewhere by a line of the log every ten seconds."""

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta

from tqdm import tqdm

logger = logging.getLogger(__name__)

SECONDS_BETWEEN_LINES = 10.0

Progress = Callable[[int, int], None]
"""A function that is called with the number of finished units and the total number."""


@contextmanager
def report_progress(
    task: str, unit: str, *, shown: bool = True, clock: Callable[[], float] = time.monotonic
) -> Iterator[Progress]:
    """Report the progress of a task on standard error; a task of less than ten seconds logs no line.

    Args:
        task: Name of the task, such as `evaluate val`.
        unit: Plural of the counted units, such as `images`.
        shown: False in a process whose progress another process reports.
        clock: Function that returns a time in seconds.
    """
    if not shown:
        yield _ignore
    elif sys.stderr.isatty():
        with tqdm(desc=task, unit=f" {unit}", unit_scale=unit == "bytes", leave=False) as bar:

            def update(done: int, in_all: int) -> None:
                bar.total = in_all
                bar.update(done - bar.n)

            yield update
    else:
        yield _Lines(task, unit, clock).update


def _ignore(_done: int, _in_all: int) -> None:
    pass


class _Lines:
    """Logs the lines of one task; the remaining time is estimated from the speed since the first report."""

    def __init__(self, task: str, unit: str, clock: Callable[[], float]) -> None:
        self._task, self._unit, self._clock = task, unit, clock
        self._last_line = clock()
        self._first: tuple[int, float] | None = None
        """Number of finished units and time at the first report; a resumed task does not start with 0 units."""

    def update(self, done: int, in_all: int) -> None:
        now = self._clock()
        if self._first is None:
            self._first = done, now
        if now - self._last_line < SECONDS_BETWEEN_LINES:
            return
        self._last_line = now
        first_done, first_time = self._first
        left = ""
        if done > first_done:
            seconds = (in_all - done) * (now - first_time) / (done - first_done)
            left = f", {timedelta(seconds=round(seconds))} left"
        logger.info("%s: %s of %s %s%s", self._task, f"{done:,}", f"{in_all:,}", self._unit, left)
