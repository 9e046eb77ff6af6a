"""Read-ahead: threads that download remote shards into the machine's cache in the order in which they are needed."""

import logging
import threading
import time
from collections import deque
from collections.abc import Iterable

from refseg.dataset.shard_cache import ShardCache, Tar
from refseg.errors import RefsegError

logger = logging.getLogger(__name__)

_NUM_THREADS = 2  # threads per process; a machine runs several processes
_PAUSE_SECONDS = 0.2  # pause before the next attempt at a shard that another process is downloading


class ReadAhead:
    """Downloads shards in the background. The threads end when all shards are cached, or at the first failure."""

    def __init__(self, cache: ShardCache, tars: Iterable[Tar]) -> None:
        """Start the threads.

        Args:
            cache: The cache into which shards are downloaded.
            tars: Remote tars in the order in which they will be needed.
        """
        self._cache = cache
        self._waiting = deque(tars)
        self._stopped = threading.Event()
        self._failure: RefsegError | None = None
        self._threads = [
            threading.Thread(target=self._run, name=f"refseg-read-ahead-{number}", daemon=True)
            for number in range(_NUM_THREADS)
        ]
        for thread in self._threads:
            thread.start()

    def check(self) -> None:
        """Raise the error that ended a thread, if there is one.

        Raises:
            DatasetError: If an object is missing, or differs from the tar that was built at each of two downloads.
            StorageError: If storage refuses or fails.
        """
        if self._failure is not None:
            raise self._failure

    def stop(self) -> None:
        """Start no further downloads; those in progress are finished."""
        self._stopped.set()

    def join(self) -> None:
        """Wait until all shards are cached.

        Raises:
            DatasetError: As for `check`.
            StorageError: As for `check`.
        """
        for thread in self._threads:
            thread.join()
        self.check()

    def _run(self) -> None:
        has_ended = False
        try:
            self._work()
            has_ended = True
        finally:
            if not has_ended:  # a bug of refseg; the run continues, because images can also be read one by one
                logger.error(
                    "a thread that downloads remote shards failed; images that are not cached are read one by one",
                    exc_info=True,
                )

    def _work(self) -> None:
        while not self._stopped.is_set():
            try:
                tar = self._waiting.popleft()
            except IndexError:
                return
            try:
                found = self._cache.fetch(tar, wait=False)
            except RefsegError as error:
                self._failure = error
                self.stop()
                return
            if found == "busy":  # continue with the other shards and try again: the other process may die
                self._waiting.append(tar)
                time.sleep(_PAUSE_SECONDS)
