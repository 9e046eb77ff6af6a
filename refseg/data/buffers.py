"""Memory that batches are packed into, and when it may be written again.

A copy to a device may still read a batch's memory after the program has dropped the batch: `Tensor.to` with
`non_blocking=True` only queues the copy. Memory is therefore used again by one of two owners, each of which knows
every reader:

- torch's allocator of pinned memory records the stream of each copy that is queued from it, and gives memory out
  again when that stream has passed the copy. It serves machines whose device torch can pin memory for.
- The pools below know references alone. They serve machines without such a device, where nothing reads a batch
  that the program does not refer to, and worker processes, whose batches the training process copies at once.
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
"""`pinned`: from torch's allocator of pinned memory. `reused`: from a pool, which saves a page fault for every 4 KiB.
`fresh`: allocated for each batch, for a device that torch cannot pin memory for, and whose copies it does not track."""

_PINNING = ("cuda", "xpu")
"""Devices whose pinned memory torch's caching host allocator manages, with an event for each queued copy."""

_KEPT = 6  # of a size in a worker process: two batches that torch asks for ahead, and what the training process holds


def memory_kind() -> MemoryKind:
    """The kind of memory for the batches of this machine's training processes."""
    device = torch.accelerator.current_accelerator(check_available=True)
    if device is None:
        return "reused"
    return "pinned" if can_pin(device) else "fresh"


def can_pin(device: torch.device) -> bool:
    """Whether copies to a device from pinned memory are tracked, so that they may be queued with `non_blocking=True`.

    For pageable memory CUDA promises no more than that a copy "might be synchronous with respect to the host"; MPS and
    XPU do read such memory later.
    """
    return device.type in _PINNING


class Buffers:
    """Gives out tensors whose memory is written again only when nothing reads it any more.

    A batch that somebody keeps is never written to: its memory comes back when its last tensor or view is gone.

    Args:
        kind: Kind of memory to give out.
    """

    def __init__(self, kind: MemoryKind) -> None:
        self._kind = kind
        self._lock = threading.Lock()
        self._free: dict[int, list[Tensor]] = {}

    def empty(self, shape: Sequence[int]) -> Tensor:
        """A contiguous uint8 tensor with anything in it."""
        if self._kind != "reused":
            # The tensor itself, not one around its array: torch finds the allocation by the tensor's storage.
            return torch.empty(*shape, dtype=torch.uint8, pin_memory=self._kind == "pinned")
        num_bytes = math.prod(shape)
        with self._lock:
            free = self._free.setdefault(_rounded(num_bytes), [])
            memory = free.pop() if free else None
        if memory is None:
            memory = torch.empty(_rounded(num_bytes), dtype=torch.uint8)
        # The tensor given out refers to this array, and so does each of its views; the memory itself lives on.
        array = memory.numpy()[:num_bytes].reshape(shape)
        weakref.finalize(array, free.append, memory)
        return torch.from_numpy(array)

    def __getstate__(self) -> MemoryKind:
        """Without the memory, which another process allocates for itself."""
        return self._kind

    def __setstate__(self, state: MemoryKind) -> None:
        self.__init__(state)  # type: ignore[misc]


class SharedBuffers:
    """Gives out, in a worker process, tensors that the training process sees without a copy.

    The last byte of each memory says whether it is lent: the worker sets it, and the training process clears it when
    the batch is gone or copied (`give_back`). What never comes back is left to who has it, and replaced.
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
    """Let the worker use the memory of one of its `SharedBuffers` again; no copy from it may be queued."""
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
