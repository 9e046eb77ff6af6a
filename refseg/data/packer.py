"""Creates a batch from its plan. Reads, decodes and resizes images, and draws masks, into a few flat tensors."""

import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

from refseg.data.batch import Batch
from refseg.data.buffers import Buffers, MemoryKind, SharedBuffers, give_back, give_back_when_gone
from refseg.data.image_cache import ImageCache
from refseg.data.index import ManifestIndex
from refseg.data.jpegs import Jpegs
from refseg.data.order import BatchPlan
from refseg.data.transforms import Geometry
from refseg.errors import RefsegError
from refseg.reading import Reading
from refseg.tokenizer import EOS_ID


class Packed(NamedTuple):
    """A batch as a worker returns it."""

    batch: Batch
    """The batch; its images are empty if `jpegs` are given."""
    jpegs: Jpegs | None
    """Coded images that will be decoded on the device; None if `batch` has the images."""
    is_lent: bool
    """Whether the memory of images and masks belongs to a worker process (`buffers.SharedBuffers`)."""

    def unpack(self, device: torch.device) -> Batch:
        """Return the whole batch, with its images decoded.

        Args:
            device: Device of the batch, on which `jpegs` are decoded.

        Raises:
            DatasetError: If an image cannot be decoded.
        """
        images, masks = self.batch.images, self.batch.masks
        # On another device the tensors are copies, and the copying may still be reading the lent memory. It is then
        # not given back, and the worker allocates new memory.
        if self.is_lent and images.is_cpu:
            images, masks = give_back_when_gone(images), give_back_when_gone(masks)
        if self.jpegs is not None:
            images = self.jpegs.decode(device)
        return self.batch._replace(images=images, masks=masks)

    def pin_memory(self) -> "Packed":
        """Return a copy with all tensors in pinned memory. torch's loader calls this method.

        Tensors that are already pinned are not copied. The others are copied within the CPU's memory. This copy has
        ended when `Tensor.pin_memory` returns, so memory that a worker lent may be given back at once.
        """
        batch = Batch(*(tensor.pin_memory() for tensor in self.batch))
        if self.is_lent:
            give_back(self.batch.images)
            give_back(self.batch.masks)
        return Packed(batch, self.jpegs, is_lent=False)

    def __reduce__(self) -> tuple[Callable[..., "Packed"], tuple[object, ...]]:
        """Pickle for another process. Small tensors become part of the message.

        torch would pass each tensor as a file of shared memory. For a few bytes this is slower than a message.
        """
        large = {"images": self.batch.images, "masks": self.batch.masks}
        small = {name: tensor.numpy() for name, tensor in self.batch._asdict().items() if name not in large}
        return _receive, (large, small, self.jpegs, self.is_lent)


def _receive(large: dict[str, Tensor], small: dict[str, Any], jpegs: Jpegs | None, is_lent: bool) -> Packed:
    tensors = {name: torch.from_numpy(array) for name, array in small.items()}
    return Packed(Batch(**large, **tensors), jpegs, is_lent)


@dataclass(frozen=True, slots=True)
class Failed:
    """An error that a worker process returns. If it were raised, torch would wrap its message in another message."""

    error: RefsegError
    where: str
    """The worker's traceback."""

    def unpack(self, device: torch.device) -> Batch:  # noqa: ARG002  # as of `Packed`
        """Raise the worker's error in the training process.

        Raises:
            RefsegError: The worker's error. The cause of the error shows the worker's traceback.
        """
        raise self.error from WorkerTraceback(self.where)


class WorkerTraceback(Exception):
    """The traceback of an error in a worker process. Python shows it above the error, as the cause."""

    def __str__(self) -> str:
        return f"in a worker process:\n{self.args[0]}"


