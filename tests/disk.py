"""A disk that is full, without filling one."""

import resource
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def file_size_limit() -> Iterator[Callable[[int], None]]:
    """Return a context that limits the size of files, which acts like a full disk for large files.

    The limit ends with the block, before pytest reports the test: its own output may be a file. Meanwhile no compiled
    module is written, because Python does not notice that only a part of such a file was written.
    """
    before, compiles = resource.getrlimit(resource.RLIMIT_FSIZE), sys.dont_write_bytecode
    sys.dont_write_bytecode = True
    try:
        yield lambda num_bytes: resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        sys.dont_write_bytecode = compiles
