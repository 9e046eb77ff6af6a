"""What a training run will read: steps, samples left over, bytes, memory and the variety of a batch, for a cluster."""

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
_BATCHES_IN_FLIGHT = 3  # of a worker: two that torch asks for ahead, and the one being packed
_MUCH_DROPPED = 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadPlan:
    """One epoch of a run, and what it asks of each node.

    Attributes:
        dataset: Dataset id.
        splits: What is read.
        digest: Of the index.
        num_nodes: Machines.
        num_ranks: Processes over all nodes.
        num_workers: Packing threads or processes of each rank.
        global_batch: Samples per step over all ranks.
        samples: Of an epoch, padding not counted: refs, sentences or images, as the sampling says.
        steps: Of an epoch, the same for each rank.
        dropped: Samples an epoch leaves out.
        padded: Repeats in an epoch, marked, that fill its last step.
        diversity: Of the first global batches.
        images_per_rank: Images that a rank reads and decodes in an epoch.
        image_bytes_per_node: Bytes of their samples for one node, in an epoch.
        shard_bytes: Of all shards.
        remote_shard_bytes: Of those at URLs: what each node downloads once.
        cache_bytes: What the node's cache may hold; None where no shard is remote.
        index_bytes: Memory of the index in each rank; large ones are mapped, once for all processes of a node.
        worker_bytes: Memory of batches in each worker.
        decoded_bytes: What all images would fill, resized to the input.
        cursor_bytes: Of the cursor in a checkpoint, as JSON.
        warnings: What will not work or is a pity, with its remedy.
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
        """Bytes of index and batches of all ranks of a node, without models; without workers the process packs."""
        return self.num_ranks // self.num_nodes * (self.index_bytes + max(1, self.num_workers) * self.worker_bytes)


def plan_reading(index: ManifestIndex, reading: Reading, *, num_nodes: int, ranks_per_node: int) -> ReadPlan:
    """Plan the first epoch of a run; images and bytes are those of its first 64 steps, times the steps.

    Args:
        index: What is read.
        reading: How it is read; the seed makes no difference.
        num_nodes: Machines.
        ranks_per_node: Processes on each, one per GPU.

    Raises:
        UsageError: If a number is too low, or the order cannot be (see `EpochOrder`).
    """
    if num_nodes < 1 or ranks_per_node < 1:
        raise UsageError(f"a world of {num_nodes} nodes with {ranks_per_node} processes; expected at least 1 of each")
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
    """Images that rank 0 reads in an epoch, one that is twice in a batch once, and the bytes of their samples."""
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
            f"a global batch of {batch} cannot be cut evenly for {num_ranks} processes, so training will refuse it; "
            f"take {choices}"
        )
    if num_ranks > samples:
        found.append(
            f"{num_ranks} processes share {samples} samples, so {num_ranks - samples} of them see only padding; "
            "take fewer processes"
        )
    left_over = samples % batch
    if order.reading.remainder == "drop" and left_over > _MUCH_DROPPED * samples:
        found.append(
            f"each epoch leaves out {left_over} of {samples} samples ({left_over / samples:.1%}), others each time; "
            "a smaller batch leaves out fewer, remainder pad none"
        )
    if cache_bytes is not None and remote_bytes > cache_bytes:
        found.append(
            f"the cache of this node may hold {cache_bytes / 1e9:.3f} GB of {remote_bytes / 1e9:.3f} GB of remote "
            "shards; the rest is read over the network in every epoch, one request an image: give it a larger disk or "
            f"limit (REFSEG_CACHE, {LIMIT_VARIABLE}), or copy the dataset to the node"
        )
    return found
