"""The plan of reading an epoch, compared with counts by hand: `train` has 11 images, 21 refs, 42 sentences."""

from pathlib import Path
from typing import Any

import pytest

from refseg.data.index import ManifestIndex
from refseg.data.loader import RefLoader
from refseg.data.plan import ReadPlan, plan_reading
from refseg.errors import UsageError
from refseg.reading import Reading


def plan(index: ManifestIndex, **options: Any) -> ReadPlan:
    settings: dict[str, Any] = {
        "num_nodes": 1, "ranks_per_node": 1, "global_batch": 8, "num_workers": 2, "input_size": (32, 64), **options,
    }  # fmt: skip
    world = {name: settings.pop(name) for name in ("num_nodes", "ranks_per_node")}
    return plan_reading(index, Reading(**settings), **world)


def test_steps_and_what_is_left_over(train_index: ManifestIndex) -> None:
    found = plan(train_index)
    assert (found.samples, found.steps, found.dropped, found.padded) == (21, 2, 5, 0)
    found = plan(train_index, remainder="pad", num_nodes=2, ranks_per_node=2)
    assert (found.num_ranks, found.steps, found.dropped, found.padded) == (4, 3, 0, 3)
    assert plan(train_index, sampling="sentence").samples == 42
    assert plan(train_index, sampling="images").samples == 11


def test_bytes_are_those_of_whole_samples(train_index: ManifestIndex, dataset: Path) -> None:
    tars = sum((dataset / f"train-0000{number}.tar").stat().st_size for number in (0, 1))
    once = plan(train_index, sampling="images", global_batch=11)
    assert once.images_per_rank == 11
    assert once.image_bytes_per_node == train_index.sample_bytes.sum()
    assert (once.shard_bytes, once.remote_shard_bytes, once.cache_bytes) == (tars, 0, None)
    # One batch with all refs reads each image once; two ranks of one node read at most each image once each.
    assert plan(train_index, global_batch=21).images_per_rank == 11
    shared = plan(train_index, global_batch=20, ranks_per_node=2)
    assert 11 <= 2 * shared.images_per_rank <= 22


def test_the_plan_counts_what_a_loader_reads(train_index: ManifestIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    original = ManifestIndex._read
    monkeypatch.setattr(ManifestIndex, "_read", lambda self, image: read.append(image) or original(self, image))
    reading = Reading(geometry="stretch", input_size=(32, 32), global_batch=4, num_tokens=12)
    loader = RefLoader(train_index, reading, rank=0, world_size=2)
    list(loader)

    found = plan(train_index, global_batch=4, num_nodes=2)
    assert found.images_per_rank == len(read)
    assert found.image_bytes_per_node == train_index.sample_bytes[read].sum()


def test_memory_and_cursor(train_index: ManifestIndex) -> None:
    found = plan(train_index, global_batch=4, ranks_per_node=2)
    # A rank's batch: 2 images of 3 x 32 x 64, 2 masks of 32 x 64, 2 sentences of 17 ids (8 bytes) and marks (1 byte).
    assert found.worker_bytes == 3 * (2 * 3 * 2048 + 2 * 2048 + 2 * 17 * 9)
    assert found.decoded_bytes == 11 * 3 * 2048
    assert found.index_bytes > 21 * 8
    assert found.memory_per_node == 2 * (found.index_bytes + 2 * found.worker_bytes)
    assert found.cursor_bytes < 200
    alone = plan(train_index, global_batch=4, ranks_per_node=2, num_workers=0)  # each process packs its batches itself
    assert alone.memory_per_node == 2 * (alone.index_bytes + alone.worker_bytes)


def test_more_expressions_of_an_image_make_a_batch_less_varied(train_index: ManifestIndex) -> None:
    one, several = (plan(train_index, sampling="images", expressions_per_image=k).diversity for k in (1, "all"))
    assert (one.expressions, one.images, one.effective_images) == (8, 8, 8)
    assert several.expressions > several.images == 8 > several.effective_images


def test_a_batch_that_does_not_divide_is_named_with_those_that_do(train_index: ManifestIndex) -> None:
    found = plan(train_index, global_batch=8, num_nodes=3)
    assert found.warnings[0] == (
        "a global batch of 8 cannot be divided evenly among 3 processes, so training will refuse it; use 6 or 9"
    )
    assert "use 16" in plan(train_index, num_nodes=2, ranks_per_node=8).warnings[0]


def test_more_processes_than_samples_and_many_samples_left_out_are_named(train_index: ManifestIndex) -> None:
    found = plan(train_index, sampling="images", global_batch=16, ranks_per_node=16, remainder="pad")
    assert found.warnings == ("16 processes share 11 samples, so 5 of them read only padding; use fewer processes",)
    (warning,) = plan(train_index).warnings
    assert warning.startswith("each epoch leaves out 5 of 21 samples (23.8%), different ones in each epoch")
    assert plan(train_index, global_batch=7).warnings == ()


def test_a_cache_that_is_too_small_is_named(dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REFSEG_CACHE", str(tmp_path))
    monkeypatch.setenv("REFSEG_CACHE_GIGABYTES", "0.00001")
    index = ManifestIndex.open(f"file://{dataset}", ["train"])
    found = plan(index, global_batch=7)
    assert found.remote_shard_bytes == found.shard_bytes
    assert found.cache_bytes == 10_000
    (warning,) = found.warnings
    assert warning.startswith("the cache of this node holds at most 0.000 GB of ")
    assert "REFSEG_CACHE_GIGABYTES" in warning


def test_a_world_of_nothing_is_refused(train_index: ManifestIndex) -> None:
    with pytest.raises(UsageError, match="found 0 nodes with 1 processes on each; expected at least 1 of each"):
        plan(train_index, num_nodes=0)


def test_a_batch_larger_than_the_epoch_is_refused(train_index: ManifestIndex) -> None:
    with pytest.raises(UsageError, match="has 21 samples, fewer than one global batch of 64"):
        plan(train_index, global_batch=64)
