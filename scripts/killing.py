"""What `kill_build.py` and `kill_training.py` share: forked children that die as if by `kill -9` at a chosen call.

Who forks must not have started threads.
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
"""Exit codes of a child that met an error of ours, or any other."""


def in_child(work: Callable[[], int | None], *, wait: bool = True, quiet: bool = False) -> int:
    """Run work in a forked process.

    Args:
        work: Its return value is the exit code; None: 0.
        wait: For its end.
        quiet: Print no error of ours: the death of another process is expected to cause one.

    Returns:
        The exit code (negative: the signal it died of), or its process id if not waited for.
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
    """Exit code of a child."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def die() -> None:
    """End this process as `kill -9` does."""
    os.kill(os.getpid(), signal.SIGKILL)
    signal.pause()


def hook_changes(places: Iterable[tuple[Any, Iterable[str]]], on_change: Callable[[], bool]) -> None:
    """Call `on_change` before each change of the disk; True: die there, of a file's bytes after the first half.

    Args:
        places: Modules or classes, and the names of their functions that change the disk.
        on_change: Says whether to die.
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
    """Half of what a call of `Path.write_bytes`, `Path.write_text` or `torch.save` would have written."""
    if name == "save":
        path, content = args[1], b"half"
    elif name in ("write_bytes", "write_text"):
        path, content = args[0], args[1].encode() if name == "write_text" else args[1]
    else:
        return
    with Path(path).open("wb") as file:
        file.write(content[: len(content) // 2])


def nth(number: int, yes: Any, no: Any) -> Callable[[], Any]:
    """A function that says `yes` at its n-th call, counted from 1, and `no` else."""
    calls = 0

    def step() -> Any:
        nonlocal calls
        calls += 1
        return yes if calls == number else no

    return step
