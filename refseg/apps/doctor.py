"""Checks whether a machine reads a dataset fast enough for a model. Finds the bottleneck and gives advice."""

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch

from refseg.apps.stage_times import (
    EXPRESSION_STAGES,
    FROM_CACHE,
    HAND_OFF,
    IMAGE_STAGES,
    MAIN_STAGES,
    time_delivery,
    time_stages,
    time_step,
    time_to_device,
)
from refseg.config import Recipe
from refseg.data.index import ManifestIndex
from refseg.reading import Reading

_ENOUGH = 1.1  # the loader should be this many times as fast as the model, since training competes for the cores


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """The measured times, and the properties of machine and dataset that explain them.

    Attributes:
        stages: Seconds per sample of each stage, by name, on one core.
        disk_read: Seconds per sample to read from the disk. None if shards are remote.
        expressions: Mean number of expressions per sample.
        delivered: Samples per second that `num_workers` workers deliver.
        needed: Samples per second that the model processes. None if this was not measured.
        num_workers: Packing threads or processes of one training process.
        num_cores: Cores of this machine for one training process.
        is_remote: True if shards are at a URL.
        by_image: True if the expressions of an image already share its pixels.
        num_images: Number of images of the split.
        decoded_bytes: Size of all images of the split after resizing, in bytes.
        cached_share: Share of the images in the cache of decoded images, 0 to 1. It is 0 without a cache.
        store: Recommended value of `refseg build-shards --store` for this input. Empty if the pictures already have
            this size.
    """

    stages: Mapping[str, float]
    disk_read: float | None
    expressions: float
    delivered: float
    needed: float | None
    num_workers: int
    num_cores: int
    is_remote: bool
    by_image: bool
    num_images: int
    decoded_bytes: int
    cached_share: float
    store: str

    @property
    def worker_times(self) -> dict[str, float]:
        """Seconds of one worker per sample, by stage."""
        images = {name: (1 - self.cached_share) * self.stages[name] for name in IMAGE_STAGES}
        others = [name for name in (*EXPRESSION_STAGES, HAND_OFF) if name in self.stages]
        cached = {FROM_CACHE: self.cached_share * self.stages[FROM_CACHE]}
        return {**images, **cached, **{name: self.stages[name] for name in others}}

    @property
    def worker_seconds(self) -> float:
        """Seconds of one worker per sample."""
        return sum(self.worker_times.values())

    @property
    def if_cached(self) -> "Measured":
        """The same measurement with all images in the cache. `delivered` is unchanged."""
        return replace(self, cached_share=1.0)

    @property
    def cache_gigabytes(self) -> int:
        """Size in gigabytes of a cache of decoded images for the whole split."""
        return math.ceil(self.decoded_bytes / 1e9)

    @property
    def main_seconds(self) -> float:
        """Seconds of the training process per sample, for all workers together."""
        return sum(self.stages.get(name, 0.0) for name in MAIN_STAGES)

    def rate(self, num_workers: int) -> float:
        """Return the expected samples per second of a number of workers, each with one core."""
        by_workers = min(max(1, num_workers), self.num_cores) / self.worker_seconds
        return min(by_workers, 1 / self.main_seconds) if self.main_seconds else by_workers


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnosis:
    """The bottleneck of a run.

    Attributes:
        bottleneck: `model`, `number of workers`, or the name of a stage.
        verdict: The finding in one sentence.
        remedies: Recommended changes, the most effective first. Empty if the model is the bottleneck.
    """

    bottleneck: str
    verdict: str
    remedies: tuple[str, ...]


