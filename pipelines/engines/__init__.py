"""One seam, several engines: a function over tasks, results as they are finished, the same bytes from each."""

from collections.abc import Callable, Generator, Sequence
from typing import Literal, TypeVar

from pipelines.engines.local import run_local, usable_cores

__all__ = ["Engine", "check_engine", "run_local", "run_tasks", "usable_cores"]

T = TypeVar("T")
R = TypeVar("R")
Engine = Literal["local", "ray"]
"""`local`: processes of this machine. `ray`: a Ray cluster. For array tasks of a scheduler see `BuildOptions.stage`."""


def check_engine(engine: str) -> None:
    """See whether an engine can be used here.

    Raises:
        UsageError: If not.
    """
    if engine == "ray":
        from pipelines.engines.ray import look_for_ray

        look_for_ray()


def run_tasks(
    engine: str, function: Callable[[T], R], tasks: Sequence[T], workers: int | None, *, name: Callable[[T], str]
) -> Generator[R, None, None]:
    """Run a function over tasks on an `Engine`.

    Args:
        engine: Which.
        function: Of a module, so that other processes find it.
        tasks: In any order; plain values.
        workers: At most so many tasks at a time; None: one per core that the engine may use.
        name: What errors call a task.

    Yields:
        What the function returns, as tasks are finished.

    Raises:
        UsageError: If the engine cannot be used here.
        WorkerError: If a worker died. What `function` raises comes through as it is.
    """
    if engine == "ray" and tasks:
        from pipelines.engines.ray import run_ray

        yield from run_ray(function, tasks, workers, name=name)
    else:
        yield from run_local(function, tasks, workers or usable_cores(), name=name)
