"""How far a long task is: a bar on a terminal, and elsewhere a line of the log every ten seconds."""

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
"""Called with the numbers done and in all."""


@contextmanager
def report_progress(
    task: str, unit: str, *, shown: bool = True, clock: Callable[[], float] = time.monotonic
) -> Iterator[Progress]:
    """Report on standard error how far a task is. A task of less than ten seconds logs no line.

    Args:
        task: What is done, such as `evaluate val`.
        unit: What is counted, in the plural, such as `images`.
        shown: False in a process that leaves the reports to another one.
        clock: Seconds from any start.
    """
    if not shown:
        yield _say_nothing
    elif sys.stderr.isatty():
        with tqdm(desc=task, unit=f" {unit}", leave=False) as bar:

            def update(done: int, in_all: int) -> None:
                bar.total = in_all
                bar.update(done - bar.n)

            yield update
    else:
        yield _Lines(task, unit, clock).update


def _say_nothing(_done: int, _in_all: int) -> None:
    pass


class _Lines:
    """The lines of one task; the time left follows from the speed since the first report."""

    def __init__(self, task: str, unit: str, clock: Callable[[], float]) -> None:
        self._task, self._unit, self._clock = task, unit, clock
        self._last_line = clock()
        self._first: tuple[int, float] | None = None
        """The number done and the time at the first report: an interrupted task does not begin with 0."""

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
