"""Memory of batches, used again when a batch is gone: fresh memory costs a page fault for every 4 KiB."""

import math
import threading
import weakref
from collections.abc import Sequence

import torch
from torch import Tensor


class Buffers:
    """Gives out tensors and takes their memory back once nothing refers to them.

    A batch that somebody keeps is never written to: its memory comes back when its last tensor or view is gone.

    Args:
        pin: Of memory that a GPU can copy from while the program goes on.
    """

    def __init__(self, *, pin: bool) -> None:
        self._pin = pin
        self._lock = threading.Lock()
        self._free: dict[int, list[Tensor]] = {}

    def empty(self, shape: Sequence[int]) -> Tensor:
        """A contiguous uint8 tensor with anything in it."""
        num_bytes = math.prod(shape)
        with self._lock:
            free = self._free.setdefault(num_bytes, [])
            memory = free.pop() if free else None
        if memory is None:
            memory = torch.empty(num_bytes, dtype=torch.uint8, pin_memory=self._pin)
        # The tensor given out refers to this array, and so does each of its views; the memory itself lives on.
        array = memory.numpy().reshape(shape)
        weakref.finalize(array, free.append, memory)
        return torch.from_numpy(array)

    def __getstate__(self) -> dict[str, bool]:
        """Without the memory, which another process allocates for itself."""
        return {"pin": self._pin}

    def __setstate__(self, state: dict[str, bool]) -> None:
        self.__init__(pin=state["pin"])  # type: ignore[misc]
