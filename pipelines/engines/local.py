"""Runs a function over tasks in this process, or in several of this machine."""

import gc
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.connection import wait as wait_for_end
from typing import TypeVar

from refseg.errors import WorkerError

T = TypeVar("T")
R = TypeVar("R")
_TASKS_IN_FLIGHT = 2
"""Per worker: one at work, one waiting. Memory grows with shards at work, not with the dataset."""


def usable_cores() -> int:
    """Cores that this process may run on: under a scheduler, those of the job and not of the machine."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run_local(
    function: Callable[[T], R], tasks: Sequence[T], workers: int, *, name: Callable[[T], str] | None = None
) -> Iterator[R]:
    """Run a function over tasks on this machine.

    A caller that is interrupted or wants no more results ends the workers at once, in the middle of their tasks.

    Args:
        function: Of a module, so that other processes find it.
        tasks: In any order; plain values.
        workers: Processes; with 1, the calling process does the work.
        name: What errors call a task.

    Yields:
        What the function returns, as tasks are finished.

    Raises:
        WorkerError: If a worker died. What `function` raises comes through, once tasks at work are done.
    """
    workers = min(workers, len(tasks))
    if workers <= 1:
        for task in tasks:
            with _collector_off():
                result = function(task)
            yield result
        return
    # Spawned, not forked: a fork of a process with threads (Arrow has some) can hang.
    context = multiprocessing.get_context("spawn")
    resource_tracker.ensure_running()  # its start would let interrupts through again
    heard, lifeline = context.Pipe(duplex=False)
    pool = ProcessPoolExecutor(workers, context, initializer=_begin_worker, initargs=(heard,))
    at_work: dict[Future[R], T] = {}
    try:
        waiting = list(reversed(tasks))
        while waiting or at_work:
            while waiting and len(at_work) < _TASKS_IN_FLIGHT * workers:
                task = waiting.pop()
                with _signals_held():
                    at_work[pool.submit(function, task)] = task
            for future in wait(at_work, return_when=FIRST_COMPLETED).done:
                yield future.result()
                del at_work[future]
    except BrokenExecutor as error:
        names = f" at one of {', '.join(map(name, at_work.values()))}" if name and at_work else ""
        raise WorkerError(
            f"a worker process died{names} (killed, or out of memory?); "
            "run the same command to go on, with fewer --workers if memory is short"
        ) from error
    except (GeneratorExit, KeyboardInterrupt, SystemExit):
        lifeline.close()
        raise
    finally:
        pool.shutdown(cancel_futures=True)
        lifeline.close()
        heard.close()


@contextmanager
def _collector_off() -> Iterator[None]:
    """Look for no reference cycles: records have none, and going through them is a tenth of a build's time."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


@contextmanager
def _signals_held() -> Iterator[None]:
    """Hold Ctrl-C and SIGTERM back while workers start: they inherit that, and none dies amid its imports."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _begin_worker(heard: Connection) -> None:
    """Leave Ctrl-C to the parent, and end with it: a worker of a killed pool would wait for ever.

    Args:
        heard: A pipe whose other end the parent holds. Nothing is ever sent; it closes when the parent ends or says so.
    """
    gc.disable()  # see `_collector_off`
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    threading.Thread(target=_end_when_closed, args=(heard,), daemon=True).start()


def _end_when_closed(heard: Connection) -> None:
    wait_for_end([heard])
    os._exit(1)
