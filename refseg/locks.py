"""Locks of open files (`flock`). The kernel releases a lock when its process ends for any reason, so none is stale."""

import errno
import fcntl
from typing import IO

_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
"""Errors of a file system that does not support locks, for example Lustre mounted without `flock`."""


def lock(file: IO[str] | IO[bytes] | int, *, shared: bool = False, wait: bool = True) -> bool:
    """Lock an open file or folder until it is closed.

    Two processes may hold a shared lock on one file at the same time; an exclusive lock excludes all others. So readers
    of a cache file take shared locks, and the process that removes files takes an exclusive one.

    Args:
        file: The file, or its descriptor.
        shared: Take a shared lock; False: an exclusive one.
        wait: Wait until conflicting locks are released; False: raise `BlockingIOError` at once.

    Returns:
        True if the file is locked; False if the file system does not support locks.

    Raises:
        BlockingIOError: If `wait` is False and another process holds a conflicting lock.
        OSError: If the file cannot be locked.
    """
    try:
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        return False
    return True


def unlock(descriptor: int) -> None:
    """Release a lock explicitly: after a mere close, a child process that was forked meanwhile would still hold it."""
    fcntl.flock(descriptor, fcntl.LOCK_UN)
