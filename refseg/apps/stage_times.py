"""Measures each stage of a sample between shard and model, on this machine and the user's dataset.

All figures are medians over batches, because other work on the machine disturbs some of the batches.
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
"""Stages that run once for each image of a batch."""
FROM_CACHE = "from the cache"
"""Stage that replaces these for images in the cache of decoded images."""
EXPRESSION_STAGES = ("masks", "tokens and packing")
"""Stages that run for each expression."""
HAND_OFF = "hand-off"
"""Stage of a worker process that copies each batch into memory shared with the training process."""
MAIN_STAGES = ("receive", "to device")
"""Stages of the training process, for all workers; it receives batches only from worker processes."""

_TIMED_STEPS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class StageTimes:
    """Seconds per sample on one core.

    Attributes:
        stages: Seconds by the name of the stage, in order. `read` is measured from the page cache if the images fit
            into memory, else from the disk. `FROM_CACHE` is measured from the page cache.
        disk_read: Seconds of `read` after the bytes were removed from the page cache. None if shards are remote.
        expressions: Mean number of expressions per sample.
    """

    stages: dict[str, float]
    disk_read: float | None
    expressions: float


def time_stages(index: ManifestIndex, reading: Reading, *, seconds: float) -> StageTimes:
    """Run each stage separately, batch after batch, as one worker does.

    Args:
        index: Index of the splits that are read.
        reading: How the splits are read. The global batch contains the samples of one process in a step.
        seconds: Approximate time in seconds. At least one batch of each stage is measured.
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
        stages["read"] = max(0.0, stages["read"] - stages["hash"])  # `read` includes the check of the hash
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
    """Return the samples per second of the loader, excluding the start of the workers, and a batch.

    With a cache of decoded images, the images of the measured samples are in the cache, as far as they fit.
    """
    loader = RefLoader(index, reading)
    ahead = 2 * reading.num_workers + 1  # batches that the workers prepared before the measurement starts
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
    """Read the first batches of the epoch for about this time, and return their number."""
    num_steps, until = 0, time.monotonic() + seconds
    for _ in loader:
        num_steps += 1
        if time.monotonic() > until:
            break
    for _ in islice(loader, num_steps):  # a second pass caches what the workers read ahead
        pass
    return num_steps


def time_to_device(batch: Batch, *, num_samples: int) -> float:
    """Return the seconds per sample to copy a batch to the GPU."""
    begin = time.perf_counter()
    for _ in range(_TIMED_STEPS):
        _on_device(batch, torch.device("cuda"))
    torch.cuda.synchronize()
    return (time.perf_counter() - begin) / _TIMED_STEPS / num_samples


def time_step(recipe: Recipe, batch: Batch) -> float:
    """Return the seconds of a forward and backward pass of the recipe's model with random weights, in its precision."""
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

    step()  # the first step includes one-time preparation
    times = []
    for _ in range(_TIMED_STEPS):
        begin = time.perf_counter()
        step()
        times.append(time.perf_counter() - begin)
    return float(np.median(times))


def _batches(
    index: ManifestIndex, reading: Reading
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]]:
    """Yield images, rows and sentences of one batch after another, without end."""
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
    """Add the seconds of each stage of one batch to `spent`. Reading includes the check of the hash."""
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
    slot = torch.zeros(*geometry.size, 3, dtype=torch.uint8)  # allocated once, as in the loader
    _timed(
        spent,
        "resize",
        lambda: [geometry.apply_image(*of_one, out=slot) for of_one in zip(pictures, sizes, strict=True)],
    )
    for slot_number in range(len(images)):
        cache.write(slot_number, slot)
    _timed(spent, FROM_CACHE, lambda: [cache.read(slot_number, slot) for slot_number in range(len(images))])
    targets = [
        (index.run_ends(row, sentence), index.size(row))
        for row, sentence in zip(rows.tolist(), sentences.tolist(), strict=True)
    ]
    mask = np.zeros(geometry.size, np.uint8)
    _timed(spent, "masks", lambda: [geometry.apply_mask(ends, size, out=mask) for ends, size in targets])


def _time_packing(index: ManifestIndex, reading: Reading, *, seconds: float) -> tuple[float, Batch]:
    """Return the seconds per sample of all stages of a worker together, and a batch."""
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
    """Return the seconds that a worker needs to pass on a batch, and that this process needs to receive it."""
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
    """Returns a new copy of a batch each time. A tensor that was passed on once is already in shared memory."""

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
    """Remove a sample's bytes from the page cache, so that the disk is read."""
    descriptor = os.open(index.shards[index.image_shard[image]].address, os.O_RDONLY | os.O_CLOEXEC)
    try:
        start, length = int(index.image_offset[image]), int(index.sample_bytes[image])
        os.posix_fadvise(descriptor, start, length, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


def _fits_in_memory(num_bytes: int) -> bool:
    """Return True if the page cache can keep this many bytes of files during a training run."""
    with Path("/proc/meminfo").open(encoding="ascii") as lines:
        available = next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
    return num_bytes < available / 2


@contextmanager
def _one_thread() -> Iterator[None]:
    """Let torch use one thread, as in a worker of a DataLoader."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(num_threads)
