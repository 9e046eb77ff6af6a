"""Runs a function over tasks on a Ray cluster, or on a Ray of its own on this machine."""

import logging
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any, TypeVar

from pipelines.engines.local import usable_cores
from refseg.errors import UsageError, WorkerError

logger = logging.getLogger(__name__)

T = TypeVar("T")
R = TypeVar("R")
MAX_RETRIES = 3
"""So often a task is run again whose worker or machine died. What the function itself raises is not tried again."""
_TASKS_IN_FLIGHT = 2
"""Per core of the cluster: one at work, one waiting, which is also what makes a cluster grow that can."""
_OBJECT_STORE_BYTES = 100 << 20
"""Of a Ray of our own: tasks and results are small, images never pass through it."""
_SECONDS_TO_CONNECT = 10.0


def look_for_ray() -> None:
    """See whether a build on Ray can begin: before the plan, which may take minutes.

    Raises:
        UsageError: If Ray is not installed, or nobody listens at `RAY_ADDRESS`.
    """
    if find_spec("ray") is None:
        raise UsageError("--engine ray: Ray is not installed; pip install 'refseg[ray]'")
    address = os.environ.get("RAY_ADDRESS", "")
    host, _, port = address.rpartition(":")
    if port.isdigit() and "://" not in address:  # Ray itself tries for minutes
        try:
            socket.create_connection((host, int(port)), _SECONDS_TO_CONNECT).close()
        except OSError as error:
            raise _unreachable(address, error) from error


def run_ray(
    function: Callable[[T], R], tasks: Sequence[T], workers: int | None, *, name: Callable[[T], str]
) -> Iterator[R]:
    """Run a function over tasks on the cluster that `RAY_ADDRESS` names; without it, on this machine.

    A Ray that this call started ends with it; a cluster is only left. In a program that has called `ray.init`, that
    connection is used and stays.

    A caller that wants no more results waits for the tasks in flight. After an interrupt nobody waits: Ray ends them as
    this process leaves.

    Args:
        function: Of a module that every machine of the cluster has, in the same release.
        tasks: In any order; plain values.
        workers: At most so many tasks in flight; None: two per core of the cluster.
        name: What errors and Ray's dashboard call a task.

    Yields:
        What the function returns, as tasks are finished.

    Raises:
        UsageError: If Ray is not installed or there is no cluster at `RAY_ADDRESS`.
        WorkerError: If a task's worker died each time, or Ray cannot run it; the tasks are named. What `function`
            raises comes through as it is. Both once the tasks in flight have ended.
    """
    look_for_ray()
    import ray

    with _connected(ray, workers):
        yield from _run(ray, function, tasks, workers, name)


def _run(
    ray: Any, function: Callable[[T], R], tasks: Sequence[T], workers: int | None, name: Callable[[T], str]
) -> Iterator[R]:
    remote = ray.remote(max_retries=MAX_RETRIES)(function)
    waiting = list(reversed(tasks))
    in_flight: dict[Any, T] = {}
    fault: Exception | None = None
    died: dict[str, Exception] = {}
    try:
        while waiting or in_flight:
            limit = workers or _TASKS_IN_FLIGHT * max(1, int(ray.cluster_resources().get("CPU", 1)))
            while waiting and len(in_flight) < limit:
                task = waiting.pop()
                in_flight[remote.options(name=name(task)).remote(task)] = task
            reference = ray.wait(list(in_flight), num_returns=1)[0][0]
            try:
                result = ray.get(reference)
            except ray.exceptions.RayTaskError as error:  # wraps what the function raised
                fault = fault or error.cause
                waiting.clear()
            except ray.exceptions.RayError as error:
                died[name(in_flight[reference])] = error
                waiting.clear()
            else:
                yield result
            del in_flight[reference]
    except GeneratorExit:
        # Whoever tidies up after us must not meet them. `ray.cancel` is no way: in Ray 2.60 it aborts this process if
        # it meets a task that is being sent off. Where Ray has ended before, so have they; a call would start it anew.
        if ray.is_initialized():
            ray.wait(list(in_flight), num_returns=len(in_flight))
        raise
    if fault is not None:
        raise fault
    if died:
        first = next(iter(died.values()))
        raise WorkerError(
            f"Ray: {len(died)} tasks failed, each {MAX_RETRIES + 1} times ({', '.join(sorted(died))}); the first: "
            f"{type(first).__name__}: {' '.join(str(first).split()):.300}; run the same command to go on"
        ) from first


@contextmanager
def _connected(ray: Any, workers: int | None) -> Iterator[None]:
    """Connect to the cluster or start Ray here; undo just that."""
    if ray.is_initialized():
        yield
        return
    address = os.environ.get("RAY_ADDRESS")
    quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
    is_main = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGTERM)
    try:
        if address:
            ray.init(address=address, **quiet)
        else:
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
            num_cpus = workers or usable_cores()
            logger.info("Ray: started on this machine with %d cores; RAY_ADDRESS names a cluster", num_cpus)
            ray.init(
                address="local",
                num_cpus=num_cpus,
                include_dashboard=False,
                object_store_memory=_OBJECT_STORE_BYTES,
                **quiet,
            )
    except (OSError, RuntimeError, ValueError) as error:
        raise _unreachable(address or "this machine", error) from error
    finally:
        if is_main:
            signal.signal(signal.SIGTERM, before)  # Ray puts in its own, with an exit code of its own
    try:
        yield
    finally:
        ray.shutdown()


def _unreachable(where: str, error: Exception) -> UsageError:
    found = " ".join(str(error).split())
    return UsageError(
        f"--engine ray: cannot use Ray at {where} ({found:.300}); start the cluster, or see to RAY_ADDRESS"
    )
