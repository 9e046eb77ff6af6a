"""The memory of a batch is not overwritten while a device may still copy from it."""

import threading
from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any

import pytest
import torch
from accelerate import Accelerator

from refseg.data.batch import Batch
from refseg.data.buffers import can_pin, memory_kind
from refseg.data.index import ManifestIndex
from refseg.data.loader import RefLoader, prepare_loader
from refseg.reading import Reading

from .fake_device import FakeDevice

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")  # on one core

LAG = 3
"""Steps by which the device is behind the program."""


def make_loader(index: ManifestIndex, **options: Any) -> RefLoader:
    reading = Reading(
        geometry="letterbox", input_size=(24, 28), sampling="sentence", global_batch=2, num_tokens=12, remainder="pad",
        **options,
    )  # fmt: skip
    return RefLoader(index, reading)


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeDevice]:
    device = FakeDevice()
    device.install(monkeypatch)
    yield device
    device.close()


class Steps:
    """A training loop's compute on the stream: each step ends when the program is `LAG` steps ahead."""

    def __init__(self, device: FakeDevice) -> None:
        self._device = device
        self._queued: list[tuple[threading.Event, Future[Any]]] = []

    def take(self) -> None:
        may_end = threading.Event()
        self._queued.append((may_end, self._device.queue(may_end.wait)))
        if len(self._queued) > LAG:
            self._end(self._queued.pop(0))

    def __enter__(self) -> "Steps":
        return self

    def __exit__(self, *_: object) -> None:
        while self._queued:
            self._end(self._queued.pop(0))
        self._device.queue(lambda: None).result()

    def _end(self, step: tuple[threading.Event, "Future[Any]"]) -> None:
        step[0].set()
        step[1].result()


def assert_equal(found: list[Batch], expected: list[Batch]) -> None:
    foreign = [
        f"{name} of batch {number}"
        for number, (one, other) in enumerate(zip(found, expected, strict=True))
        for name, a, b in zip(Batch._fields, one, other, strict=True)
        if not torch.equal(a, b)
    ]
    assert not foreign


WORKERS = [(0, "threads"), (2, "threads"), (4, "threads"), (2, "processes")]


@pytest.mark.parametrize("decode", ["cpu", "device"])
@pytest.mark.parametrize(("num_workers", "kind"), WORKERS)
def test_batches_that_accelerate_copies_while_the_device_is_behind_are_those_that_were_packed(
    train_index: ManifestIndex,
    request: pytest.FixtureRequest,
    num_workers: int,
    kind: str,
    decode: str,
) -> None:
    accelerator = Accelerator(cpu=True)
    expected = [batch for _ in range(2) for batch in make_loader(train_index)]
    device: FakeDevice = request.getfixturevalue("device")
    loader = make_loader(train_index, num_workers=num_workers, worker_kind=kind, decode=decode)
    prepared = prepare_loader(accelerator, loader)

    found = []
    with Steps(device) as steps:
        for _ in range(2):
            for batch in prepared:
                found.append(batch)  # on the device, and read when it has come there
                del batch
                steps.take()

    assert_equal(found, expected)
    assert device.num_not_pinned == 0
    # A batch has nine tensors. Their number stays below that of the batches in flight, so memory is reused.
    assert len(device.blocks) <= 9 * (2 * num_workers + LAG + 5)


@pytest.mark.parametrize(("num_workers", "kind"), WORKERS)
def test_batches_that_a_caller_copies_in_parts_are_those_that_were_packed(
    train_index: ManifestIndex, request: pytest.FixtureRequest, num_workers: int, kind: str
) -> None:
    expected = [Batch(*(t[1:] if t.ndim else t for t in batch)) for batch in make_loader(train_index)]
    device: FakeDevice = request.getfixturevalue("device")

    found = []
    with Steps(device) as steps:
        for batch in make_loader(train_index, num_workers=num_workers, worker_kind=kind):
            found.append(Batch(*((t[1:] if t.ndim else t).to("cpu", non_blocking=True) for t in batch)))
            del batch
            steps.take()

    assert_equal(found, expected)
    assert device.num_not_pinned == 0


@pytest.mark.parametrize(
    ("device", "kind", "is_queued"),
    [(None, "reused", False), ("cuda", "pinned", True), ("xpu", "pinned", True), ("mps", "fresh", False)],
)
def test_copies_are_queued_only_from_memory_whose_copies_torch_tracks(
    train_index: ManifestIndex, monkeypatch: pytest.MonkeyPatch, device: str | None, kind: str, is_queued: bool
) -> None:
    found = None if device is None else torch.device(device)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available=False: found)

    assert memory_kind() == kind
    assert can_pin(torch.device(device or "cpu")) == is_queued
    assert make_loader(train_index).dataloader.pin_memory == (kind == "pinned")


@pytest.mark.parametrize(("num_workers", "kind"), [(0, "threads"), (1, "processes")])
def test_memory_that_a_device_may_read_untracked_is_not_used_again(
    train_index: ManifestIndex, monkeypatch: pytest.MonkeyPatch, num_workers: int, kind: str
) -> None:
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available=False: torch.device("mps"))
    loader = make_loader(train_index, num_workers=num_workers, worker_kind=kind)

    assert [packed.is_lent for packed in loader.dataloader] == [False] * len(loader)
    assert not loader.dataloader.dataset._own_buffers._free


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU: its stream is made to wait")
@pytest.mark.parametrize("decode", ["cpu", "device"])
@pytest.mark.parametrize(("num_workers", "kind"), WORKERS)
def test_on_a_gpu_batches_are_those_that_were_packed(
    train_index: ManifestIndex, num_workers: int, kind: str, decode: str
) -> None:
    expected = [batch for _ in range(2) for batch in make_loader(train_index)]
    loader = make_loader(train_index, num_workers=num_workers, worker_kind=kind, decode=decode)

    found = []
    for _ in range(2):
        for batch in prepare_loader(Accelerator(), loader):
            assert batch.masks.is_cuda
            found.append(batch)
            del batch
            torch.cuda._sleep(100_000_000)  # cycles, some 50 ms: the loader is far ahead

    on_cpu = [Batch(*(tensor.cpu() for tensor in batch)) for batch in found]
    if decode == "device":  # nvJPEG's pixels differ by a few levels
        for one, other in zip(on_cpu, expected, strict=True):
            assert (one.images.float() - other.images.float()).abs().mean() < 4
        on_cpu = [one._replace(images=other.images) for one, other in zip(on_cpu, expected, strict=True)]
    assert_equal(on_cpu, expected)
