"""Runs a function over tasks, and yields results as they finish. All engines give the same bytes.

`local` uses processes on this machine, and `ray` a Ray cluster.
"""

from collections.abc import Callable, Generator, Sequence
from typing import Literal, TypeVar

from pipelines.engines.local import run_local, usable_cores

__all__ = ["Engine", "check_engine", "run_local", "run_tasks", "usable_cores"]

T = TypeVar("T")
R = TypeVar("R")
Engine = Literal["local", "ray"]
"""`local` uses processes on this machine, and `ray` a Ray cluster. `BuildOptions.stage` is for a scheduler's tasks."""


def check_engine(engine: str) -> None:
    """Check that an engine can be used on this machine.

    Raises:
        UsageError: If the engine cannot be used.
    """
    if engine == "ray":
        from pipelines.engines.ray import check_ray

        check_ray()


def run_tasks(
    engine: str, function: Callable[[T], R], tasks: Sequence[T], workers: int | None, *, name: Callable[[T], str]
) -> Generator[R, None, None]:
    """Run a function over tasks on an `Engine`.

    Args:
        engine: Name of the engine.
        function: A function at the top level of a module, so that other processes can import it.
        tasks: Tasks in any order. They consist of plain values.
        workers: Largest number of tasks at a time. None means one per core (local), or two per core of the cluster
            (Ray).
        name: Returns the name of a task for error messages.

    Yields:
        The results of the function, in the order in which tasks finish.

    Raises:
        UsageError: If the engine cannot be used on this machine.
        WorkerError: If a worker died. Errors of `function` are raised unchanged.
    """
    if engine == "ray" and tasks:
        from pipelines.engines.ray import run_ray

        yield from run_ray(function, tasks, workers, name=name)
    else:
        yield from run_local(function, tasks, workers or usable_cores(), name=name)
