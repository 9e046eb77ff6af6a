"""Memory of batches, used again when a batch is gone: fresh memory costs a page fault for every 4 KiB."""

import math
import threading
import weakref
from collections import deque
from collections.abc import Sequence

import torch
from torch import Tensor

_KEPT = 6  # of a size in a worker process: two batches that torch asks for ahead, and what the training process holds


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
            free = self._free.setdefault(_rounded(num_bytes), [])
            memory = free.pop() if free else None
        if memory is None:
            memory = torch.empty(_rounded(num_bytes), dtype=torch.uint8, pin_memory=self._pin)
        # The tensor given out refers to this array, and so does each of its views; the memory itself lives on.
        array = memory.numpy()[:num_bytes].reshape(shape)
        weakref.finalize(array, free.append, memory)
        return torch.from_numpy(array)

    def __getstate__(self) -> dict[str, bool]:
        """Without the memory, which another process allocates for itself."""
        return {"pin": self._pin}

    def __setstate__(self, state: dict[str, bool]) -> None:
        self.__init__(pin=state["pin"])  # type: ignore[misc]


class SharedBuffers:
    """Gives out, in a worker process, tensors that the training process sees without a copy.

    The last byte of each memory says whether it is lent: the worker sets it, and the training process clears it when
    the batch is gone (`give_back`). What never comes back is left to who has it, and replaced.
    """

    def __init__(self) -> None:
        self._memory: dict[int, deque[Tensor]] = {}

    def empty(self, shape: Sequence[int]) -> Tensor:
        """A contiguous uint8 tensor with anything in it."""
        num_bytes = math.prod(shape)
        kept = self._memory.setdefault(_rounded(num_bytes), deque(maxlen=_KEPT))
        memory = next((memory for memory in kept if not memory[-1]), None)
        if memory is None:
            memory = torch.empty(_rounded(num_bytes) + 1, dtype=torch.uint8).share_memory_()
            kept.append(memory)
        memory[-1] = 1
        return memory[:num_bytes].view(*shape)


def give_back(tensor: Tensor) -> None:
    """Let the worker use the memory of one of its `SharedBuffers` again."""
    torch.empty(0, dtype=torch.uint8).set_(tensor.untyped_storage())[-1] = 0


def give_back_when_gone(tensor: Tensor) -> Tensor:
    """The same tensor of a worker's `SharedBuffers`, whose memory is given back when nothing refers to it any more."""
    array = tensor.numpy()
    weakref.finalize(array, give_back, tensor).atexit = False
    return torch.from_numpy(array)


def _rounded(num_bytes: int) -> int:
    """So many bytes or up to a quarter more: batches of similar sizes share their memory."""
    step = max(64, 1 << max(0, num_bytes.bit_length() - 3))
    return -(-num_bytes // step) * step
