"""SIGTERM as a cluster sends it before it takes a machine away: finish the step, save, leave."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from accelerate import Accelerator


class Preemption:
    """Whether this run has been asked to leave."""

    def __init__(self) -> None:
        self._asked = False

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Take SIGTERM as a question instead of an end, as long as this is entered; who heard it before does not."""
        before = signal.signal(signal.SIGTERM, lambda *_: self._hear()), signal.set_wakeup_fd(-1)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, before[0])
            signal.set_wakeup_fd(before[1])

    def is_asked(self, accelerator: Accelerator) -> bool:
        """True if any process was asked; called by all of them together, so that all leave after the same step."""
        asked = torch.tensor(float(self._asked), device=accelerator.device)
        return bool(accelerator.reduce(asked, reduction="sum") > 0)

    def _hear(self) -> None:
        self._asked = True
