"""Locks of open files (`flock`): the kernel drops them when their process ends, however it ends, so none is stale."""

import errno
import fcntl
from typing import IO

_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
"""Errors of a file system without locks, for example Lustre mounted without `flock`."""


def lock(file: IO[str] | IO[bytes] | int, *, shared: bool = False, wait: bool = True) -> bool:
    """Lock an open file or folder until it is closed.

    Args:
        file: The file, or its descriptor.
        shared: Others may hold shared locks at the same time; False: nobody else holds any.
        wait: For others to release theirs.

    Returns:
        False where the file system has no locks; nothing is locked then.

    Raises:
        BlockingIOError: Without `wait`, if another's lock excludes this one.
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
    """Release a lock. Closing alone would leave it with a child that was forked meanwhile."""
    fcntl.flock(descriptor, fcntl.LOCK_UN)
