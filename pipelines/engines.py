"""Runs shard tasks: in this process or in several. Any order and any number of workers give the same bytes."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from multiprocessing import resource_tracker
from multiprocessing.connection import wait as wait_for_end

from pipelines.plan import ShardTask
from pipelines.shards import Receipt, build_shard

_TASKS_IN_FLIGHT = 2
"""Per worker: one at work, one waiting. Memory grows with shards at work, not with the dataset."""


def run_local(tasks: Sequence[ShardTask], workers: int) -> Iterator[Receipt]:
    """Build shards on this machine.

    Args:
        tasks: In any order.
        workers: Processes; with 1, the calling process does the work.

    Yields:
        Receipts as shards are finished.

    Raises:
        BrokenExecutor: If a worker died. What `build_shard` raises comes through, once shards at work are done.
    """
    if workers == 1:
        yield from map(build_shard, tasks)
        return
    # Spawned, not forked: a fork of a process with threads (Arrow has some) can hang.
    resource_tracker.ensure_running()  # its start would let interrupts through again
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), initializer=_begin_worker)
    try:
        waiting = list(reversed(tasks))
        at_work: set[Future[Receipt]] = set()
        while waiting or at_work:
            while waiting and len(at_work) < _TASKS_IN_FLIGHT * workers:
                with _interrupts_held():
                    at_work.add(pool.submit(build_shard, waiting.pop()))
            done, at_work = wait(at_work, return_when=FIRST_COMPLETED)
            for future in done:
                yield future.result()
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
