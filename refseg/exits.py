"""How a program ends: an exit code, and an error as one line on standard error or one JSON object on standard output.

With several processes there is one report of an error, not one for each.
"""

import errno
import json
import os
import select
import shlex
import sys
from collections.abc import Callable

from refseg.errors import RefsegError, UsageError
from refseg.wording import printable

_OF_THE_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
"""Errors of writing to a disk that do not name a file."""


def exit_code_of(program: Callable[[], int], *, interrupted: str = "interrupted", as_json: bool = False) -> int:
    """Run a program and report the error that ends it.

    Args:
        program: What is run; returns its exit code.
        interrupted: Printed where Ctrl-C ends it.
        as_json: Print an error as one JSON object on standard output, where the result would have been:
            `{"error": {"kind": ..., "message": ..., "exit_code": ...}}`.

    Returns:
        What the program returns; 1 the data or the run is at fault, 2 wrong usage, 75 asked to leave, 130 interrupted.
    """
    try:
        return program()
    except RefsegError as error:
        rank = os.environ.get("RANK", "0")
        if rank == "0":
            _report(error, str(error), error.exit_code, as_json=as_json)
        elif not isinstance(error, UsageError):  # wrong usage is the same in every process, and rank 0 reports it
            print_error(f"rank {rank}: {error}")
        return error.exit_code
    except KeyboardInterrupt as error:
        if as_json:
            _report(error, interrupted, 130, as_json=True)
        else:
            sys.stderr.write(f"refseg: {interrupted}\n")
        return 130
    except BrokenPipeError:
        if not _reader_is_gone():  # a pipe between processes broke, which is an error
            raise
        # The reader of our output (`| head`) is gone: nothing is wrong, and nothing more can be said.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if error.filename is None and error.errno not in _OF_THE_DISK:
            raise
        where = f"{error.filename}: " if error.filename is not None else ""
        message = f"{where}{error.strerror}; check the path, its permissions and the free disk space"
        _report(error, message, 1, as_json=as_json)
        return 1


def _reader_is_gone() -> bool:
    """Whether standard output is a pipe that nobody reads any more."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)  # errors are always reported
    return bool(poll.poll(0))


def _report(error: BaseException, message: str, exit_code: int, *, as_json: bool) -> None:
    if as_json:
        facts = {"kind": type(error).__name__, "message": message, "exit_code": exit_code}
        sys.stdout.write(json.dumps({"error": facts}, indent=1) + "\n")
    else:
        print_error(message)


def print_error(message: str) -> None:
    """Print an error as every command does."""
    sys.stderr.write(f"refseg: error: {printable(message)}\n")


def print_next(*command: object) -> None:
    """Print on standard error the command that a user is likely to run after this one.

    Args:
        command: Its words; they are quoted for the shell.
    """
    sys.stderr.write(f"Next: {printable(shlex.join(map(str, command)))}\n")
