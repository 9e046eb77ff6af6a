"""The content of batches, which is independent of ranks, workers and interruptions."""

import gc
import pickle
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data._utils.pin_memory import pin_memory

from refseg import tokenizer
from refseg.data.batch import Batch
from refseg.data.buffers import Buffers, SharedBuffers, give_back_when_gone
from refseg.data.index import ManifestIndex
from refseg.data.loader import RefLoader
from refseg.data.order import Cursor
from refseg.data.transforms import Geometry
from refseg.errors import DatasetError, StorageError, UsageError
from refseg.reading import Reading

from .conftest import Picture, Ref, grid_pictures

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")  # on one core

GEOMETRY = Geometry(kind="letterbox", size=(24, 28))


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Record the images that this process decodes."""
    images: list[int] = []
    decode = ManifestIndex.decode_image

    def count(index: ManifestIndex, image: int) -> torch.Tensor:
        images.append(image)
        return decode(index, image)

    monkeypatch.setattr(ManifestIndex, "decode_image", count)
    return images


def make_loader(index: ManifestIndex, **options: Any) -> RefLoader:
    defaults = {
        "geometry": "letterbox",
        "input_size": (24, 28),
        "global_batch": 6,
        "num_tokens": 12,
        "remainder": "pad",
    }
    settings = defaults | options
    process = {name: settings.pop(name) for name in ("rank", "world_size", "epoch") if name in settings}
    return RefLoader(index, Reading(**settings), **process)


def pairs(batch: Batch) -> list[tuple[int, int]]:
    keep = ~batch.is_pad
    return list(zip(batch.row_index[keep].tolist(), batch.sentence_index[keep].tolist(), strict=True))


def assert_equal(one: Batch, other: Batch) -> None:
    for name, a, b in zip(Batch._fields, one, other, strict=True):
        assert torch.equal(a, b), name


@pytest.mark.parametrize(("num_workers", "kind"), [(0, "threads"), (2, "threads"), (2, "processes")])
def test_a_batch_by_ref_holds_what_its_rows_say(train_index: ManifestIndex, num_workers: int, kind: str) -> None:
    batches = list(make_loader(train_index, num_workers=num_workers, worker_kind=kind))

    assert len(batches) == 4
    for batch in batches:
        assert batch.images.shape == (6, 3, 24, 28)
        assert batch.images.is_contiguous(memory_format=torch.channels_last)
        assert batch.masks.shape == (6, 24, 28)
        assert batch.image_index.tolist() == [0, 1, 2, 3, 4, 5]
        for i, (row, sentence) in enumerate(zip(batch.row_index.tolist(), batch.sentence_index.tolist(), strict=True)):
            image = train_index.decode_image(int(train_index.row_image[row]))
            assert torch.equal(batch.images[i], GEOMETRY.apply_image(image))
            mask = GEOMETRY.apply_mask(train_index.run_ends(row), train_index.size(row))
            assert np.array_equal(batch.masks[i], mask)
            expected = tokenizer.encode(train_index.text(row, sentence))
            assert batch.token_ids[i][batch.token_mask[i]].tolist() == list(expected)
            assert batch.token_ids[i][~batch.token_mask[i]].sum() == 0
    assert [int(batch.num_global) for batch in batches] == [6, 6, 6, 3]
    assert sum(int((~batch.is_pad).sum()) for batch in batches) == 21


def test_a_batch_by_image_shares_each_decoded_image(train_index: ManifestIndex, decoded: list[int]) -> None:
    options = {"sampling": "images", "expressions_per_image": "all", "shuffle": False, "global_batch": 3}
    first = next(iter(make_loader(train_index, **options)))

    # Images 0, 1 and 2 have 1, 5 and 6 sentences.
    assert decoded == [0, 1, 2]
    assert first.images.shape[0] == 3
    assert first.masks.shape[0] == 12
    assert first.image_index.tolist() == [0] + [1] * 5 + [2] * 6
    assert int(first.num_global) == 12
    for i, row in enumerate(first.row_index.tolist()):
        assert first.image_index[i] == train_index.row_image[row]


def test_a_sentence_that_names_nothing_has_an_empty_mask(tmp_path: Path, write: Callable[..., Path]) -> None:
    ref = Ref(1, (0, 0, 20, 20), ("left one", "the elephant"), names_nothing=(1,))
    index = ManifestIndex.open(write(tmp_path / "d", {"train-00000": [Picture(7, (24, 28), (ref,))]}), ["train"])

    (batch,) = make_loader(index, sampling="sentence", shuffle=False, global_batch=2)

    assert batch.sentence_index.tolist() == [0, 1]
    assert batch.masks.sum(dim=(1, 2)).tolist() == [400, 0]


def test_two_refs_of_one_image_in_a_batch_have_a_copy_each(train_index: ManifestIndex, decoded: list[int]) -> None:
    batch = next(iter(make_loader(train_index, shuffle=False)))

    # Row 0 is of image 0, rows 1 and 2 are of image 1, and rows 3 to 5 are of image 2.
    assert decoded == [0, 1, 2]
    assert batch.images.shape[0] == 6
    assert torch.equal(batch.images[1], batch.images[2])
    assert torch.equal(batch.images[3], batch.images[5])
    assert not torch.equal(batch.images[2], batch.images[3])


def test_long_sentences_are_cut_keeping_the_end(train_index: ManifestIndex) -> None:
    # "thing 0 of 5 said 1" is SOS, five words, ..., EOS: 8 ids; image 10's number has two digits and two ids.
    batch = next(iter(make_loader(train_index, num_tokens=5)))

    assert batch.token_ids.shape == (6, 5)
    assert batch.token_mask.all()
    assert (batch.token_ids[:, 0] == tokenizer.SOS_ID).all()
    assert (batch.token_ids[:, 4] == tokenizer.EOS_ID).all()


def test_tokens_can_be_trimmed_to_the_longest_of_the_batch(train_index: ManifestIndex) -> None:
    full = next(iter(make_loader(train_index, num_tokens=40)))
    trimmed = next(iter(make_loader(train_index, num_tokens=40, trim_tokens=True)))

    length = int(full.token_mask.sum(dim=1).max())
    assert full.token_ids.shape == (6, 40)
    assert trimmed.token_ids.shape == (6, length)
    assert torch.equal(trimmed.token_ids, full.token_ids[:, :length])
    assert torch.equal(trimmed.token_mask, full.token_mask[:, :length])


def global_batches(loaders: list[RefLoader]) -> list[list[tuple[int, int]]]:
    return [[pair for batch in batches for pair in pairs(batch)] for batches in zip(*map(list, loaders), strict=True)]


@pytest.mark.parametrize("sampling", ["ref", "sentence", "images"])
@pytest.mark.parametrize(("world_size", "num_workers"), [(1, 2), (2, 0), (3, 1), (6, 0)])
def test_ranks_and_workers_change_nothing(
    train_index: ManifestIndex, sampling: str, world_size: int, num_workers: int
) -> None:
    expected = global_batches([make_loader(train_index, sampling=sampling)])

    loaders = [
        make_loader(train_index, sampling=sampling, rank=rank, world_size=world_size, num_workers=num_workers)
        for rank in range(world_size)
    ]

    assert {len(loader) for loader in loaders} == {len(expected)}
    assert global_batches(loaders) == expected


@pytest.mark.parametrize(
    ("before", "after", "num_workers"), [((1, 0), (2, 2), 2), ((2, 3), (3, 0), 0), ((3, 4), (1, 1), 1)]
)
@pytest.mark.parametrize("killed_after", [0, 1, 3, 4])
def test_a_run_goes_on_where_it_was_killed(
    train_index: ManifestIndex, before: tuple[int, int], after: tuple[int, int], num_workers: int, killed_after: int
) -> None:
    # The first pair is (number of ranks, epoch) before the restart. The second is (number of ranks, epoch) with which
    # the new process starts.
    whole = global_batches([make_loader(train_index, epoch=before[1])])
    first = make_loader(train_index, rank=before[0] - 1, world_size=before[0])
    first.set_epoch(before[1])
    saved = first.cursor(steps_done=killed_after).to_dict()

    loaders = [
        make_loader(train_index, rank=rank, world_size=after[0], epoch=after[1], num_workers=num_workers)
        for rank in range(after[0])
    ]
    for loader in loaders:
        loader.load_cursor(Cursor.from_dict(saved))

    assert {len(loader) for loader in loaders} == {4 - killed_after}
    assert {(loader.epoch, loader.steps_per_epoch) for loader in loaders} == {(before[1], 4)}
    assert global_batches(loaders) == whole[killed_after:]
    for loader in loaders:
        loader.set_epoch(before[1] + 1)
    assert global_batches(loaders) == global_batches([make_loader(train_index, epoch=before[1] + 1)])


def test_iterating_twice_gives_the_same_and_another_epoch_another_order(train_index: ManifestIndex) -> None:
    loader = make_loader(train_index, num_workers=1)
    first = list(loader)

    for one, other in zip(first, loader, strict=True):
        assert_equal(one, other)
    loader.set_epoch(1)
    assert [pairs(batch) for batch in loader] != [pairs(batch) for batch in first]
    loader.set_epoch(0)
    assert [pairs(batch) for batch in loader] == [pairs(batch) for batch in first]


@pytest.mark.parametrize("room", [0, 2, 100])
def test_a_cache_changes_no_batch_and_saves_decoding(train_index: ManifestIndex, room: int, decoded: list[int]) -> None:
    loader = make_loader(train_index, sampling="images", cache_gigabytes=room * 3 * 24 * 28 / 1e9, global_batch=4)
    plain = list(make_loader(train_index, sampling="images", global_batch=4))
    decoded.clear()

    for _ in range(2):
        for one, other in zip(plain, loader, strict=True):
            assert_equal(one, other)

    # There are 2 epochs of 11 images. In each, the first image is read again to pad the last batch.
    times = {image: decoded.count(image) for image in range(11)}
    assert all(times[image] == 1 for image in range(min(room, 11)))
    assert all(times[image] >= 2 for image in range(room, 11))


def test_another_loader_finds_what_is_in_the_cache(train_index: ManifestIndex, decoded: list[int]) -> None:
    options = {"sampling": "images", "cache_gigabytes": 11 * 3 * 24 * 28 / 1e9, "global_batch": 11, "num_workers": 2}
    (first,) = make_loader(train_index, **options)
    decoded.clear()

    (again,) = make_loader(train_index, **options)

    assert_equal(first, again)
    assert not decoded


def test_what_packs_batches_can_be_sent_to_a_spawned_worker(train_index: ManifestIndex) -> None:
    loader = make_loader(train_index)
    expected = next(iter(loader))  # the loader now has open tars, which cannot be pickled

    packer, (plan,) = pickle.loads(pickle.dumps((loader.dataloader.dataset, next(iter(loader._plans)))))

    assert_equal(packer[plan].batch, expected)


@pytest.mark.parametrize(("num_workers", "kind"), [(0, "threads"), (1, "threads"), (1, "processes")])
def test_a_damaged_picture_stops_the_epoch_with_its_name(
    tmp_path: Path, write: Callable[..., Path], num_workers: int, kind: str
) -> None:
    folder = write(tmp_path / "d", {"train-00000": grid_pictures(0, 3)})
    index = ManifestIndex.open(folder, ["train"])
    data = bytearray((folder / "train-00000.tar").read_bytes())
    data[index.image_offset[1] + 50] ^= 1
    (folder / "train-00000.tar").write_bytes(data)

    with pytest.raises(DatasetError, match=r"^[^\n]*image 1 \([^\n]*the shard is damaged[^\n]*$") as caught:
        list(make_loader(index, num_workers=num_workers, worker_kind=kind))
    if kind == "processes":
        assert "in _images" in str(caught.value.__cause__)  # the worker's traceback


def test_an_error_of_storage_keeps_its_words_over_processes(
    train_index: ManifestIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise StorageError(5, "reading is refused", "s3://bucket/a.tar")

    monkeypatch.setattr(ManifestIndex, "decode_image", refuse)
    with pytest.raises(StorageError, match=r"^s3://bucket/a.tar: reading is refused$"):
        list(make_loader(train_index, num_workers=1, worker_kind="processes"))


@pytest.mark.slow
def test_a_cursor_of_something_else_is_refused(train_index: ManifestIndex) -> None:
    loader = make_loader(train_index)
    cursor = loader.cursor(1).to_dict()

    with pytest.raises(
        DatasetError, match=r"stopped on the dataset with digest aaaaaaaaaaaa, found \w{12}; resume with"
    ):
        loader.load_cursor(Cursor.from_dict({**cursor, "digest": "a" * 64}))
    with pytest.raises(DatasetError, match="stopped with seed 7, found 0; resume with the same seed"):
        loader.load_cursor(Cursor.from_dict({**cursor, "seed": 7}))
    with pytest.raises(
        DatasetError, match="stopped after 8 samples of epoch 0, which is not the end of a global batch of 6"
    ):
        loader.load_cursor(Cursor.from_dict({**cursor, "samples_done": 8}))
    with pytest.raises(DatasetError, match=r"after 30 samples .* in an epoch of 4 steps; resume with the global batch"):
        loader.load_cursor(Cursor.from_dict({**cursor, "samples_done": 30}))
    with pytest.raises(
        DatasetError,
        match=r"order of version 2, but this release of refseg has version 1, .* resume with the release",
    ):
        loader.load_cursor(Cursor.from_dict({**cursor, "order_version": 2}))
    loader.load_cursor(Cursor.from_dict(cursor))
    assert len(loader) == 3


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"sampling": "sentence"}, "sentence"),
        ({"shuffle": False}, "ref in order"),
        ({"sampling": "images", "expressions_per_image": 2}, "images 2"),
        ({"sampling": "images", "expressions_per_image": "all"}, "images all"),
    ],
)
def test_a_cursor_of_another_order_is_refused(train_index: ManifestIndex, options: dict[str, Any], name: str) -> None:
    other = make_loader(train_index, **options)
    with pytest.raises(DatasetError) as caught:
        other.load_cursor(make_loader(train_index).cursor(1))
    assert str(caught.value) == (
        f"the run was stopped in the order 'ref', found '{name}', which would repeat some samples and skip others; "
        "resume with the same sampling, expressions_per_image and shuffle"
    )
    other.load_cursor(other.cursor(1))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"world_size": 4}, "a global batch of 6 cannot be divided evenly among 4 processes"),
        ({"world_size": 2, "rank": 2}, "rank 2 of 2 processes; expected 0 to 1"),
        ({"num_tokens": 1}, r"num_tokens is 1; expected a whole number, at least 2 \(SOS and EOS\)"),
        ({"world_size": 0}, "world_size is 0; expected a whole number, at least 1"),
        ({"rank": -1}, "rank is -1; expected a whole number, at least 0"),
        ({"num_workers": -1}, "num_workers is -1; expected a whole number, at least 0"),
        ({"cache_gigabytes": -5.0}, "cache_gigabytes is -5.0; expected a number, at least 0"),
        ({"remainder": "drop", "global_batch": 30}, "has 21 samples, fewer than one global batch of 30"),
    ],
)
def test_numbers_that_do_not_fit_are_refused(train_index: ManifestIndex, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make_loader(train_index, **options)


@pytest.mark.parametrize("kind", ["threads", "processes"])
def test_memory_of_a_batch_that_is_kept_is_not_written_to(train_index: ManifestIndex, kind: str) -> None:
    loader = make_loader(train_index, sampling="sentence", global_batch=2, num_workers=1, worker_kind=kind)
    kept = list(loader)
    expected = list(make_loader(train_index, sampling="sentence", global_batch=2))

    again = list(loader)

    for one, other, anew in zip(kept, expected, again, strict=True):
        assert_equal(one, other)
        assert_equal(one, anew)


def test_memory_of_batches_that_are_gone_is_used_again() -> None:
    buffers = Buffers("reused")
    tensor = buffers.empty((2, 3))
    address, view = tensor.data_ptr(), tensor[1]
    del tensor
    assert buffers.empty((2, 3)).data_ptr() != address
    del view
    gc.collect()
    assert address in {buffers.empty((2, 3)).data_ptr() for _ in range(2)}


def test_a_worker_uses_memory_again_when_the_training_process_has_given_it_back() -> None:
    buffers = SharedBuffers()
    kept = buffers.empty((2, 3)).fill_(7)
    view = give_back_when_gone(buffers.empty((2, 3)).fill_(8))[1]
    address = view.data_ptr() - 3

    assert buffers.empty((2, 3)).data_ptr() not in (address, kept.data_ptr())
    assert view.tolist() == [8, 8, 8]
    del view
    gc.collect()
    assert buffers.empty((2, 3)).data_ptr() == address
    assert kept.tolist() == [[7] * 3] * 2


def test_what_a_worker_never_gets_back_it_replaces() -> None:
    buffers = SharedBuffers()
    kept = [buffers.empty((3,)).fill_(i) for i in range(20)]

    assert [tensor.tolist() for tensor in kept] == [[i] * 3 for i in range(20)]
    assert sum(map(len, buffers._memory.values())) < 10


def test_processes_hand_over_in_memory_that_they_have_used_before(train_index: ManifestIndex) -> None:
    loader = make_loader(train_index, sampling="sentence", global_batch=2, num_workers=1, worker_kind="processes")
    files = []
    for _ in range(3):
        for batch in loader:
            files.append(shared_file(batch.images))
            del batch

    assert len(files) == 63
    assert len(set(files)) <= 6


def test_pinning_copies_a_batch_and_gives_its_memory_back(
    train_index: ManifestIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    loader = make_loader(train_index, num_workers=1, worker_kind="processes")
    expected = next(iter(make_loader(train_index)))
    monkeypatch.setattr(torch.Tensor, "pin_memory", torch.Tensor.clone)  # pinning needs a GPU
    packed = next(iter(loader.dataloader))
    lent = {name: getattr(packed.batch, name) for name in ("images", "masks")}
    flags = [torch.empty(0, dtype=torch.uint8).set_(tensor.untyped_storage())[-1] for tensor in lent.values()]

    assert [int(flag) for flag in flags] == [1, 1]
    pinned = pin_memory(packed)

    assert [int(flag) for flag in flags] == [0, 0]
    for tensor in lent.values():
        tensor.zero_()  # the worker overwrites its memory like this
    assert_equal(pinned.unpack(torch.device("cpu")), expected)


def shared_file(tensor: torch.Tensor) -> int:
    """Return the inode of the shared memory that holds a tensor, from the list of this process's maps."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        start, end = (int(address, 16) for address in line.split()[0].split("-"))
        if start <= tensor.data_ptr() < end:
            return int(line.split()[4])
    raise AssertionError("the tensor is nowhere")


def test_leaving_an_epoch_early_ends_its_threads(train_index: ManifestIndex) -> None:
    for _ in make_loader(train_index, num_workers=2):
        break
    gc.collect()

    assert not [thread for thread in threading.enumerate() if thread.name.startswith("refseg-loader")]
