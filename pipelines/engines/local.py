"""Runs a function over tasks in this process, or in several processes on this machine."""

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
"""Number of tasks submitted per worker, one running and one waiting. Memory does not grow with the number of tasks."""


def usable_cores() -> int:
    """Return the number of cores that this process may use. Under a scheduler, these are the cores of the job."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run_local(
    function: Callable[[T], R], tasks: Sequence[T], workers: int, *, name: Callable[[T], str] | None = None
) -> Iterator[R]:
    """Run a function over tasks on this machine.

    If the caller is interrupted or closes the iterator, the workers are ended at once, without finishing their tasks.

    Args:
        function: A function at the top level of a module, so that other processes can import it.
        tasks: Tasks in any order. They consist of plain values.
        workers: Number of processes. With 1, the calling process runs the tasks.
        name: Returns the name of a task for error messages.

    Yields:
        The results of the function, in the order in which tasks finish.

    Raises:
        WorkerError: If a worker died. An error of `function` is raised unchanged, after running tasks have finished.
    """
    workers = min(workers, len(tasks))
    if workers <= 1:
        for task in tasks:
            with _without_garbage_collection():
                result = function(task)
            yield result
        return
    # Workers are spawned, because a forked copy of a process with threads, such as Arrow's, can hang.
    context = multiprocessing.get_context("spawn")
    resource_tracker.ensure_running()  # started later, it would unblock the signals that `_signals_blocked` blocks
    # Nothing is sent through this pipe. Workers wait for its end, which comes when this process closes it or dies.
    watched, held_open = context.Pipe(duplex=False)
    pool = ProcessPoolExecutor(workers, context, initializer=_begin_worker, initargs=(watched,))
    at_work: dict[Future[R], T] = {}
    try:
        waiting = list(reversed(tasks))
        while waiting or at_work:
            while waiting and len(at_work) < _TASKS_IN_FLIGHT * workers:
                task = waiting.pop()
                with _signals_blocked():
                    at_work[pool.submit(function, task)] = task
            for future in wait(at_work, return_when=FIRST_COMPLETED).done:
                yield future.result()
                del at_work[future]
    except BrokenExecutor as error:
        names = f" at one of {', '.join(map(name, at_work.values()))}" if name and at_work else ""
        raise WorkerError(
            f"a worker process died{names}, because it was killed or memory ran out; "
            "run the same command to resume, with fewer --workers if memory ran out"
        ) from error
    except (GeneratorExit, KeyboardInterrupt, SystemExit):
        held_open.close()
        raise
    finally:
        pool.shutdown(cancel_futures=True)
        held_open.close()
        watched.close()


@contextmanager
def _without_garbage_collection() -> Iterator[None]:
    """Switch off the search for reference cycles.

    Records have no cycles, and the search would need a tenth of a build's time.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


@contextmanager
def _signals_blocked() -> Iterator[None]:
    """Block Ctrl-C and SIGTERM while workers start.

    Workers inherit the blocked signals, so that none is ended during imports.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _begin_worker(watched: Connection) -> None:
    """Set up a worker that ignores Ctrl-C, which the parent handles, and that ends when the parent ends.

    Otherwise the worker of a killed parent would wait indefinitely.

    Args:
        watched: A pipe whose other end the parent holds open. Nothing is sent through it. It closes when the parent
            closes it or ends.
    """
    gc.disable()  # for the same reason as in `_without_garbage_collection`
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    threading.Thread(target=_end_when_closed, args=(watched,), daemon=True).start()


def _end_when_closed(watched: Connection) -> None:
    wait_for_end([watched])
    os._exit(1)
