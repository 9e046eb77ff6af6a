"""Exactness: with any ranks, workers and interruptions, an epoch equals that of one uninterrupted process."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refseg.data.batch import Batch
from refseg.data.index import ManifestIndex
from refseg.data.loader import RefLoader
from refseg.data.order import Cursor
from refseg.reading import Reading

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")  # on one core

Sample = tuple[int, int]
"""Row and sentence of an expression."""


@dataclass(frozen=True)
class Part:
    """A part of a run: its ranks and workers, and the number of steps until it is killed."""

    world_size: int
    num_workers: int
    steps: int


def make_loader(index: ManifestIndex, **options: Any) -> RefLoader:
    settings: dict[str, Any] = {"geometry": "stretch", "input_size": (8, 8), "num_tokens": 6, "seed": 3, **options}
    process = {name: settings.pop(name) for name in ("rank", "world_size", "epoch") if name in settings}
    return RefLoader(index, Reading(**settings), **process)


def samples(batch: Batch) -> list[Sample]:
    """Return the samples without padding."""
    keep = ~batch.is_pad
    return list(zip(batch.row_index[keep].tolist(), batch.sentence_index[keep].tolist(), strict=True))


def unbroken(index: ManifestIndex, epochs: int, **options: Any) -> list[list[Sample]]:
    """Return the global batches of some epochs by definition: those of one process without workers."""
    loader = make_loader(index, **options)
    batches = []
    for epoch in range(epochs):
        loader.set_epoch(epoch)
        batches += [samples(batch) for batch in loader]
    return batches


def broken(index: ManifestIndex, epochs: int, parts: list[Part], **options: Any) -> list[list[Sample]]:
    """Return the same epochs, read in parts of which the last is complete. Only a cursor is passed on."""
    cursor: dict[str, Any] | None = None
    batches: list[list[Sample]] = []
    endless = Part(parts[-1].world_size, parts[-1].num_workers, 10**9)
    for part in (*parts, endless):
        loaders = [
            make_loader(index, rank=rank, world_size=part.world_size, num_workers=part.num_workers, **options)
            for rank in range(part.world_size)
        ]
        if cursor:
            for loader in loaders:
                loader.load_cursor(Cursor.from_dict(cursor))
        first = loaders[0]
        left = part.steps
        steps_done = cursor["samples_done"] // options["global_batch"] if cursor else 0
        while first.epoch < epochs:
            assert {len(loader) for loader in loaders} == {first.steps_per_epoch - steps_done}
            for of_ranks in zip(*loaders, strict=True):
                if not left:
                    break
                left -= 1
                steps_done += 1
                assert len({int(batch.num_global) for batch in of_ranks}) == 1
                batches.append([sample for batch in of_ranks for sample in samples(batch)])
                assert len(batches[-1]) == int(of_ranks[0].num_global)
            else:
                for loader in loaders:
                    loader.set_epoch(loader.epoch + 1)
                steps_done = 0
                continue
            break
        cursor = first.cursor(steps_done).to_dict()
    return batches


def check(index: ManifestIndex, parts: list[Part], **options: Any) -> None:
    expected = unbroken(index, 2, **options)

    batches = broken(index, 2, parts, **options)

    assert batches == expected
    half = len(batches) // 2
    for epoch in (batches[:half], batches[half:]):
        seen = [sample for batch in epoch for sample in batch]
        assert len(set(seen)) == len(seen)
        numbers = np.diff(index.sentence_start)
        all_samples = {(row, sentence) for row in range(index.num_rows) for sentence in range(numbers[row])}
        by_ref = options["sampling"] == "ref"
        number = {
            "ref": index.num_rows,
            "sentence": index.num_sentences,
            "images": index.num_sentences,
        }[options["sampling"]]
        assert set(seen) <= all_samples
        if options["remainder"] == "pad":
            assert len(seen) == number
            assert not by_ref or {row for row, _ in seen} == set(range(index.num_rows))
        elif options["sampling"] != "images":
            assert len(seen) == number - number % options["global_batch"]


worlds = st.sampled_from([1, 2, 3, 6])
shapes = {
    "sampling": st.sampled_from(["ref", "sentence", "images"]),
    "remainder": st.sampled_from(["drop", "pad"]),
    "times": st.integers(1, 4),
}


@pytest.mark.slow
@settings(max_examples=25, deadline=None)
@given(
    parts=st.lists(st.builds(Part, worlds, st.just(0), st.integers(0, 8)), min_size=1, max_size=4),
    **shapes,
)
def test_any_kills_and_any_ranks_give_the_unbroken_run(
    train_index: ManifestIndex, parts: list[Part], sampling: str, remainder: str, times: int
) -> None:
    batch = 6 * times if remainder == "pad" else 6  # 11 images fill no batch of 12
    k = {"expressions_per_image": "all"} if sampling == "images" else {}
    check(train_index, parts, sampling=sampling, remainder=remainder, global_batch=batch, **k)


@settings(max_examples=5, deadline=None)
@given(
    parts=st.lists(
        st.builds(Part, st.sampled_from([1, 2]), st.integers(0, 2), st.integers(0, 8)), min_size=1, max_size=2
    ),
    sampling=shapes["sampling"],
)
def test_worker_processes_change_nothing(train_index: ManifestIndex, parts: list[Part], sampling: str) -> None:
    k = {"expressions_per_image": "all"} if sampling == "images" else {}
    check(train_index, parts, sampling=sampling, remainder="pad", global_batch=8, **k)


@pytest.mark.slow
@settings(max_examples=20, deadline=None)
@given(
    parts=st.lists(st.builds(Part, worlds, st.integers(0, 3), st.integers(0, 12)), min_size=1, max_size=3),
    **shapes,
)
def test_any_kills_ranks_and_workers_give_the_unbroken_run(
    train_index: ManifestIndex, parts: list[Part], sampling: str, remainder: str, times: int
) -> None:
    batch = 6 * times if remainder == "pad" else 6
    k = {"expressions_per_image": "all"} if sampling == "images" else {}
    check(train_index, parts, sampling=sampling, remainder=remainder, global_batch=batch, **k)
