"""Computes how much a training run on a cluster will read, in steps, bytes, memory and variety of a batch."""

import json
from dataclasses import dataclass, fields

import numpy as np
import pyarrow as pa

from refseg.data.index import ManifestIndex
from refseg.data.order import BatchDiversity, Cursor, EpochOrder, batch_diversity
from refseg.dataset.shard_cache import LIMIT_VARIABLE, ShardCache
from refseg.errors import UsageError
from refseg.reading import Reading

_MEASURED_STEPS = 64
_BATCHES_IN_FLIGHT = 3  # per worker: two requested ahead, and the one being packed
_MUCH_DROPPED = 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadPlan:
    """One epoch of a run, and the resources that it needs on each node.

    Attributes:
        dataset: Dataset id.
        splits: The splits that are read.
        digest: Digest of the index.
        num_nodes: Number of machines.
        num_ranks: Number of processes on all nodes.
        num_workers: Number of packing threads or processes of each rank.
        global_batch: Number of samples per step over all ranks.
        samples: Number of samples of an epoch without padding. Depending on the sampling, they are refs, sentences or
            images.
        steps: Number of steps of an epoch. It is equal on all ranks.
        dropped: Number of samples that an epoch leaves out.
        padded: Number of repeated samples that fill the last step. They are marked as padding.
        diversity: Average variety of the first global batches.
        images_per_rank: Number of images that a rank reads and decodes in an epoch.
        image_bytes_per_node: Bytes of samples that one node reads in an epoch.
        shard_bytes: Bytes of all shards.
        remote_shard_bytes: Bytes of the shards at URLs. Each node downloads them once.
        cache_bytes: Largest size of the node's cache in bytes. None if no shard is remote.
        index_bytes: Size of the index in bytes, counted for each rank. (A mapped index is shared by a node's ranks.)
        worker_bytes: Memory of the batches of each worker, in bytes.
        decoded_bytes: Size of all images after resizing to the input, in bytes.
        cursor_bytes: Size of the cursor in a checkpoint, as JSON.
        warnings: Problems of the plan, each with advice for the user.
    """

    dataset: str
    splits: tuple[str, ...]
    digest: str
    num_nodes: int
    num_ranks: int
    num_workers: int
    global_batch: int
    samples: int
    steps: int
    dropped: int
    padded: int
    diversity: BatchDiversity
    images_per_rank: int
    image_bytes_per_node: int
    shard_bytes: int
    remote_shard_bytes: int
    cache_bytes: int | None
    index_bytes: int
    worker_bytes: int
    decoded_bytes: int
    cursor_bytes: int
    warnings: tuple[str, ...]

    @property
    def memory_per_node(self) -> int:
        """Bytes of the index and batches of all ranks of a node, without models.

        A rank without workers packs its batches itself and counts as one worker.
        """
        return self.num_ranks // self.num_nodes * (self.index_bytes + max(1, self.num_workers) * self.worker_bytes)


