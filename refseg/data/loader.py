"""Loads the batches of one rank in the order that `order.py` defines. A run can be resumed after any batch.

The main process decides what a batch contains, and a worker packs the batch. A worker reads, checks and decodes each
image once, and draws masks at the network's input size. Workers keep no state between batches, so the number of workers
changes only the speed.
"""

import hashlib
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.data_loader import DataLoaderShard, prepare_data_loader
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset, Sampler

from refseg.arguments import check_number
from refseg.cache_files import cache_folder
from refseg.data.batch import Batch
from refseg.data.buffers import can_pin, memory_kind
from refseg.data.image_cache import ImageCache
from refseg.data.index import ManifestIndex
from refseg.data.order import ORDER_VERSION, BatchPlan, Cursor, EpochOrder
from refseg.data.packer import Failed, Packed, Packer
from refseg.data.transforms import Geometry
from refseg.data.worker_death import report_worker_death
from refseg.errors import DatasetError, TrainingError, UsageError
from refseg.reading import Reading

_BATCHES_AHEAD = 2
"""Batches per worker that are packed ahead; torch's own loader has the same default."""

_SIGNAL_SECONDS = 2.0
"""Time to wait for the signal of a process's death, which may arrive after its connections have broken."""

_STEPS_AHEAD = 64
"""Number of steps for whose shards the order of download is planned. Later steps need almost every shard anyway."""


