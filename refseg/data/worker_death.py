"""One error for the death of a worker process, however it shows."""

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager

from torch._C import _error_if_any_worker_fails

from refseg.errors import RefsegError, TrainingError

_NOTICE = re.compile(r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\) ([^\n]*)")


@contextmanager
def named_worker_death(*, signal_seconds: float = 0.0) -> Iterator[None]:
    """Raise one error for whatever the death of a worker process makes of the code inside.

    torch is told of the death by a signal, whose handler raises in whatever the main thread is doing. A batch that is
    being received from that process breaks off before the signal comes, in one of many ways.

    Args:
        signal_seconds: How long to wait for the signal if something broke off without it.

    Raises:
        TrainingError: If a worker process died.
    """
    try:
        yield
    except RefsegError:
        raise
    except (RuntimeError, OSError, EOFError) as error:
        notice = _find_notice(error) or _await_notice(signal_seconds)
        if notice is None:
            raise
        raise TrainingError(
            f"DataLoader worker (pid {notice[1]}) {notice[2].strip(' .')}; if memory ran out, take fewer "
            "data.num_workers or smaller batches; a run goes on from its newest checkpoint"
        ) from error


def _find_notice(error: BaseException | None) -> re.Match[str] | None:
    """What torch says of a death, by the error that it found first: that knows the signal."""
    found = None
    while error is not None:
        found = _NOTICE.search(str(error)) or found
        error = error.__cause__ or error.__context__
    return found


def _await_notice(seconds: float) -> re.Match[str] | None:
    """Ask torch for dead workers until it names one or the time is over.

    The signal alone is not enough: what its handler raises is lost where a destructor happens to be running.
    """
    deadline = time.monotonic() + seconds
    try:
        while time.monotonic() < deadline:
            _error_if_any_worker_fails()
            time.sleep(0.01)
    except RuntimeError as error:  # raised by the call above or by the signal's handler
        return _find_notice(error)
    return None
