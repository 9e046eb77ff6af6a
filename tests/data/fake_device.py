"""A device for machines that have none: pinned memory, and a stream whose copies run behind what was queued before.

It keeps the promises that CUDA and torch's allocator of pinned memory make, and no others:

- `Tensor.to` with `non_blocking=True` returns at once; the stream reads pinned memory when it comes to the copy.
- A block of pinned memory is given out again when the storage that lay in it is gone and the copies that were recorded
  for it have ended. A copy is recorded if its tensor is of that storage or begins where the block does, as in
  `record_event` of ATen/core/CachingHostAllocator.h. Whoever wraps the memory anew loses that for parts of it.
- A copy from other memory "might be synchronous" (CUDA Runtime API, 2. API synchronization behavior). Here it is, and
  is counted, for a test to refuse.
"""

import threading
import weakref
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor

from refseg.data import buffers

_empty, _to, _empty_strided = torch.empty, torch.Tensor.to, torch.empty_strided


class _Block:
    """Pinned memory, which the allocator never frees."""

    def __init__(self, num_bytes: int) -> None:
        self.memory = _empty(num_bytes, dtype=torch.uint8)
        self.address = self.memory.data_ptr()
        self.storage = 0
        self.copies: list[Future[Any]] = []

    def give(self, num_bytes: int, when_gone: Callable[["_Block"], None]) -> Tensor:
        """A tensor whose storage, when it is gone, gives the block back."""
        array = self.memory.numpy()[:num_bytes]
        weakref.finalize(array, when_gone, self).atexit = False
        tensor = torch.from_numpy(array)
        self.storage = tensor.untyped_storage()._cdata
        return tensor


class FakeDevice:
    """The stream and the allocator."""

    def __init__(self) -> None:
        self.blocks: list[_Block] = []
        self.num_not_pinned = 0
        self._stream = ThreadPoolExecutor(1, thread_name_prefix="stream")
        self._lock = threading.Lock()
        self._free: dict[int, list[_Block]] = defaultdict(list)

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Let torch give pinned memory and copy through this device; its name is `cpu`."""
        monkeypatch.setattr(buffers, "_PINNING", ("cpu",))
        monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available=False: torch.device("cpu"))
        monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
        monkeypatch.setattr(torch.accelerator, "current_device_index", lambda: 0)
        monkeypatch.setattr(torch.accelerator, "set_device_index", lambda index: None)
        monkeypatch.setattr(torch, "empty", self._torch_empty)
        monkeypatch.setattr(torch.Tensor, "is_pinned", lambda tensor: self._find(tensor) is not None)
        monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: self._pin(tensor))
        monkeypatch.setattr(torch.Tensor, "to", lambda tensor, *args, **options: self._to(tensor, *args, **options))

    def queue(self, work: Callable[..., Any], *given: Any) -> "Future[Any]":
        """Put work at the end of the stream."""
        return self._stream.submit(work, *given)

    def close(self) -> None:
        self._stream.shutdown()

    def _torch_empty(self, *size: Any, pin_memory: bool = False, **options: Any) -> Tensor:
        if not pin_memory:
            return _empty(*size, **options)
        like = _empty(*size, **options, device="meta")
        return self._allocate(like)

    def _allocate(self, like: Tensor) -> Tensor:
        num_bytes = sum((n - 1) * step for n, step in zip(like.shape, like.stride(), strict=True)) + 1
        num_bytes = like.element_size() * num_bytes if like.numel() else 0
        if not num_bytes:
            return _empty_strided(like.shape, like.stride(), dtype=like.dtype)
        rounded = 1 << (num_bytes - 1).bit_length()
        with self._lock:
            free = self._free[rounded]
            block = next((block for block in free if all(copy.done() for copy in block.copies)), None)
            if block is None:
                block = _Block(rounded)
                self.blocks.append(block)
            else:
                free.remove(block)
                block.copies.clear()
            memory = block.give(num_bytes, free.append)
        return memory.view(like.dtype).as_strided(like.shape, like.stride())

    def _pin(self, tensor: Tensor) -> Tensor:
        return tensor if tensor.is_pinned() else self._allocate(tensor).copy_(tensor)

    def _to(self, tensor: Tensor, *args: Any, non_blocking: bool = False, **options: Any) -> Tensor:
        if not non_blocking:
            return _to(tensor, *args, **options)
        copy = _empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype)
        block = self._find(tensor)
        if block is None:
            self.num_not_pinned += tensor.numel() > 0
            return copy.copy_(tensor)
        # Of the block and not of the tensor: a queued copy keeps nothing alive.
        memory = block.memory[tensor.data_ptr() - block.address :]
        memory = memory[: len(memory) // tensor.element_size() * tensor.element_size()].view(tensor.dtype)
        done = self.queue(copy.copy_, memory.as_strided(tensor.shape, tensor.stride()))
        if tensor.untyped_storage()._cdata == block.storage or tensor.data_ptr() == block.address:
            block.copies.append(done)
        return copy

    def _find(self, tensor: Tensor) -> _Block | None:
        """The block in which a tensor lies, as the driver knows it."""
        address = tensor.data_ptr()
        return next((b for b in self.blocks if b.address <= address < b.address + len(b.memory)), None)
