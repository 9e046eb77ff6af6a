"""Read-ahead: threads that bring remote shards into the node's cache in the order in which they will be needed."""

import logging
import threading
import time
from collections import deque
from collections.abc import Iterable

from refseg.dataset.shard_cache import ShardCache, Tar
from refseg.errors import RefsegError

logger = logging.getLogger(__name__)

_NUM_THREADS = 2  # of each process: a node has several
_PAUSE_SECONDS = 0.2  # before asking again for what other processes are downloading


class ReadAhead:
    """Downloads in the background; the threads end when all is there, or at the first failure."""

    def __init__(self, cache: ShardCache, tars: Iterable[Tar]) -> None:
        """Begin.

        Args:
            cache: Where they go.
            tars: In the order in which they will be needed.
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
        """Raise what a thread met.

        Raises:
            DatasetError: If an object is missing, or twice another than was built.
            StorageError: If storage refuses or fails.
        """
        if self._failure is not None:
            raise self._failure

    def stop(self) -> None:
        """Begin no other download."""
        self._stopped.set()

    def join(self) -> None:
        """Wait until all is there.

        Raises:
            DatasetError: See `check`.
            StorageError: See `check`.
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
            if not has_ended:  # by a mistake of ours, which stops no run: images are read one by one
                logger.error("a thread that fetches remote shards ahead broke off: fewer or none follow", exc_info=True)

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
            if found == "busy":  # the others first; asked again, since who downloads it may die
                self._waiting.append(tar)
                time.sleep(_PAUSE_SECONDS)