class Packer(Dataset[Packed | Failed]):
    """Converts plans into batches. It keeps no state between batches, so any worker can pack any batch.

    Args:
        index: Index of the splits that are read.
        reading: How samples are read. With sampling by images, a batch contains each image once for all its
            expressions. Otherwise it contains a copy of the image for each expression.
        cache: Cache of resized images, used if images are decoded on the CPU. If None, an image is decoded each time.
        memory: Kind of the memory to pack into (see `buffers.MemoryKind`).
    """

    def __init__(
        self,
        index: ManifestIndex,
        reading: Reading,
        *,
        cache: ImageCache | None,
        memory: MemoryKind,
    ) -> None:
        self.index = index
        self.reading = reading
        self.geometry = Geometry.of(reading)
        self.cache = cache
        self._lends = memory != "fresh"
        self._own_buffers = Buffers(memory)
        self._shared_buffers = SharedBuffers()

    def __getitem__(self, plan: BatchPlan) -> Packed | Failed:
        """Read and decode the images of a plan, and draw its masks.

        Raises:
            DatasetError: If a sample cannot be read. A worker process returns the error as `Failed` instead.
        """
        try:
            return self._pack(plan)
        except RefsegError as error:
            if get_worker_info() is None:
                raise
            return Failed(error, traceback.format_exc())

    def _pack(self, plan: BatchPlan) -> Packed:
        pictures = self.index.row_image[plan.row_index]
        if self.reading.sampling == "images":
            is_first = np.append(True, np.diff(pictures) != 0)  # expressions of one image are adjacent
            image_index = np.cumsum(is_first) - 1
            pictures = pictures[is_first]
        else:
            image_index = np.arange(len(pictures))
        on_device = self.reading.decode == "device"
        jpegs = Jpegs.read(self.index, pictures.tolist(), self.geometry) if on_device else None
        token_ids, token_mask = self._tokens(plan)
        batch = Batch(
            images=self._images([] if on_device else pictures.tolist()),
            image_index=torch.from_numpy(image_index),
            masks=self._masks(plan),
            token_ids=token_ids,
            token_mask=token_mask,
            row_index=torch.from_numpy(plan.row_index),
            sentence_index=torch.from_numpy(plan.sentence_index),
            is_pad=torch.from_numpy(plan.is_pad),
            num_global=torch.tensor(plan.num_global),
        )
        return Packed(batch, jpegs, is_lent=self._is_lending())

    def _is_lending(self) -> bool:
        """Return True in a worker process that lends its memory. The training process gives it back after use."""
        return self._lends and get_worker_info() is not None

    def _empty(self, *shape: int) -> Tensor:
        """Return uninitialised memory for a tensor of the batch."""
        return (self._shared_buffers if self._is_lending() else self._own_buffers).empty(shape)

    def _images(self, pictures: Sequence[int]) -> Tensor:
        """Decode images to `(I, 3, H, W)` in channels_last memory.

        Decoding returns this layout, and convolutions are fast with it.
        """
        slots = self._empty(len(pictures), *self.geometry.size, 3)
        done: dict[int, int] = {}
        for slot, image in enumerate(pictures):
            if image in done:  # two refs of a batch may share an image, which is decoded once and copied
                slots[slot] = slots[done[image]]
            elif self.cache is None or not self.cache.read(image, slots[slot]):
                size = (int(self.index.height[image]), int(self.index.width[image]))
                self.geometry.apply_image(self.index.decode_image(image), size, out=slots[slot])
                if self.cache is not None:
                    self.cache.write(image, slots[slot])
            done[image] = slot
        return slots.permute(0, 3, 1, 2)

    def _masks(self, plan: BatchPlan) -> Tensor:
        masks = self._empty(len(plan.row_index), *self.geometry.size)
        slots = masks.numpy()
        pairs = zip(plan.row_index.tolist(), plan.sentence_index.tolist(), strict=True)
        for slot, (row, sentence) in enumerate(pairs):
            self.geometry.apply_mask(self.index.run_ends(row, sentence), self.index.size(row), out=slots[slot])
        return masks

    def _tokens(self, plan: BatchPlan) -> tuple[Tensor, Tensor]:
        sentences = [
            self.index.token_ids(row, sentence)
            for row, sentence in zip(plan.row_index.tolist(), plan.sentence_index.tolist(), strict=True)
        ]
        lengths = np.array([min(len(ids), self.reading.num_tokens) for ids in sentences])
        length = int(lengths.max()) if self.reading.trim_tokens else self.reading.num_tokens
        token_ids = np.zeros((len(sentences), length), np.int64)
        for i, ids in enumerate(sentences):
            token_ids[i, : lengths[i]] = ids[:length]
            token_ids[i, lengths[i] - 1] = EOS_ID  # a sentence that was cut lost its EOS
        return torch.from_numpy(token_ids), torch.from_numpy(np.arange(length) < lengths[:, None])
