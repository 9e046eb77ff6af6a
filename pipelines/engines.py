"""Runs a function over tasks, in this process or in several: any order, any number of workers, the same bytes."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from multiprocessing import resource_tracker
from multiprocessing.connection import wait as wait_for_end
from typing import TypeVar

from refseg.errors import BuildError

T = TypeVar("T")
R = TypeVar("R")
_TASKS_IN_FLIGHT = 2
"""Per worker: one at work, one waiting. Memory grows with shards at work, not with the dataset."""


def run_local(function: Callable[[T], R], tasks: Sequence[T], workers: int) -> Iterator[R]:
    """Run a function over tasks on this machine.

    Args:
        function: Of a module, so that other processes find it.
        tasks: In any order; plain values.
        workers: Processes; with 1, the calling process does the work.

    Yields:
        What the function returns, as tasks are finished.

    Raises:
        BuildError: If a worker died. What `function` raises comes through, once tasks at work are done.
    """
    workers = min(workers, len(tasks))
    if workers <= 1:
        yield from map(function, tasks)
        return
    # Spawned, not forked: a fork of a process with threads (Arrow has some) can hang.
    resource_tracker.ensure_running()  # its start would let interrupts through again
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), initializer=_begin_worker)
    try:
        waiting = list(reversed(tasks))
        at_work: set[Future[R]] = set()
        while waiting or at_work:
            while waiting and len(at_work) < _TASKS_IN_FLIGHT * workers:
                with _interrupts_held():
                    at_work.add(pool.submit(function, waiting.pop()))
            done, at_work = wait(at_work, return_when=FIRST_COMPLETED)
            for future in done:
                yield future.result()
    except BrokenExecutor as error:
        raise BuildError(
            "a worker process died (killed, or out of memory?); "
            "run the same command to go on, with fewer --workers if memory is short"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """Hold Ctrl-C back while workers start: they inherit that, and none dies with a traceback during its imports."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _begin_worker() -> None:
    """Leave Ctrl-C to the parent, and end when the parent does: a worker of a killed pool would wait for ever."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait_for_end([parent.sentinel])
        os._exit(1)
