"""Times what happens to a sample between the shard and the model, on this machine and a dataset of the user's.

All figures are medians over batches: other work on the machine disturbs some batches and not the most.
"""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import cycle, islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar

import numpy as np
import torch
import xxhash
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from refseg.config import Recipe
from refseg.data.batch import Batch
from refseg.data.decode import decode_rgb
from refseg.data.image_cache import ImageCache
from refseg.data.index import ManifestIndex
from refseg.data.loader import RefLoader
from refseg.data.order import EpochOrder
from refseg.data.transforms import Geometry, normalise
from refseg.models import build_model
from refseg.reading import Reading
from refseg.training.losses import LossWeights, training_loss

T = TypeVar("T")

IMAGE_STAGES = ("read", "hash", "decode", "resize")
"""Done once for each image of a batch."""
FROM_CACHE = "from the cache"
"""Done instead, for images that the cache of decoded images holds."""
EXPRESSION_STAGES = ("masks", "tokens and packing")
"""Done for each expression."""
HAND_OFF = "hand-off"
"""Done by a worker that is a process, for each batch: into memory that the training process sees too."""
MAIN_STAGES = ("receive", "to device")
"""Done by the training process, for all workers; it receives from processes alone."""

_TIMED_STEPS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class StageTimes:
    """Seconds per sample, one core at work.

    Attributes:
        stages: By name, in order; `read` is from the system's memory where the images fit there, else from the disk;
            `FROM_CACHE` is from the system's memory.
        disk_read: `read` with the system's memory of those bytes emptied before; None where shards are remote.
        expressions: Per sample, on average.
    """

    stages: dict[str, float]
    disk_read: float | None
    expressions: float


def time_stages(index: ManifestIndex, reading: Reading, *, seconds: float) -> StageTimes:
    """Do each stage by itself, batch after batch, as one worker does.

    Args:
        index: What is read.
        reading: How it is read; the global batch holds the samples of one process in a step.
        seconds: To spend, about; a batch of each is timed at least.
    """
    batches, geometry = _batches(index, reading), Geometry.of(reading)
    with _one_thread(), TemporaryDirectory() as folder:
        num_slots = reading.global_batch
        cache = ImageCache(
            Path(folder), digest=index.digest, geometry=geometry, num_images=num_slots,
            max_bytes=num_slots * reading.image_bytes,
        )  # fmt: skip
        fits = _fits_in_memory(int(index.sample_bytes.sum()))
        until = time.monotonic() + 0.6 * seconds
        spent: dict[str, list[float]] = {name: [] for name in ("disk", *IMAGE_STAGES, FROM_CACHE, "masks")}
        expressions = []
        for images, rows, sentences in batches:
            _time_batch(index, cache, geometry, images, rows, sentences, spent)
            expressions.append(len(rows))
            if time.monotonic() > until:
                break
        stages = {name: float(np.median(times)) / reading.global_batch for name, times in spent.items()}
        disk_read = max(0.0, stages.pop("disk") - stages["hash"])
        stages["read"] = max(0.0, stages["read"] - stages["hash"])  # reading checks the hash
        whole, batch = _time_packing(index, reading, seconds=0.25 * seconds)
        stages["tokens and packing"] = max(0.0, whole - sum(stages.values()) + stages[FROM_CACHE])
        if not fits and not index.is_remote:
            stages["read"] = disk_read
        if reading.num_workers and reading.worker_kind == "processes":
            hand_off, receive = _time_hand_off(batch, seconds=0.15 * seconds)
            stages[HAND_OFF], stages["receive"] = hand_off / reading.global_batch, receive / reading.global_batch
    return StageTimes(
        stages=stages,
        disk_read=None if index.is_remote else disk_read,
        expressions=float(np.mean(expressions)) / reading.global_batch,
    )


