"""Runs functions in forked children and kills them with SIGKILL at a chosen call.

`kill_build.py` and `kill_training.py` use this module.

A process that forks must not have started threads.
"""

import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from refseg.errors import RefsegError

REFUSED, FAULT = 1, 3
"""Exit codes of a child that raised a `RefsegError`, or any other error."""


def in_child(work: Callable[[], int | None], *, wait: bool = True, quiet: bool = False) -> int:
    """Run a function in a forked process.

    Args:
        work: The function. Its return value is the exit code; None means 0.
        wait: Wait for the end of the process.
        quiet: Do not print a `RefsegError`, because the death of another process is expected to cause one.

    Returns:
        The exit code, or the process id if `wait` is False. A negative exit code is the number of the signal that ended
        the process.
    """
    child = os.fork()
    if child == 0:
        code = FAULT
        try:
            code = work() or 0
        except RefsegError as error:
            code = REFUSED
            if not quiet:
                print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        finally:  # a forked child must not return into the loop of its parent
            if code == FAULT:
                traceback.print_exc()
            os._exit(code)
    return wait_for(child) if wait else child


def wait_for(child: int) -> int:
    """Wait for a child to end and return its exit code."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def die() -> None:
    """End this process as `kill -9` does."""
    os.kill(os.getpid(), signal.SIGKILL)
    signal.pause()


def hook_changes(places: Iterable[tuple[Any, Iterable[str]]], on_change: Callable[[], bool]) -> None:
    """Call `on_change` before each file system change. If it returns True, the process is killed there.

    If the change writes a file, half of the bytes are written before the process is killed.

    Args:
        places: Modules or classes, each with the names of the functions that change the file system.
        on_change: Function that returns True to kill the process.
    """

    def hook(owner: Any, name: str) -> None:
        before: Callable[..., Any] = getattr(owner, name)

        def hooked(*args: Any, **named: Any) -> Any:
            if on_change():
                _write_half(name, args)
                die()
            return before(*args, **named)

        setattr(owner, name, hooked)

    for owner, names in places:
        for name in names:
            hook(owner, name)


def _write_half(name: str, args: tuple[Any, ...]) -> None:
    """Write the first half of the bytes that `Path.write_bytes`, `Path.write_text` or `torch.save` would write."""
    if name == "save":
        path, content = args[1], b"half"
    elif name in ("write_bytes", "write_text"):
        path, content = args[0], args[1].encode() if name == "write_text" else args[1]
    else:
        return
    with Path(path).open("wb") as file:
        file.write(content[: len(content) // 2])


def nth(number: int, yes: Any, no: Any) -> Callable[[], Any]:
    """Return a function that returns `yes` at its n-th call, counted from 1, and `no` at all others."""
    calls = 0

    def step() -> Any:
        nonlocal calls
        calls += 1
        return yes if calls == number else no

    return step
