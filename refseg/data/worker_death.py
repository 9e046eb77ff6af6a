"""Converts every symptom of a dead worker process into one error."""

import re
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch._C import _error_if_any_worker_fails

from refseg.errors import RefsegError, TrainingError

_NOTICE = re.compile(r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\) ([^\n]*)")


@contextmanager
def report_worker_death(*, signal_seconds: float = 0.0) -> Iterator[None]:
    """Replace any error that the death of a worker process causes in the block with one `TrainingError`.

    The death of a process has several symptoms. The system sends a signal, and torch's handler of this signal raises an
    error at any point of the main thread. If the main thread is receiving a batch from that process, receiving fails
    before the signal arrives.

    Args:
        signal_seconds: Time in seconds to wait for the signal after another error.

    Raises:
        TrainingError: If a worker process died.
    """
    before: Any = None
    try:
        try:
            yield
        except (RuntimeError, OSError, EOFError) as error:
            # The signal may arrive here as well: what its handler raises is caught below, with this error as context.
            # After the next line it raises nothing, so that the second `except` is not interrupted.
            before = _ignore_signal()
            if not isinstance(error, RefsegError) and _find_notice(error) is None:
                _await_notice(signal_seconds)
            raise
    except RefsegError:
        raise
    except (RuntimeError, OSError, EOFError) as error:
        notice = _find_notice(error)
        if notice is None:
            raise
        raise TrainingError(
            f"DataLoader worker (pid {notice[1]}) {notice[2].strip(' .')}; if memory ran out, use fewer "
            "data.num_workers or smaller batches; the run can be resumed from its newest checkpoint"
        ) from error
    finally:
        if before is not None:
            signal.signal(signal.SIGCHLD, before)


def _ignore_signal() -> Any:
    """Ignore the signal of a process's death, and return the previous handler.

    Return None in a thread in which no handler runs.
    """
    if threading.current_thread() is not threading.main_thread():
        return None
    return signal.signal(signal.SIGCHLD, lambda *_: None)


def _find_notice(error: BaseException | None) -> re.Match[str] | None:
    """Find torch's message about a death in a chain of errors. The innermost message states the signal."""
    found = None
    while error is not None:
        found = _NOTICE.search(str(error)) or found
        error = error.__cause__ or error.__context__
    return found


def _await_notice(seconds: float) -> None:
    """Ask torch for dead workers until it names one or the time has passed.

    Waiting for the signal is not sufficient, because an error that the handler raises within a destructor is lost.

    Raises:
        RuntimeError: If a worker is dead. The message is that of torch.
    """
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        _error_if_any_worker_fails()
        time.sleep(0.01)