def examine(
    index: ManifestIndex,
    reading: Reading,
    *,
    seconds: float,
    needed: float | None = None,
    recipe: Recipe | None = None,
) -> Measured:
    """Measure the stages, the loader and, with a recipe, the model.

    Args:
        index: Index of the splits that are read.
        reading: How the splits are read. The global batch contains the samples of one process in a step.
        seconds: Approximate time in seconds for measuring the loader.
        needed: Samples per second of one training process, if known.
        recipe: Recipe whose model is timed, if `needed` is not known.

    Raises:
        DatasetError: If a sample cannot be read.
        UsageError: If the settings contradict each other.
    """
    reading = replace(reading, remainder="pad", trim_tokens=True)  # training trims too; a few samples suffice
    times = time_stages(index, reading, seconds=seconds / 2)
    delivered, batch = time_delivery(index, reading, seconds=seconds / 2)
    stages = dict(times.stages)
    if torch.cuda.is_available():  # only after the workers have ended, because they are forked
        stages["to device"] = time_to_device(batch, num_samples=reading.global_batch)
    if needed is None and recipe is not None:
        needed = reading.global_batch / time_step(recipe, batch)
    height, width = reading.input_size
    mean_area = float(np.mean(index.height.astype(np.int64) * index.width))
    is_small = index.descriptor.stored_images is not None or mean_area <= height * width
    return Measured(
        stages=stages,
        disk_read=times.disk_read,
        expressions=times.expressions,
        delivered=delivered,
        needed=needed,
        num_workers=reading.num_workers,
        num_cores=max(1, len(os.sched_getaffinity(0)) // max(1, torch.cuda.device_count())),
        is_remote=index.is_remote,
        by_image=reading.sampling == "images",
        num_images=index.num_images,
        decoded_bytes=reading.image_bytes * index.num_images,
        cached_share=min(1.0, reading.cache_bytes // reading.image_bytes / index.num_images),
        store="" if is_small else f"{reading.geometry}:{height}x{width}",
    )


def diagnose(found: Measured) -> Diagnosis:
    """Find the bottleneck and the recommended changes."""
    needed = found.needed
    if needed is not None and found.delivered >= needed:
        surplus = found.delivered / needed
        close = "" if surplus >= _ENOUGH else ", only just: training takes cores too"
        return Diagnosis(
            bottleneck="model",
            verdict=f"the loader gives {surplus:.1f} times the {needed:,.1f} samples/s that the model takes{close}",
            remedies=(),
        )
    main_bound = found.main_seconds > found.worker_seconds / max(1, found.num_workers)
    wanted = min(found.num_cores, math.ceil(_ENOUGH * needed * found.worker_seconds) if needed else found.num_cores)
    more_workers = not main_bound and wanted > max(1, found.num_workers)
    times = {name: found.stages.get(name, 0.0) for name in MAIN_STAGES} if main_bound else found.worker_times
    largest = max(times, key=lambda name: times[name])
    remedies = list(_remedies(found, largest))
    if more_workers:
        remedies.insert(
            0, f"data.num_workers = {wanted}: about {found.rate(wanted):,.1f} samples/s, a core for each of them"
        )
    speed = f"the loader gives {found.delivered:,.1f} samples/s"
    if needed is not None:
        speed += f", the model takes {needed:,.1f}"
        if found.rate(found.num_cores) < needed:
            speed += f"; with all {found.num_cores} cores it would be about {found.rate(found.num_cores):,.1f}"
    return Diagnosis(
        bottleneck="number of workers" if more_workers else largest,
        verdict=f"{speed}; most time goes into {largest}",
        remedies=tuple(remedies),
    )


def _remedies(found: Measured, stage: str) -> list[str]:
    """Return the changes that make a stage faster."""
    pixels = sum(found.worker_times[name] for name in (*IMAGE_STAGES, FROM_CACHE))
    remedies = []
    if stage == "read":
        if found.is_remote:
            remedies.append("let the cache fill (an epoch), or give it a larger disk or limit: REFSEG_CACHE")
        else:
            remedies.append("put the shards on a faster disk, or on a machine whose memory holds them")
    if stage in IMAGE_STAGES:
        if not found.by_image:
            each = (found.worker_seconds - pixels) + pixels / 4
            remedies.append(
                "data.sampling = images with data.expressions_per_image = 4: an image is decoded once for its "
                f"expressions, about {found.worker_seconds / each:.1f} times the expressions/s (batches vary less: "
                "`refseg plan`)"
            )
        gain = found.worker_seconds / found.if_cached.worker_seconds
        remedies.append(
            f"data.cache_gigabytes = {found.cache_gigabytes}: all {found.num_images:,} images stay "
            f"resized in a file of this machine, about {gain:.1f} times the samples/s from the second epoch on"
        )
        if stage in ("decode", "resize") and found.store:
            remedies.append(
                f"refseg build-shards --store {found.store}: pictures at this size decode faster (they are compressed "
                "again; masks and scores stay those of the originals)"
            )
    elif stage in EXPRESSION_STAGES:
        remedies.append("a smaller data.input_size, or fewer expressions of an image")
    else:
        share = "" if found.by_image else ", or expressions that share images (data.sampling = images)"
        if stage in (HAND_OFF, "receive"):
            remedies.append("data.worker_kind = threads: nothing is handed from process to process")
        remedies.append(f"fewer bytes for each sample: a smaller data.input_size{share}")
    return remedies