def time_delivery(index: ManifestIndex, reading: Reading, *, seconds: float) -> tuple[float, Batch]:
    """Samples per second that the loader gives with its workers, after their start, and a batch.

    With a cache of decoded images, those that are timed find their images there, as far as it has room for them.
    """
    loader = RefLoader(index, reading)
    ahead = 2 * reading.num_workers + 1  # what the workers had ready before the clock starts
    num_steps = _fill_cache(loader, seconds=seconds) if reading.cache_bytes else None
    num_batches, begin = 0, time.monotonic()
    while True:
        for batch in islice(loader, num_steps):
            num_batches += 1
            if num_batches == ahead:
                begin = time.monotonic()
            elif num_batches > ahead and time.monotonic() - begin > seconds:
                return (num_batches - ahead) * reading.global_batch / (time.monotonic() - begin), batch


def _fill_cache(loader: RefLoader, *, seconds: float) -> int:
    """Read the first batches of the epoch, for about so long, and say how many."""
    num_steps, until = 0, time.monotonic() + seconds
    for _ in loader:
        num_steps += 1
        if time.monotonic() > until:
            break
    for _ in islice(loader, num_steps):  # once more, for what the workers read ahead of these
        pass
    return num_steps


def time_to_device(batch: Batch, *, num_samples: int) -> float:
    """Seconds per sample to bring a batch to the GPU."""
    begin = time.perf_counter()
    for _ in range(_TIMED_STEPS):
        _on_device(batch, torch.device("cuda"))
    torch.cuda.synchronize()
    return (time.perf_counter() - begin) / _TIMED_STEPS / num_samples


