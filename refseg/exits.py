"""How a program ends: an error is one line on standard error and an exit code, and not one line for each process."""

import errno
import os
import select
import sys
from collections.abc import Callable

from refseg.errors import RefsegError, UsageError
from refseg.wording import printable

_OF_THE_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
"""Errors of writing to a disk that do not name a file."""


def exit_code_of(program: Callable[[], int], *, interrupted: str = "interrupted") -> int:
    """Run a program and report the error that ends it.

    Args:
        program: What is run; returns its exit code.
        interrupted: Printed where Ctrl-C ends it.

    Returns:
        What the program returns; 1 the data or the run is at fault, 2 wrong usage, 75 asked to leave, 130 interrupted.
    """
    try:
        return program()
    except RefsegError as error:
        rank = os.environ.get("RANK", "0")
        if rank == "0":
            print_error(str(error))
        elif not isinstance(error, UsageError):  # wrong usage is the same in every process, and rank 0 reports it
            print_error(f"rank {rank}: {error}")
        return error.exit_code
    except KeyboardInterrupt:
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
        print_error(f"{where}{error.strerror}; check the path, its permissions and the free disk space")
        return 1


def _reader_is_gone() -> bool:
    """Whether standard output is a pipe that nobody reads any more."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)  # errors are always reported
    return bool(poll.poll(0))


def print_error(message: str) -> None:
    """Print an error as every command does."""
    sys.stderr.write(f"refseg: error: {printable(message)}\n")
