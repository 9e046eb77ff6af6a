"""The order of an epoch: computed by hand, then for several ranks and interruptions."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from hypothesis import given, settings
from hypothesis import strategies as st

from refseg.data.index import ManifestIndex
from refseg.data.loader import RefLoader, prepare_loader
from refseg.data.order import ORDER_VERSION, BatchPlan, Cursor, EpochOrder, batch_diversity
from refseg.dataset.descriptor import MixMember
from refseg.errors import DatasetError, UsageError
from refseg.reading import Reading


def make_order(index: ManifestIndex, **options: object) -> EpochOrder:
    settings: dict[str, Any] = {"global_batch": 4, "remainder": "pad", **options}
    return EpochOrder(index, epoch=settings.pop("epoch", 0), reading=Reading(**settings))


def pairs(plan: BatchPlan, *, padding: bool = False) -> list[tuple[int, int]]:
    """(row, sentence) of a batch, without padding unless asked for."""
    chosen = zip(plan.row_index.tolist(), plan.sentence_index.tolist(), plan.is_pad.tolist(), strict=True)
    return [(row, sentence) for row, sentence, is_pad in chosen if padding or not is_pad]


def all_units(order: EpochOrder) -> list[int]:
    """Return the units in the epoch's order, without padding."""
    batches = [order.units(step, rank=0, world_size=1).tolist() for step in range(order.num_steps)]
    return [unit for batch in batches for unit in batch][: order.num_units]


def whole_epoch(order: EpochOrder, world_size: int = 1) -> list[list[tuple[int, int]]]:
    """Return the global batches, joined from the ranks' batches in the order of ranks."""
    return [
        [pair for rank in range(world_size) for pair in pairs(order.plan(step, rank=rank, world_size=world_size))]
        for step in range(order.num_steps)
    ]


def all_sentences(index: ManifestIndex) -> list[tuple[int, int]]:
    numbers = np.diff(index.sentence_start)
    return [(row, sentence) for row in range(index.num_rows) for sentence in range(numbers[row])]


def test_by_sentence_in_order_two_ranks_share_each_global_batch(train_index: ManifestIndex) -> None:
    # Image 0: one ref of 1 sentence. Image 1: refs of 2 and 3 sentences. So the first six sentences are:
    # (0, 0) (1, 0) | (1, 1) (2, 0) || (2, 1) (2, 2) | ...
    order = make_order(train_index, sampling="sentence", shuffle=False)

    assert pairs(order.plan(0, rank=0, world_size=2)) == [(0, 0), (1, 0)]
    assert pairs(order.plan(0, rank=1, world_size=2)) == [(1, 1), (2, 0)]
    assert pairs(order.plan(1, rank=0, world_size=2)) == [(2, 1), (2, 2)]


def test_the_remainder_is_dropped_or_padded_from_the_front(train_index: ManifestIndex) -> None:
    # 21 refs in batches of 4: five full ones and one ref, the last.
    dropped = make_order(train_index, shuffle=False, remainder="drop")
    padded = make_order(train_index, shuffle=False, remainder="pad")

    assert (dropped.num_units, dropped.num_steps, padded.num_steps) == (21, 5, 6)
    last = padded.plan(5, rank=0, world_size=1)
    assert last.row_index.tolist() == [20, 0, 1, 2]
    assert last.is_pad.tolist() == [False, True, True, True]
    assert last.num_global == 1
    assert padded.plan(5, rank=1, world_size=2).is_pad.all()
    assert padded.plan(5, rank=1, world_size=2).num_global == 1  # known without asking the other rank


def test_more_ranks_than_samples_still_take_equal_steps(train_index: ManifestIndex) -> None:
    order = make_order(train_index, sampling="images", global_batch=32, expressions_per_image="all")

    plans = [order.plan(0, rank=rank, world_size=32) for rank in range(32)]

    assert order.num_steps == 1
    assert all(len(plan.row_index) >= 1 for plan in plans)
    assert sum(not plan.is_pad.any() for plan in plans) == 11
    assert sorted(pair for plan in plans for pair in pairs(plan)) == all_sentences(train_index)
    assert {plan.num_global for plan in plans} == {42}