class RefLoader:
    """The batches of one rank, epoch by epoch.

    Iterating gives the batches of the epoch that `set_epoch` or `load_cursor` chose. It changes no state, so a second
    iteration gives the same batches.
    """

    def __init__(
        self,
        index: ManifestIndex,
        reading: Reading | None = None,
        *,
        rank: int = 0,
        world_size: int = 1,
        epoch: int = 0,
        only: NDArray[np.int64] | None = None,
        geometry: Geometry | None = None,
        **options: Any,
    ) -> None:
        """Plan the epochs of one rank.

        Args:
            index: Index of the dataset to read.
            reading: How the dataset is read. If images are decoded on the device, the device is that of the accelerator
                given to `prepare_loader`. If None, `geometry` and `options` specify the reading.
            rank: Rank of this process.
            world_size: Number of processes.
            epoch: The first epoch.
            only: Positions of the samples to read, if not all are wanted. It requires `shuffle` to be off.
            geometry: Geometry from the original picture to the network's input, the same as for evaluation.
            options: Further attributes of `Reading`, such as `global_batch`, `num_tokens` or `sampling`.

        Raises:
            UsageError: If a setting has an unknown value, or a number is too low. If the global batch is not a multiple
                of the number of processes. If the rank or epoch does not exist. If `reading` is given together with
                `geometry` or `options`.
        """
        if reading is None and geometry is not None:
            reading = Reading(geometry=geometry.kind, input_size=geometry.size, image_mean=geometry.mean, **options)
        elif reading is None or geometry is not None or options:
            raise UsageError(
                "RefLoader takes either a Reading, or a geometry with attributes of a Reading; found both or neither"
            )
        check_number("world_size", world_size, least=1)
        check_number("rank", rank, least=0)
        if reading.global_batch % world_size:
            raise UsageError(
                f"a global batch of {reading.global_batch} cannot be divided evenly among {world_size} processes; "
                f"expected a multiple of {world_size}"
            )
        if rank >= world_size:
            raise UsageError(f"found rank {rank} of {world_size} processes; expected 0 to {world_size - 1}")
        self.index = index
        self.reading = reading
        self._only = only
        self._plans = _Plans(self._order(epoch), rank=rank, world_size=world_size)
        memory = memory_kind()
        packer = Packer(index, reading, cache=_open_cache(index, reading), memory=memory)
        # Each "batch of samples" for torch is a list of one plan. `batch_size=None` with a sampler would be simpler,
        # but accelerate rebuilds a DataLoader from dataset and batch_sampler and would silently drop the sampler.
        self.dataloader: DataLoader[Packed | Failed]
        """torch's loader, which gives the results of the workers; `prepare_loader` wraps it."""
        torch_options: dict[str, Any] = {"collate_fn": _only, "pin_memory": memory == "pinned"}
        if reading.worker_kind == "threads" and reading.num_workers:
            ahead = _Ahead(self._plans, packer, reading.num_workers)
            self.dataloader = DataLoader(_Results(), batch_sampler=ahead, **torch_options)
        else:
            self.dataloader = DataLoader(
                packer,
                batch_sampler=self._plans,
                num_workers=reading.num_workers,
                persistent_workers=reading.num_workers > 0,
                **torch_options,
            )

    def _order(self, epoch: int) -> EpochOrder:
        return EpochOrder(self.index, self.reading, epoch, self._only)

    def __iter__(self) -> Iterator[Batch]:
        """Yield the batches from the start (or the loaded cursor) to the end of the epoch, in the CPU's memory.

        Raises:
            DatasetError: If a sample cannot be read.
            TrainingError: If a worker process dies while the main thread waits for a batch. At any other time torch
                raises a RuntimeError in the main thread; `report_worker_death` turns it into the same error.
        """
        return _unpacked(self.dataloader, torch.device("cpu"))

    def __len__(self) -> int:
        """Number of batches of the next iteration, which is the same on all ranks.

        It is `steps_per_epoch`, or fewer after `load_cursor`.
        """
        return len(self._plans)

    @property
    def steps_per_epoch(self) -> int:
        """Number of batches of a whole epoch."""
        return self._plans.order.num_steps

    @property
    def epoch(self) -> int:
        """The epoch of the next iteration."""
        return self._plans.order.epoch

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next iteration, which begins at its start."""
        self._plans.start = 0
        if epoch != self.epoch:
            self._plans.order = self._order(epoch)

    def cursor(self, steps_done: int) -> Cursor:
        """Return the position of the run in the epoch, for a checkpoint.

        Args:
            steps_done: Number of finished steps of this epoch, including those before a resume. The caller must count
                them. The loader does not know which batches were used, because workers and accelerate read ahead.
        """
        return Cursor(
            digest=self.index.digest,
            seed=self.reading.seed,
            epoch=self.epoch,
            samples_done=steps_done * self.reading.global_batch,
            order=self.reading.order_name,
        )

    def load_cursor(self, cursor: Cursor) -> None:
        """Resume at a cursor. The cursor may come from a run with other numbers of ranks and workers.

        Raises:
            DatasetError: If the cursor belongs to another dataset, seed, order or global batch.
        """
        if cursor.order_version != ORDER_VERSION:
            raise DatasetError(
                f"the run was stopped in the order of version {cursor.order_version}, but this release of refseg has "
                f"version {ORDER_VERSION}, which would repeat some samples and skip others; resume with the release "
                "that started the run, or start a new run"
            )
        if cursor.digest != self.index.digest:
            raise DatasetError(
                f"{self.index.folder}: the run was stopped on the dataset with digest {cursor.digest[:12]}, found "
                f"{self.index.digest[:12]}; resume with the same dataset and splits, or start a new run"
            )
        if cursor.seed != self.reading.seed:
            raise DatasetError(
                f"the run was stopped with seed {cursor.seed}, found {self.reading.seed}; resume with the same seed"
            )
        order = self._order(cursor.epoch)
        if cursor.order != self.reading.order_name:
            raise DatasetError(
                f"the run was stopped in the order {cursor.order!r}, found {self.reading.order_name!r}, which would "
                "repeat some samples and skip others; resume with the same sampling, expressions_per_image and shuffle"
            )
        batch = self.reading.global_batch
        start, left = divmod(cursor.samples_done, batch)
        if left or not 0 <= start <= order.num_steps:
            raise DatasetError(
                f"the run was stopped after {cursor.samples_done} samples of epoch {cursor.epoch}, which is not the "
                f"end of a global batch of {batch} in an epoch of {order.num_steps} steps; resume with the global "
                "batch of that run"
            )
        self._plans.order = order
        self._plans.start = start


def _open_cache(index: ManifestIndex, reading: Reading) -> ImageCache | None:
    if not reading.cache_bytes:
        return None
    return ImageCache(
        cache_folder("decoded"), digest=index.digest, geometry=Geometry.of(reading), num_images=index.num_images,
        max_bytes=reading.cache_bytes,
    )  # fmt: skip


class PreparedLoader:
    """The batches of one rank on its device. It is created by `prepare_loader`."""

    def __init__(self, dataloader: DataLoaderShard, device: torch.device) -> None:
        self._dataloader = dataloader
        self._device = device

    def __iter__(self) -> Iterator[Batch]:
        """Yield the batches from the start (or the loaded cursor) to the end of the epoch.

        Raises:
            DatasetError: If a sample cannot be read.
            TrainingError: If a worker process dies while the main thread waits for a batch.
        """
        return _unpacked(self._dataloader, self._device)

    def __len__(self) -> int:
        """Number of batches of the next iteration."""
        return len(self._dataloader)


def _unpacked(dataloader: "DataLoader[Packed | Failed] | DataLoaderShard", device: torch.device) -> Iterator[Batch]:
    reported = report_worker_death(signal_seconds=_SIGNAL_SECONDS) if dataloader.num_workers else nullcontext()
    with reported:
        for packed in dataloader:
            yield packed.unpack(device)


def prepare_loader(accelerator: Accelerator, loader: RefLoader) -> PreparedLoader:
    """Wrap a loader so that accelerate moves the batches to the device and detects the end of the epoch.

    Never give a `RefLoader` to `accelerator.prepare`. The loader already yields only the part of one rank, and
    accelerate would silently split that part again. This function configures accelerate as if there were one process,
    so that it splits nothing. `set_epoch` and `load_cursor` of `loader` also apply to the result. Do not use
    `gather_for_metrics` with the result. Leave out the expressions with `is_pad` instead.

    Args:
        accelerator: The accelerator of this process.
        loader: The loader of this rank.

    Raises:
        TrainingError: If the loader was created for another number of processes. If two ranks have the same samples.
    """
    _refuse_overlap(accelerator, loader)
    dataloader = prepare_data_loader(
        loader.dataloader,
        device=accelerator.device,
        num_processes=1,
        process_index=0,
        put_on_device=True,
        dispatch_batches=False,
        non_blocking=can_pin(accelerator.device),
    )
    return PreparedLoader(dataloader, accelerator.device)


def _refuse_overlap(accelerator: Accelerator, loader: RefLoader) -> None:
    """Compare ranks, options and first samples over all processes."""
    plans = loader._plans
    first = plans.order.plan(0, rank=plans.rank, world_size=plans.world_size)
    reading = loader.reading
    same = (reading.order_name, reading.global_batch, reading.remainder, reading.seed, loader._only,
            loader.index.digest, loader.epoch, plans.start)  # fmt: skip
    fingerprint = int.from_bytes(hashlib.sha256(repr(same).encode()).digest()[:7])
    found = torch.tensor(
        [
            plans.rank, plans.world_size, fingerprint,
            int(first.is_pad[0]), int(plans.order.units(0, rank=plans.rank, world_size=plans.world_size)[0]),
            int(first.row_index[0]), int(first.sentence_index[0]),
        ],
        device=accelerator.device,
    )  # fmt: skip
    gathered = accelerator.gather(found).view(-1, len(found)).tolist()
    ranks = [tuple(facts[:2]) for facts in gathered]
    if ranks != [(rank, accelerator.num_processes) for rank in range(accelerator.num_processes)]:
        raise TrainingError(
            f"the loaders of {accelerator.num_processes} processes were made for (rank, world size) {ranks}; "
            "give RefLoader the accelerator's process_index and num_processes"
        )
    units = [facts[4] for facts in gathered if not facts[3]]  # a mix may repeat a sample, but each copy is its own unit
    samples = [tuple(facts[5:]) for facts in gathered if not facts[3]]
    if len({facts[2] for facts in gathered}) > 1 or len(set(units)) < len(units):
        raise TrainingError(
            f"the loaders of {accelerator.num_processes} processes do not fit together (first row and sentence "
            f"of each: {samples}); give all processes the same dataset, splits, seed, sampling, batch and cursor"
        )


class _Plans(Sampler[list[BatchPlan]]):
    """The plans of one rank's batches from step `start`. Each plan is in a list of length 1.

    The class has no `set_epoch`. accelerate would call this method with its own count of iterations, which begins at 0
    after a resume.
    """

    def __init__(self, order: EpochOrder, *, rank: int, world_size: int) -> None:
        self.order = order
        self.rank = rank
        self.world_size = world_size
        self.start = 0

    def __iter__(self) -> Iterator[list[BatchPlan]]:
        order = self.order  # set_epoch does not change an epoch that has started
        soon = range(self.start, min(self.start + _STEPS_AHEAD, order.num_steps))
        if soon and order.index.is_remote:
            rows = [order.plan(step, rank=self.rank, world_size=self.world_size).row_index for step in soon]
            order.index.fetch_ahead(order.index.row_image[np.concatenate(rows)])
        for step in range(self.start, order.num_steps):
            order.index.check_ahead()
            yield [order.plan(step, rank=self.rank, world_size=self.world_size)]

    def __len__(self) -> int:
        return self.order.num_steps - self.start


class _Ahead(Sampler[list["Future[Packed | Failed]"]]):
    """The batches that threads pack in advance of the requested batch, in order."""

    def __init__(self, plans: _Plans, packer: Packer, num_threads: int) -> None:
        self._plans = plans
        self._packer = packer
        self._num_threads = num_threads

    def __iter__(self) -> Iterator[list["Future[Packed | Failed]"]]:
        pool = ThreadPoolExecutor(self._num_threads, thread_name_prefix="refseg-loader")
        at_work: deque[Future[Packed | Failed]] = deque()
        try:
            for (plan,) in self._plans:
                at_work.append(pool.submit(self._packer.__getitem__, plan))
                if len(at_work) > _BATCHES_AHEAD * self._num_threads:
                    yield [at_work.popleft()]
            while at_work:
                yield [at_work.popleft()]
        finally:
            pool.shutdown(cancel_futures=True)

    def __len__(self) -> int:
        return len(self._plans)


class _Results(Dataset[Packed | Failed]):
    """Waits for the results of `_Ahead`."""

    def __getitem__(self, future: "Future[Packed | Failed]") -> Packed | Failed:
        return future.result()


def _only(batches: Sequence[Packed | Failed]) -> Packed | Failed:
    return batches[0]