def plan_reading(index: ManifestIndex, reading: Reading, *, num_nodes: int, ranks_per_node: int) -> ReadPlan:
    """Plan the first epoch of a run. Images and bytes are extrapolated from its first 64 steps.

    Args:
        index: Index of the dataset.
        reading: How the dataset is read. The seed makes no difference.
        num_nodes: Number of machines.
        ranks_per_node: Number of processes on each machine, one per GPU.

    Raises:
        UsageError: If a number is too low. If the order is impossible (see `EpochOrder`).
    """
    if num_nodes < 1 or ranks_per_node < 1:
        raise UsageError(
            f"found {num_nodes} nodes with {ranks_per_node} processes on each; expected at least 1 of each"
        )
    num_ranks, global_batch = num_nodes * ranks_per_node, reading.global_batch
    order = EpochOrder(index, reading, epoch=0)
    divides = global_batch % num_ranks == 0
    planned, left_over = order.num_steps * global_batch, order.num_units % global_batch
    diversity = batch_diversity(order, num_steps=_MEASURED_STEPS)
    images, image_bytes = _images_per_rank(order, num_ranks if divides else 1)
    if not divides:
        images, image_bytes = images / num_ranks, image_bytes / num_ranks
    expressions = diversity.expressions / num_ranks
    images_per_batch = global_batch / num_ranks
    mask_bytes = reading.image_bytes // 3
    batch_bytes = reading.image_bytes * images_per_batch + (mask_bytes + 9 * reading.num_tokens) * expressions
    remote_bytes = sum(tar.num_bytes for tar in index.shards if tar.is_remote)
    cache = ShardCache.of_this_machine() if remote_bytes else None
    cache_bytes = (cache.limit_bytes if cache else 0) if remote_bytes else None
    cursor = Cursor(digest=index.digest, seed=2**31, epoch=9999, samples_done=planned, order=reading.order_name)
    return ReadPlan(
        dataset=index.descriptor.dataset,
        splits=index.splits,
        digest=index.digest,
        num_nodes=num_nodes,
        num_ranks=num_ranks,
        num_workers=reading.num_workers,
        global_batch=global_batch,
        samples=order.num_units,
        steps=order.num_steps,
        dropped=left_over if reading.remainder == "drop" else 0,
        padded=planned - order.num_units if reading.remainder == "pad" else 0,
        diversity=diversity,
        images_per_rank=round(images),
        image_bytes_per_node=round(image_bytes * ranks_per_node),
        shard_bytes=sum(tar.num_bytes for tar in index.shards),
        remote_shard_bytes=remote_bytes,
        cache_bytes=cache_bytes,
        index_bytes=_index_bytes(index),
        worker_bytes=round(_BATCHES_IN_FLIGHT * batch_bytes),
        decoded_bytes=index.num_images * reading.image_bytes,
        cursor_bytes=len(json.dumps(cursor.to_dict())),
        warnings=tuple(_warnings(order, num_ranks, remote_bytes, cache_bytes)),
    )


def _images_per_rank(order: EpochOrder, num_ranks: int) -> tuple[float, float]:
    """Return the number of images that rank 0 reads in an epoch, and the bytes of their samples.

    An image that occurs several times in a batch is read once and counted once.
    """
    num_images = num_bytes = 0
    steps = min(_MEASURED_STEPS, order.num_steps)
    for step in range(steps):
        plan = order.plan(step, rank=0, world_size=num_ranks)
        images = np.unique(order.index.row_image[plan.row_index])
        num_images += len(images)
        num_bytes += int(order.index.sample_bytes[images].sum())
    return num_images * order.num_steps / steps, num_bytes * order.num_steps / steps


def _index_bytes(index: ManifestIndex) -> int:
    values = (getattr(index, field.name) for field in fields(index))
    return sum(value.nbytes for value in values if isinstance(value, np.ndarray | pa.Array | pa.ChunkedArray))


def _warnings(order: EpochOrder, num_ranks: int, remote_bytes: int, cache_bytes: int | None) -> list[str]:
    found = []
    batch, samples = order.reading.global_batch, order.num_units
    if batch % num_ranks:
        lower, upper = batch // num_ranks * num_ranks, -(-batch // num_ranks) * num_ranks
        choices = f"{lower} or {upper}" if lower else str(upper)
        found.append(
            f"a global batch of {batch} cannot be divided evenly among {num_ranks} processes, so training will refuse "
            f"it; use {choices}"
        )
    if num_ranks > samples:
        found.append(
            f"{num_ranks} processes share {samples} samples, so {num_ranks - samples} of them read only padding; "
            "use fewer processes"
        )
    left_over = samples % batch
    if order.reading.remainder == "drop" and left_over > _MUCH_DROPPED * samples:
        found.append(
            f"each epoch leaves out {left_over} of {samples} samples ({left_over / samples:.1%}), different ones in "
            "each epoch; a smaller batch leaves out fewer, and remainder pad leaves out none"
        )
    if cache_bytes is not None and remote_bytes > cache_bytes:
        found.append(
            f"the cache of this node holds at most {cache_bytes / 1e9:.3f} GB of {remote_bytes / 1e9:.3f} GB of remote "
            "shards; the rest is read over the network in every epoch with one request per image: give the cache a "
            f"larger disk or limit (REFSEG_CACHE, {LIMIT_VARIABLE}), or copy the dataset to the node"
        )
    return found