def test_by_ref_each_ref_comes_once_with_one_of_its_sentences(train_index: ManifestIndex) -> None:
    seen = [pair for batch in whole_epoch(make_order(train_index)) for pair in batch]

    assert sorted(row for row, _ in seen) == list(range(21))
    assert set(seen) <= set(all_sentences(train_index))


def test_the_sentence_of_a_ref_changes_over_epochs_and_each_gets_its_turn(train_index: ManifestIndex) -> None:
    row = 2  # three sentences
    chosen = []
    for epoch in range(300):
        batches = whole_epoch(make_order(train_index, epoch=epoch, shuffle=False, global_batch=21))
        chosen.append(batches[0][row][1])

    # Each third: 100 +- 8.2; five deviations.
    assert all(59 <= count <= 141 for count in np.bincount(chosen, minlength=3))


def test_the_order_of_units_is_uniform(train_index: ManifestIndex) -> None:
    # Over 600 epochs each of 11 images should be first 54.5 +- 7 times; five deviations.
    first = [
        all_units(make_order(train_index, sampling="images", epoch=epoch, global_batch=11))[0] for epoch in range(600)
    ]
    assert all(19 <= count <= 90 for count in np.bincount(first, minlength=11))


def test_by_image_all_sentences_come_together(train_index: ManifestIndex) -> None:
    order = make_order(train_index, sampling="images", expressions_per_image="all", global_batch=3, shuffle=False)

    first = order.plan(0, rank=0, world_size=1)

    # Images 0, 1, 2 have refs 0 | 1 2 | 3 4 5 with 1 | 2 3 | 3 1 2 sentences.
    assert first.row_index.tolist() == [0] + [1] * 2 + [2] * 3 + [3] * 3 + [4] + [5] * 2
    assert first.sentence_index.tolist() == [0, 0, 1, 0, 1, 2, 0, 1, 2, 0, 0, 1]
    assert first.num_global == 12


def test_by_image_k_sentences_are_chosen_without_repetition(train_index: ManifestIndex) -> None:
    chosen = set()
    for epoch in range(100):
        order = make_order(
            train_index, sampling="images", expressions_per_image=2, global_batch=3, shuffle=False, epoch=epoch
        )
        plan = order.plan(0, rank=0, world_size=1)
        assert len(plan.row_index) == plan.num_global == 1 + 2 + 2  # image 0 has a single sentence
        batch = pairs(plan)
        assert len(set(batch)) == len(batch)
        chosen |= set(batch)

    # 12 sentences in the three images: over 100 epochs every one is met.
    assert len(chosen) == 12


def test_expressions_of_few_images_make_a_batch_less_diverse(train_index: ManifestIndex) -> None:
    # Images 0, 1, 2 give 1, 2, 2 of their sentences: as diverse as 25 / 9 images alike.
    two = make_order(train_index, sampling="images", expressions_per_image=2, global_batch=3, shuffle=False)
    assert batch_diversity(two, num_steps=1) == (5, 3, pytest.approx(25 / 9))
    # By sentence: one of image 0 and five of image 1.
    by_sentence = make_order(train_index, sampling="sentence", global_batch=6, shuffle=False)
    assert batch_diversity(by_sentence, num_steps=1) == (6, 2, pytest.approx(36 / 26))
    # All batches of an epoch: 4, 4 and 3 images, each with one sentence.
    one = make_order(train_index, sampling="images")
    assert batch_diversity(one) == (pytest.approx(11 / 3),) * 3


