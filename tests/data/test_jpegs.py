"""Decoding on the device: on a CPU the same code gives the same pixels as in workers."""

from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image

from refseg.data import jpegs
from refseg.data.batch import Batch
from refseg.data.decode import decode_rgb, is_plain
from refseg.data.index import ManifestIndex
from refseg.data.jpegs import Jpegs
from refseg.data.loader import RefLoader, prepare_loader
from refseg.data.transforms import Geometry, resize_as_floats
from refseg.errors import DatasetError, ImageError, UsageError
from refseg.reading import Reading

from .conftest import Picture, Ref, draw_jpeg

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")  # on one core

CPU = torch.device("cpu")


def make_loader(index: ManifestIndex, **options: Any) -> RefLoader:
    defaults = {
        "geometry": "letterbox",
        "input_size": (24, 28),
        "global_batch": 6,
        "num_tokens": 12,
        "remainder": "pad",
    }
    return RefLoader(index, Reading(**defaults | options))


def assert_equal(one: Batch, other: Batch) -> None:
    for name, a, b in zip(Batch._fields, one, other, strict=True):
        assert torch.equal(a, b), name


def as_bytes(jpeg: bytes) -> np.ndarray:
    return np.frombuffer(bytearray(jpeg), np.uint8)


@pytest.mark.parametrize(("num_workers", "kind"), [(0, "threads"), (2, "threads"), (2, "processes")])
@pytest.mark.parametrize("sampling", ["ref", "images"])
def test_batches_are_those_of_decoding_in_the_workers(
    train_index: ManifestIndex, sampling: str, num_workers: int, kind: str
) -> None:
    expected = list(make_loader(train_index, sampling=sampling))
    loader = make_loader(train_index, sampling=sampling, num_workers=num_workers, worker_kind=kind, decode="device")

    assert (packed := next(iter(loader.dataloader))).jpegs is not None
    assert packed.batch.images.shape == (0, 3, 24, 28)  # nothing is decoded yet
    for batches in (list(loader), list(prepare_loader(Accelerator(cpu=True), loader))):
        for batch, one in zip(batches, expected, strict=True):
            assert batch.images.is_contiguous(memory_format=torch.channels_last)
            assert_equal(batch, one)


def test_a_picture_that_is_twice_in_a_batch_is_read_once(train_index: ManifestIndex) -> None:
    packed = next(iter(make_loader(train_index, shuffle=False, decode="device").dataloader))

    # Rows 0 | 1 2 | 3 4 5 are of images 0, 1, 2.
    assert packed.jpegs is not None
    assert packed.jpegs.shown == (0, 1, 1, 2, 2, 2)
    data = [train_index.read_image_bytes(image) for image in range(3)]
    assert packed.jpegs.data.numpy().tobytes() == b"".join(data)
    assert packed.jpegs.offsets.tolist() == [0, len(data[0]), len(data[0] + data[1]), len(data[0] + data[1] + data[2])]


def red_green_blue() -> bytes:
    data = BytesIO()
    Image.new("RGB", (32, 24), (200, 30, 60)).save(data, "JPEG", keep_rgb=True)
    return data.getvalue()


@pytest.mark.parametrize(
    ("jpeg", "expected"),
    [
        (draw_jpeg(1, (24, 32)), True),
        (draw_jpeg(1, (24, 32), "L"), False),
        (draw_jpeg(1, (24, 32), "CMYK"), False),
        (red_green_blue(), False),
        (b"no picture", False),
    ],
    ids=["YCbCr", "grey", "CMYK", "RGB", "none"],
)
def test_only_brightness_and_colour_are_for_the_devices_decoder(jpeg: bytes, expected: bool) -> None:
    assert is_plain(as_bytes(jpeg)) == expected


def test_grey_and_cmyk_pictures_are_decoded_on_the_cpu_and_have_three_channels(
    tmp_path: Path, write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures = [
        Picture(i, (24, 28), (Ref(i, (0, 0, 20, 20), ("left one",)),), draw_jpeg(i, (24, 28), mode))
        for i, mode in enumerate(("RGB", "L", "CMYK"))
    ]
    index = ManifestIndex.open(write(tmp_path / "d", {"train-00000": pictures}), ["train"])
    asked: list[int] = []
    decode = jpegs.decode_plain_rgb
    monkeypatch.setattr(
        jpegs, "decode_plain_rgb", lambda files, device: asked.append(len(files)) or decode(files, device)
    )
    (expected,) = make_loader(index, shuffle=False, global_batch=3)
    (batch,) = make_loader(index, shuffle=False, global_batch=3, decode="device")

    assert asked == [1]
    assert_equal(batch, expected)


def test_what_the_devices_decoder_refuses_the_cpu_decodes(
    train_index: ManifestIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(files: object, device: object) -> list[torch.Tensor]:
        raise ImageError("nvJPEG: not supported")

    expected = list(make_loader(train_index))
    monkeypatch.setattr(jpegs, "decode_plain_rgb", refuse)

    for batch, one in zip(make_loader(train_index, decode="device"), expected, strict=True):
        assert_equal(batch, one)


def test_a_picture_that_cannot_be_decoded_is_named(tmp_path: Path, write: Callable[..., Path]) -> None:
    def ref(number: int) -> Ref:
        return Ref(number, (0, 0, 20, 20), ("left one",))

    pictures = [
        Picture(5, (24, 28), (ref(1),)),
        Picture(6, (24, 28), (ref(2),), draw_jpeg(6, (24, 28))[:200]),
        Picture(7, (24, 28), (ref(3),), b"no picture"),
    ]
    index = ManifestIndex.open(write(tmp_path / "d", {"train-00000": pictures}), ["train"])
    geometry = Geometry(kind="stretch", size=(32, 32))

    for image in (1, 2):
        with pytest.raises(
            DatasetError, match=rf"image {5 + image}\b.*(cannot be decoded|is not a JPEG).*`refseg verify`"
        ):
            Jpegs.read(index, [0, image], geometry).decode(CPU)


@pytest.mark.parametrize("size", [(48, 64), (37, 91), (5, 200), (333, 500)])
def test_resizing_as_gpus_do_is_the_same_to_one_level(size: tuple[int, int]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    expected = np.array(Image.fromarray(pixels).resize((40, 48), Image.Resampling.BILINEAR)).astype(int)

    resized = resize_as_floats(torch.from_numpy(pixels).permute(2, 0, 1), (48, 40))

    assert np.abs(resized.permute(1, 2, 0).numpy() - expected).max() <= 1


def test_a_cache_of_decoded_images_and_decoding_on_the_device_exclude_each_other(train_index: ManifestIndex) -> None:
    with pytest.raises(UsageError, match=r"decoded on the device are not cached; decode on the CPU"):
        make_loader(train_index, decode="device", cache_gigabytes=0.001)


def test_the_bytes_can_be_looked_at_as_the_cpu_does(train_index: ManifestIndex) -> None:
    jpeg = as_bytes(train_index.read_image_bytes(0))
    assert is_plain(jpeg)
    assert torch.equal(jpegs.decode_plain_rgb([torch.from_numpy(jpeg)], CPU)[0], decode_rgb(jpeg))