def time_step(recipe: Recipe, batch: Batch) -> float:
    """Seconds of a forward and a backward pass of the recipe's model, random weights, in its precision."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = build_model(recipe.model, input_size=recipe.data.input_size).to(device).train()
    batch = _on_device(batch, device)
    precision = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(recipe.train.precision)

    def step() -> None:
        with torch.autocast(device.type, precision, enabled=precision is not None):
            images = normalise(batch.images, model.image_mean, model.image_std)
            output = model(images, batch.token_ids, batch.token_mask, batch.image_index)
        loss = training_loss(
            output, batch.masks, LossWeights.of(recipe), is_pad=batch.is_pad, num_global=batch.num_global,
            num_processes=1,
        )  # fmt: skip
        loss.backward()
        model.zero_grad(set_to_none=True)
        if device.type == "cuda":
            torch.cuda.synchronize()

    step()  # the first one also prepares
    times = []
    for _ in range(_TIMED_STEPS):
        begin = time.perf_counter()
        step()
        times.append(time.perf_counter() - begin)
    return float(np.median(times))


def _batches(
    index: ManifestIndex, reading: Reading
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]]:
    """Images, rows and sentences of one batch after the other, for ever."""
    order = EpochOrder(index, reading, epoch=0)
    for step in cycle(range(order.num_steps)):
        plan = order.plan(step, rank=0, world_size=1)
        yield np.unique(index.row_image[plan.row_index]), plan.row_index, plan.sentence_index


def _time_batch(
    index: ManifestIndex,
    cache: ImageCache,
    geometry: Geometry,
    images: NDArray[np.int64],
    rows: NDArray[np.int64],
    sentences: NDArray[np.int64],
    spent: dict[str, list[float]],
) -> None:
    """Add the seconds of each stage of one batch to `spent`; those of reads are with the hash."""
    if index.is_remote:
        spent["disk"].append(0.0)
    else:
        for image in images.tolist():
            _forget(index, image)
        _timed(spent, "disk", lambda: [index.read_image_bytes(image) for image in images.tolist()])
    data = _timed(spent, "read", lambda: [index.read_image_bytes(image) for image in images.tolist()])
    samples = [np.ones(num_bytes, np.uint8) for num_bytes in index.sample_bytes[images].tolist()]
    _timed(spent, "hash", lambda: [xxhash.xxh3_64_intdigest(sample.data) for sample in samples])
    jpegs = [np.frombuffer(bytearray(jpeg), np.uint8) for jpeg in data]
    pictures = _timed(spent, "decode", lambda: [decode_rgb(jpeg) for jpeg in jpegs])
    sizes = list(zip(index.height[images].tolist(), index.width[images].tolist(), strict=True))
    slot = torch.zeros(*geometry.size, 3, dtype=torch.uint8)  # memory in use, as in the loader
    _timed(
        spent,
        "resize",
        lambda: [geometry.apply_image(*of_one, out=slot) for of_one in zip(pictures, sizes, strict=True)],
    )
    for place in range(len(images)):
        cache.write(place, slot)
    _timed(spent, FROM_CACHE, lambda: [cache.read(place, slot) for place in range(len(images))])
    targets = [
        (index.counts(row, sentence), index.size(row))
        for row, sentence in zip(rows.tolist(), sentences.tolist(), strict=True)
    ]
    mask = np.zeros(geometry.size, np.uint8)
    _timed(spent, "masks", lambda: [geometry.apply_mask(counts, size, out=mask) for counts, size in targets])


def _time_packing(index: ManifestIndex, reading: Reading, *, seconds: float) -> tuple[float, Batch]:
    """Seconds per sample of everything a worker does, and a batch."""
    until, times = time.perf_counter() + seconds, []
    while True:
        begin = time.perf_counter()
        for batch in RefLoader(index, replace(reading, num_workers=0, cache_gigabytes=0.0)):
            now = time.perf_counter()
            times.append(now - begin)
            begin = now
            if now > until:
                return float(np.median(times)) / reading.global_batch, batch


def _time_hand_off(batch: Batch, *, seconds: float) -> tuple[float, float]:
    """Seconds that a worker needs to give away a finished batch, and this process to take it."""
    copies: dict[str, list[float]] = {"copy": [], "whole": [], "receive": []}
    for _ in range(_TIMED_STEPS):
        _timed(copies, "copy", lambda: _Copies(batch)[0])
    batches = iter(DataLoader(_Copies(batch), batch_size=None, num_workers=1))
    next(batches)
    until = time.perf_counter() + seconds
    while not copies["whole"] or time.perf_counter() < until:
        busy = time.thread_time()
        _timed(copies, "whole", lambda: next(batches))
        copies["receive"].append(time.thread_time() - busy)
    copy, whole, receive = (float(np.median(times)) for times in copies.values())
    return max(0.0, whole - copy), receive


class _Copies(Dataset[list[torch.Tensor]]):
    """A new copy of a batch each time: a tensor that has been handed over once is shared and costs nothing again."""

    def __init__(self, batch: Batch) -> None:
        self.batch = batch

    def __len__(self) -> int:
        return 1_000_000

    def __getitem__(self, _: int) -> list[torch.Tensor]:
        return [tensor.clone() for tensor in self.batch]


def _timed(spent: dict[str, list[float]], stage: str, work: Callable[[], T]) -> T:
    begin = time.perf_counter()
    result = work()
    spent[stage].append(time.perf_counter() - begin)
    return result


def _on_device(batch: Batch, device: torch.device) -> Batch:
    return Batch(*(tensor.to(device, non_blocking=True) for tensor in batch))


def _forget(index: ManifestIndex, image: int) -> None:
    """Empty the system's memory of a sample's bytes, so that the disk is read."""
    descriptor = os.open(index.shards[index.image_shard[image]].address, os.O_RDONLY | os.O_CLOEXEC)
    try:
        start, length = int(index.image_offset[image]), int(index.sample_bytes[image])
        os.posix_fadvise(descriptor, start, length, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


def _fits_in_memory(num_bytes: int) -> bool:
    """True if the system could keep so many bytes of files in memory, beside a run."""
    with Path("/proc/meminfo").open(encoding="ascii") as lines:
        available = next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
    return num_bytes < available / 2


@contextmanager
def _one_thread() -> Iterator[None]:
    """As in a worker of a DataLoader."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(num_threads)