def test_an_epoch_of_any_size_begins_and_goes_on_at_once(train_index: ManifestIndex) -> None:
    # 2 * 10^11 sentences: no table of them fits into memory, and a broadcast array of starts needs none.
    number = 200_000_000_000
    starts = np.lib.stride_tricks.as_strided(np.array([0], np.int64), (number + 1,), (0,))
    huge = replace(train_index, sent_id=starts[1:], ref_id=starts[1:], sentence_start=starts)
    order = make_order(huge, sampling="sentence", global_batch=256)

    first, late = (order.units(step, rank=1, world_size=2) for step in (0, 9 * order.num_steps // 10))

    assert (order.num_units, order.num_steps) == (number, number // 256)
    assert len({*first.tolist(), *late.tolist()}) == 256
    assert max(first.max(), late.max()) > number // 2


def test_order_depends_on_seed_and_epoch_and_nothing_else(train_index: ManifestIndex) -> None:
    base = whole_epoch(make_order(train_index))

    assert whole_epoch(make_order(train_index)) == base
    assert whole_epoch(make_order(train_index, seed=1)) != base
    assert whole_epoch(make_order(train_index, epoch=1)) != base
    assert whole_epoch(make_order(replace_digest(train_index, "other"))) != base


def replace_digest(index: ManifestIndex, digest: str) -> ManifestIndex:
    return replace(index, order_key=digest)


def test_the_order_is_pinned(train_index: ManifestIndex) -> None:
    # Another order would break the resuming of runs of an earlier release: a change must increase the version,
    # so that cursors of earlier releases are refused. The numbers were worked out with Python's integers, apart from
    # the code (`test_permutation.plain_permutation`).
    assert ORDER_VERSION == 1
    index = replace_digest(train_index, "0" * 64)
    assert all_units(make_order(index, sampling="images")) == [3, 1, 6, 2, 5, 0, 9, 7, 10, 4, 8]
    assert whole_epoch(make_order(index))[0] == [(4, 0), (13, 0), (10, 0), (5, 1)]


@settings(max_examples=60, deadline=None)
@given(
    sampling=st.sampled_from(["ref", "sentence", "images"]),
    remainder=st.sampled_from(["drop", "pad"]),
    global_batch=st.sampled_from([6, 12, 24]),
    worlds=st.tuples(st.sampled_from([1, 2, 3, 6]), st.sampled_from([1, 2, 3, 6])),
    epoch=st.integers(0, 3),
    k=st.sampled_from([1, 2, "all"]),
    shuffle=st.booleans(),
)
def test_any_number_of_ranks_sees_the_same_global_batches(
    train_index: ManifestIndex,
    sampling: str,
    remainder: str,
    global_batch: int,
    worlds: tuple[int, int],
    epoch: int,
    k: int | str,
    shuffle: bool,
) -> None:
    order = make_order(
        train_index,
        sampling=sampling,
        remainder=remainder,
        global_batch=6 if remainder == "drop" else global_batch,  # 11 images fill no batch of 12
        epoch=epoch,
        shuffle=shuffle,
        expressions_per_image=k if sampling == "images" else 1,
    )

    batches = whole_epoch(order, worlds[0])

    assert whole_epoch(order, worlds[1]) == batches
    for step, batch in enumerate(batches):
        plans = [order.plan(step, rank=rank, world_size=worlds[0]) for rank in range(worlds[0])]
        assert {plan.num_global for plan in plans} == {len(batch)}
    seen = [pair for batch in batches for pair in batch]
    assert len(set(seen)) == len(seen)
    if remainder == "pad":
        by_image = {1: 11, 2: sum(min(2, number) for number in sentences_per_image(train_index)), "all": 42}
        assert len(seen) == {"ref": 21, "sentence": 42, "images": by_image[k]}[sampling]


def sentences_per_image(index: ManifestIndex) -> list[int]:
    numbers: dict[int, int] = {}
    for row, _ in all_sentences(index):
        image = int(index.row_image[row])
        numbers[image] = numbers.get(image, 0) + 1
    return list(numbers.values())


def test_a_cursor_is_small_and_survives_json() -> None:
    cursor = Cursor(
        digest="f" * 64,
        seed=2**31,
        epoch=9_999,
        samples_done=99_999_999,
        order="images all in order",
        order_version=999,
    )
    text = json.dumps(cursor.to_dict())

    assert len(text) < 200
    assert Cursor.from_dict(json.loads(text)) == cursor


@pytest.mark.parametrize(
    "change",
    [
        {"epoch": None},
        {"epoch": -3},
        {"samples_done": 80.7},
        {"samples_done": "80"},
        {"seed": True},
        {"order": 4},
        {"x": 1},
    ],
)
def test_a_damaged_cursor_is_refused(change: dict[str, object]) -> None:
    fields: dict[str, object] = {"digest": "x", "seed": 1, "epoch": 0, "samples_done": 3, "order": "ref"}
    if "x" not in change:
        fields["order_version"] = 1
    with pytest.raises(DatasetError) as caught:
        Cursor.from_dict({**fields, **change})
    assert str(caught.value).endswith(
        "expected digest and order as strings, and seed, epoch, samples_done, order_version as whole numbers of at "
        "least 0; use another checkpoint, or start a new run"
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"expressions_per_image": 2}, "expressions_per_image is 2 with sampling 'ref'.*expected sampling 'images'"),
        (
            {"sampling": "images", "expressions_per_image": 0},
            "expressions_per_image is 0; expected a whole number, at least 1, or 'all'",
        ),
        ({"epoch": -1}, "epoch is -1; expected a whole number, at least 0"),
        ({"seed": -1}, "seed is -1; expected a whole number, at least 0"),
        ({"global_batch": 0}, "global_batch is 0; expected a whole number, at least 1"),
        (
            {"global_batch": 22, "remainder": "drop"},
            "an epoch by ref has 21 samples, fewer than one global batch of 22",
        ),
    ],
)
def test_numbers_that_do_not_fit_are_refused(train_index: ManifestIndex, options: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make_order(train_index, **options)


def mixed(index: ManifestIndex, *weights: float) -> ManifestIndex:
    """The index as a mix: images 0 to 5 (12 refs, 24 sentences) of `a/x`, 6 to 10 (9 refs, 18 sentences) of `b/y`.

    A third member has no training images.
    """
    datasets = ("a/x", "b/y", "c/z")
    counts = {"num_refs": 0, "dropped_refs": 0, "dropped_images": 0, "leaked_images": 0}
    mix = tuple(
        MixMember(dataset=dataset, digest="", weight=weight, **counts)
        for dataset, weight in zip(datasets, (*weights, 1.0), strict=True)
    )
    row_dataset = (index.row_image >= 6).astype(np.int16)
    return replace(index, descriptor=replace(index.descriptor, mix=mix), datasets=datasets, row_dataset=row_dataset)


@pytest.mark.parametrize("sampling", ["ref", "sentence", "images"])
def test_a_mix_of_equal_weights_of_one_is_in_the_order_of_no_mix(train_index: ManifestIndex, sampling: str) -> None:
    plain = make_order(train_index, sampling=sampling, epoch=3)
    ours = make_order(mixed(train_index, 1.0, 1.0), sampling=sampling, epoch=3)

    assert all_units(ours) == all_units(plain)
    assert whole_epoch(ours) == whole_epoch(plain)


def test_by_ref_a_weight_is_an_exact_count(train_index: ManifestIndex) -> None:
    # 2.5 of 12 refs: 30, two of each and six of them a third time. 1/3 of 9 refs: three of them.
    order = make_order(mixed(train_index, 2.5, 1 / 3), remainder="pad")

    seen = order.seen_per_ref()

    assert order.num_units == 33
    assert sorted(seen[:12].tolist()) == [2] * 6 + [3] * 6
    assert sorted(seen[12:].tolist()) == [0] * 6 + [1] * 3


def test_by_image_an_image_counts_for_its_member(train_index: ManifestIndex) -> None:
    # Twice 6 images with all their sentences, and 0.4 of 5 images: 24 sentences twice, those of two images once.
    order = make_order(mixed(train_index, 2.0, 0.4), sampling="images", expressions_per_image="all", global_batch=14)

    seen = order.seen_per_ref()
    numbers = np.diff(train_index.sentence_start)

    assert order.num_units == 12 + 2
    assert seen[:12].tolist() == (2 * numbers[:12]).tolist()
    images = {int(train_index.row_image[row]) for row in np.flatnonzero(seen[12:]) + 12}
    assert len(images) == 2
    assert all(seen[row] == numbers[row] for row in range(12, 21) if train_index.row_image[row] in images)


def test_what_a_weight_gives_more_of_changes_over_epochs_and_each_gets_its_turn(train_index: ManifestIndex) -> None:
    index = mixed(train_index, 1.0, 1 / 3)
    seen = sum(make_order(index, epoch=epoch).seen_per_ref() for epoch in range(300))

    # A third of 300 epochs: 100 +- 8.2; five deviations. And 12 refs in each.
    assert seen[:12].tolist() == [300] * 12
    assert all(59 <= count <= 141 for count in seen[12:])
    assert seen[12:].sum() == 3 * 300


def test_copies_of_a_ref_draw_their_sentences_each_for_itself(train_index: ManifestIndex) -> None:
    row = 2  # three sentences
    index = mixed(train_index, 2.0, 1.0)
    equal = 0
    for epoch in range(300):
        order = make_order(index, epoch=epoch, global_batch=33)
        drawn = [sentence for found, sentence in whole_epoch(order)[0] if found == row]
        assert len(drawn) == 2
        equal += drawn[0] == drawn[1]

    # By chance equal in a third: 100 +- 8.2; five deviations.
    assert 59 <= equal <= 141


def test_copies_of_an_image_draw_their_sentences_each_for_itself(train_index: ManifestIndex) -> None:
    # Image 1 has five sentences: of 300 pairs of draws a fifth are equal, 60 +- 6.9; five deviations.
    index = mixed(train_index, 2.0, 1.0)
    equal = 0
    for epoch in range(300):
        order = make_order(index, sampling="images", epoch=epoch, global_batch=17)
        drawn = [pair for pair in whole_epoch(order)[0] if train_index.row_image[pair[0]] == 1]
        assert len(drawn) == 2
        equal += drawn[0] == drawn[1]

    assert 26 <= equal <= 94


def test_in_the_order_of_the_index_weights_mean_nothing(train_index: ManifestIndex) -> None:
    order = make_order(mixed(train_index, 3.0, 0.5), sampling="sentence", shuffle=False)

    assert [pair for batch in whole_epoch(order) for pair in batch] == all_sentences(train_index)


def test_a_weight_that_leaves_nothing_of_a_member_is_refused(train_index: ManifestIndex) -> None:
    with pytest.raises(
        UsageError,
        match=r"with weight 0\.05 an epoch contains none of the 9 samples \(by ref\) of b/y; .*with a larger weight",
    ):
        make_order(mixed(train_index, 1.0, 0.05))


@pytest.mark.slow
@settings(max_examples=30, deadline=None)
@given(
    sampling=st.sampled_from(["ref", "sentence", "images"]),
    weights=st.tuples(st.floats(0.2, 3.5), st.floats(0.2, 3.5)),
    world_size=st.sampled_from([1, 2, 4]),
    epoch=st.integers(0, 3),
)
def test_the_books_are_exact_for_any_weights_and_ranks(
    train_index: ManifestIndex, sampling: str, weights: tuple[float, float], world_size: int, epoch: int
) -> None:
    k = {"expressions_per_image": "all"} if sampling == "images" else {}
    order = make_order(mixed(train_index, *weights), sampling=sampling, epoch=epoch, **k)

    seen = np.zeros(21, np.int64)
    for batch in whole_epoch(order, world_size):
        for row, _ in batch:
            seen[row] += 1
    assert order.seen_per_ref().tolist() == seen.tolist()
    # Each unit of a member occurs equally often, or once more than others of the same member.
    numbers = np.diff(train_index.sentence_start)
    for rows, num_images, weight in ((range(12), 6, weights[0]), (range(12, 21), 5, weights[1])):
        if sampling == "ref":
            times = seen[rows]
            assert times.sum() == round(weight * len(rows))
        elif sampling == "sentence":
            times = seen[rows] / numbers[rows]
            assert seen[rows].sum() == round(weight * numbers[rows].sum())
        else:
            times = np.array([seen[row] / numbers[row] for row in rows])
            images = train_index.row_image[rows]
            assert sum(times[images == image][0] for image in set(images.tolist())) == round(weight * num_images)
        assert times.max() - times.min() <= 1


@pytest.mark.parametrize("num_workers", [0, 2])
def test_the_books_hold_over_ranks_workers_and_a_resume(train_index: ManifestIndex, num_workers: int) -> None:
    index = mixed(train_index, 2.5, 1 / 3)
    reading = Reading(
        geometry="stretch", input_size=(32, 32), global_batch=4, num_tokens=8, seed=5, remainder="pad",
        num_workers=num_workers,
    )  # fmt: skip
    seen = np.zeros(21, np.int64)

    def read(loader: RefLoader, steps: int) -> None:
        for _, batch in zip(range(steps), loader, strict=False):
            np.add.at(seen, batch.row_index[~batch.is_pad].numpy(), 1)

    # Three steps on two ranks, then the rest on one.
    for rank in range(2):
        first = RefLoader(index, reading, rank=rank, world_size=2, epoch=1)
        read(first, 3)
    rest = RefLoader(index, replace(reading, num_workers=0), epoch=1)
    rest.load_cursor(first.cursor(3))
    read(rest, 99)

    order = make_order(index, epoch=1, seed=5)
    assert seen.tolist() == order.seen_per_ref().tolist()


class TwoRanks(Accelerator):
    """The parts of accelerate that `prepare_loader` uses, for two ranks in two threads."""

    num_processes = 2
    device = torch.device("cpu")

    def __init__(self) -> None:
        self.found: dict[str, torch.Tensor] = {}
        self.barrier = threading.Barrier(2, timeout=300)

    def gather(self, found: torch.Tensor) -> torch.Tensor:
        self.found[threading.current_thread().name] = found
        self.barrier.wait()
        return torch.cat([self.found[name] for name in sorted(self.found)])


def test_two_ranks_may_begin_with_copies_of_one_sample(train_index: ManifestIndex) -> None:
    # In a global batch of 2 some epoch begins with one ref and sentence twice: not a sample that was split twice.
    index = mixed(train_index, 20.0, 1.0)
    orders = (make_order(index, global_batch=2, epoch=epoch, remainder="drop") for epoch in range(99))
    begins = (pairs(order.plan(0, rank=0, world_size=1)) for order in orders)
    epoch = next(epoch for epoch, (first, second) in enumerate(begins) if first == second)
    accelerator = TwoRanks()

    def prepare(rank: int) -> int:
        threading.current_thread().name = str(rank)
        reading = Reading(geometry="stretch", input_size=(32, 32), global_batch=2, num_tokens=8)
        loader = RefLoader(index, reading, rank=rank, world_size=2, epoch=epoch)
        return len(prepare_loader(accelerator, loader))

    with ThreadPoolExecutor(2) as threads:
        assert list(threads.map(prepare, range(2))) == [124, 124]  # 20 * 12 + 9 refs
