"""Allocates the memory into which batches are packed, and decides when memory may be reused.

`Tensor.to` with `non_blocking=True` only queues a copy. The copy may therefore still read a batch's memory after the
program has dropped the batch. For this reason memory is reused only through allocators that know all readers:

- torch's allocator of pinned memory records the stream of each queued copy and reuses memory only after that stream
  has finished the copy. It is used on machines with a device that torch can pin memory for.
- The pools below count only references. They are used on machines without such a device, where nothing reads a batch
  that the program does not refer to, and in worker processes, whose batches the training process copies at once.
"""

import math
import threading
import weakref
from collections import deque
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

MemoryKind = Literal["pinned", "reused", "fresh"]
"""`pinned`: from torch's allocator of pinned memory. `reused`: from a pool, which avoids a page fault for every 4 KiB.
`fresh`: newly allocated for each batch, for devices whose copies torch does not track."""

_PINNING = ("cuda", "xpu")
"""Devices whose pinned memory is managed by torch's caching host allocator, with an event for each queued copy."""

_KEPT = (
    6  # buffers of a size per worker process: two batches requested ahead, and those that the training process holds
)


def memory_kind() -> MemoryKind:
    """Return the kind of memory for batches of a training process on this machine."""
    device = torch.accelerator.current_accelerator(check_available=True)
    if device is None:
        return "reused"
    return "pinned" if can_pin(device) else "fresh"


def can_pin(device: torch.device) -> bool:
    """Return True if torch tracks copies from pinned memory to a device, so that `non_blocking=True` is safe.

    Copies from pageable memory are not safe with `non_blocking=True`. CUDA only states that such a copy "might be
    synchronous with respect to the host". MPS and XPU read pageable memory later.
    """
    return device.type in _PINNING


class Buffers:
    """An allocator whose memory is reused only when nothing reads it any more.

    A batch that the caller keeps is never overwritten. The memory returns to the pool when the last tensor or view of
    it is deleted.

    Args:
        kind: Kind of memory to allocate.
    """

    def __init__(self, kind: MemoryKind) -> None:
        self._kind = kind
        self._lock = threading.Lock()
        self._free: dict[int, list[Tensor]] = {}

    def empty(self, shape: Sequence[int]) -> Tensor:
        """Return a contiguous, uninitialised uint8 tensor."""
        if self._kind != "reused":
            # Return torch's own tensor, not one around its array: torch finds the allocation by the tensor's storage.
            return torch.empty(*shape, dtype=torch.uint8, pin_memory=self._kind == "pinned")
        num_bytes = math.prod(shape)
        with self._lock:
            free = self._free.setdefault(_rounded(num_bytes), [])
            memory = free.pop() if free else None
        if memory is None:
            memory = torch.empty(_rounded(num_bytes), dtype=torch.uint8)
        # The returned tensor and all its views refer to this array. When it is finalised, nobody uses the memory.
        array = memory.numpy()[:num_bytes].reshape(shape)
        weakref.finalize(array, free.append, memory)
        return torch.from_numpy(array)

    def __getstate__(self) -> MemoryKind:
        """Return the state without the memory. Another process allocates memory for itself."""
        return self._kind

    def __setstate__(self, state: MemoryKind) -> None:
        self.__init__(state)  # type: ignore[misc]


class SharedBuffers:
    """An allocator of shared memory in a worker process. The training process receives tensors without a copy.

    Each buffer has one extra byte at its end, the flag "in use". The worker sets the flag when it packs a batch. The
    training process clears the flag when the batch is deleted or copied (`give_back`). A buffer whose flag is never
    cleared is not reused. A new buffer is allocated instead.
    """

    def __init__(self) -> None:
        self._memory: dict[int, deque[Tensor]] = {}

    def empty(self, shape: Sequence[int]) -> Tensor:
        """Return a contiguous, uninitialised uint8 tensor in shared memory."""
        num_bytes = math.prod(shape)
        kept = self._memory.setdefault(_rounded(num_bytes), deque(maxlen=_KEPT))
        memory = next((memory for memory in kept if not memory[-1]), None)
        if memory is None:
            memory = torch.empty(_rounded(num_bytes) + 1, dtype=torch.uint8).share_memory_()
            kept.append(memory)
        memory[-1] = 1
        return memory[:num_bytes].view(*shape)


def give_back(tensor: Tensor) -> None:
    """Return the memory of a tensor from `SharedBuffers` to the worker. No queued copy may still read it."""
    torch.empty(0, dtype=torch.uint8).set_(tensor.untyped_storage())[-1] = 0


def give_back_when_gone(tensor: Tensor) -> Tensor:
    """Return a tensor over the same `SharedBuffers` memory. The memory is given back when the tensor is deleted."""
    array = tensor.numpy()
    weakref.finalize(array, give_back, tensor).atexit = False
    return torch.from_numpy(array)


def _rounded(num_bytes: int) -> int:
    """Round a size up by at most a quarter, so that batches of similar sizes share buffers.

    For example, 900 and 1000 both give 1024.
    """
    step = max(64, 1 << max(0, num_bytes.bit_length() - 3))
    return -(-num_bytes // step) * step
