"""Runs a function over tasks on a Ray cluster or, without a cluster, on a Ray instance on this machine."""

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
"""Number of times a task is repeated if the worker or machine dies. A task that raises an error is not repeated."""
_TASKS_IN_FLIGHT = 2
"""Number of tasks per core, one running and one waiting. Waiting tasks also make an autoscaling cluster grow."""
_OBJECT_STORE_BYTES = 100 << 20
"""Size in bytes of the object store of a local Ray instance. Tasks and results are small and contain no images."""
_SECONDS_TO_CONNECT = 10.0


def check_ray() -> None:
    """Check that Ray can be used. It is called before planning, which may take minutes.

    Raises:
        UsageError: If Ray is not installed, or no cluster listens at `RAY_ADDRESS`.
    """
    if find_spec("ray") is None:
        raise UsageError("--engine ray: Ray is not installed; pip install 'refseg[ray]'")
    address = os.environ.get("RAY_ADDRESS", "")
    host, _, port = address.rpartition(":")
    if port.isdigit() and "://" not in address:  # Ray itself would try to connect for minutes
        try:
            socket.create_connection((host, int(port)), _SECONDS_TO_CONNECT).close()
        except OSError as error:
            raise _unreachable(address, error) from error


def run_ray(
    function: Callable[[T], R], tasks: Sequence[T], workers: int | None, *, name: Callable[[T], str]
) -> Iterator[R]:
    """Run a function over tasks on the cluster at `RAY_ADDRESS` or, if that is not set, on this machine.

    A Ray instance that this call starts is shut down at the end. From a cluster, the call only disconnects. If the
    program has called `ray.init` before, the existing connection is used and kept.

    If the caller closes the iterator, the call waits for the tasks in flight. After an interrupt it does not wait,
    because Ray ends the tasks when this process exits.

    Args:
        function: A function of a module that all machines of the cluster have in the same version.
        tasks: Tasks in any order. They consist of plain values.
        workers: Largest number of tasks in flight. None means two per core of the cluster.
        name: Returns the name of a task for error messages and Ray's dashboard.

    Yields:
        The results of the function, in the order in which tasks finish.

    Raises:
        UsageError: If Ray is not installed, or there is no cluster at `RAY_ADDRESS`.
        WorkerError: If a task's worker died at each attempt, or Ray cannot run a task. The message names the tasks.
            Errors of `function` are raised unchanged. Both are raised after the tasks in flight have ended.
    """
    check_ray()
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
            except ray.exceptions.RayTaskError as error:  # wraps an error of the function
                fault = fault or error.cause
                waiting.clear()
            except ray.exceptions.RayError as error:
                died[name(in_flight[reference])] = error
                waiting.clear()
            else:
                yield result
            del in_flight[reference]
    except GeneratorExit:
        # The caller may remove files after this, so running tasks must have ended. `ray.cancel` cannot be used: in Ray
        # 2.60 it aborts this process if a task is just being submitted. If Ray has already shut down, the tasks have
        # ended, and a call would start Ray again.
        if ray.is_initialized():
            ray.wait(list(in_flight), num_returns=len(in_flight))
        raise
    if fault is not None:
        raise fault
    if died:
        first = next(iter(died.values()))
        raise WorkerError(
            f"Ray: {len(died)} tasks failed, each {MAX_RETRIES + 1} times ({', '.join(sorted(died))}); the first: "
            f"{type(first).__name__}: {' '.join(str(first).split()):.300}; run the same command to resume"
        ) from first


@contextmanager
def _connected(ray: Any, workers: int | None) -> Iterator[None]:
    """Connect to the cluster or start Ray on this machine. At the end of the block, disconnect or stop Ray."""
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
            logger.info("Ray: starting on this machine with %d cores; set RAY_ADDRESS to use a cluster", num_cpus)
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
            signal.signal(signal.SIGTERM, before)  # Ray installs its own handler, which exits with another code
    try:
        yield
    finally:
        ray.shutdown()


def _unreachable(where: str, error: Exception) -> UsageError:
    found = " ".join(str(error).split())
    return UsageError(
        f"--engine ray: cannot use Ray at {where} ({found:.300}); start the cluster, or correct RAY_ADDRESS"
    )
