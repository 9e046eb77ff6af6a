"""Turns the error that ends a program into an exit code, and a message on standard error or JSON on standard output.

Of several processes, only rank 0 reports wrong usage, because it is the same in all of them.
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

_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
"""Errors of writing to a disk; the operating system raises them without a file name."""


def exit_code_of(program: Callable[[], int], *, interrupted: str = "interrupted", as_json: bool = False) -> int:
    """Run a program and report the error that ends it.

    Args:
        program: Function to run; it returns its exit code.
        interrupted: Message to print if Ctrl-C ends the program.
        as_json: Print an error as one JSON object on standard output instead of the result:
            `{"error": {"kind": ..., "message": ..., "exit_code": ...}}`.

    Returns:
        The program's own exit code, or one of these: 1 (the data or the run is wrong), 2 (wrong usage), 75 (stopped by
        SIGTERM), 130 (interrupted by Ctrl-C).
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
        if not _reader_is_gone():  # the broken pipe is not standard output but one between processes: an error
            raise
        # The process that reads standard output has ended (`| head`). This is not an error; output is discarded.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if error.filename is None and error.errno not in _DISK_ERRORS:
            raise
        where = f"{error.filename}: " if error.filename is not None else ""
        message = f"{where}{error.strerror}; check the path, its permissions and the free disk space"
        _report(error, message, 1, as_json=as_json)
        return 1


def _reader_is_gone() -> bool:
    """Return True if standard output is a pipe whose reader has closed it."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)  # with a mask of 0, only errors are reported
    return bool(poll.poll(0))


def _report(error: BaseException, message: str, exit_code: int, *, as_json: bool) -> None:
    if as_json:
        facts = {"kind": type(error).__name__, "message": message, "exit_code": exit_code}
        sys.stdout.write(json.dumps({"error": facts}, indent=1) + "\n")
    else:
        print_error(message)


def print_error(message: str) -> None:
    """Print an error to standard error with the prefix that all commands use."""
    sys.stderr.write(f"refseg: error: {printable(message)}\n")


def print_next(*command: object) -> None:
    """Print on standard error the command that a user is likely to run after this one.

    Args:
        command: Words of the command; they are quoted for the shell.
    """
    sys.stderr.write(f"Next: {printable(shlex.join(map(str, command)))}\n")
