"""Geometry: by hand, compared with Pillow, and from the original to the input and back."""

from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image

from refseg.data.index import ManifestIndex
from refseg.data.transforms import Geometry, normalise
from refseg.models.image_encoder import CLIP_MEAN, CLIP_STD, IMAGENET_MEAN, IMAGENET_STD

from .conftest import run_lengths

SIZES = [(48, 64), (64, 48), (64, 64), (37, 91), (5, 200), (200, 5), (100, 100), (333, 500), (1, 1)]


def blob(size: tuple[int, int]) -> np.ndarray:
    """An ellipse with a hole: object and background touch no border."""
    y, x = np.mgrid[: size[0], : size[1]]
    y, x = (y + 0.5) / size[0] - 0.5, (x + 0.5) / size[1] - 0.45
    radius = (y / 0.4) ** 2 + (x / 0.35) ** 2
    return ((radius < 1) & (radius > 0.1)).astype(np.uint8)


@pytest.mark.parametrize(
    ("kind", "original", "expected"),
    [
        ("letterbox", (48, 64), (4, 0, 24, 32)),  # scale 0.5: 24 of 32 rows, 4 above
        ("letterbox", (64, 48), (0, 4, 32, 24)),
        ("letterbox", (32, 32), (0, 0, 32, 32)),
        ("letterbox", (16, 8), (0, 8, 32, 16)),  # scale 2
        ("letterbox", (30, 40), (4, 0, 24, 32)),
        ("letterbox", (29, 40), (4, 0, 23, 32)),  # 23.2 rows; 9 over: 4 above, 5 below
        ("letterbox", (1, 1000), (15, 0, 1, 32)),
        ("stretch", (48, 64), (0, 0, 32, 32)),
    ],
)
def test_where_a_picture_lies(kind: str, original: tuple[int, int], expected: tuple[int, ...]) -> None:
    assert Geometry(kind=kind, size=(32, 32)).placed(original) == expected  # type: ignore[arg-type]


def test_an_input_that_is_not_square_is_filled_on_its_tighter_side() -> None:
    assert Geometry(kind="letterbox", size=(32, 64)).placed((10, 10)) == (0, 16, 32, 32)
    assert Geometry(kind="letterbox", size=(64, 32)).placed((10, 20)) == (24, 0, 16, 32)


def test_the_border_has_the_mean_colour_and_becomes_zero() -> None:
    image = torch.full((3, 16, 32), 255, dtype=torch.uint8)

    boxed = Geometry(kind="letterbox", size=(32, 32)).apply_image(image)

    # 255 x (0.4815, 0.4578, 0.4082) = 122.8, 116.7, 104.1
    assert boxed[:, 0, 0].tolist() == [123, 117, 104]
    assert boxed[:, 8:24].min() == 255
    assert (boxed[:, :8] == boxed[:, :1, :1]).all()
    assert (boxed[:, 24:] == boxed[:, :1, :1]).all()
    assert normalise(boxed[None], CLIP_MEAN, CLIP_STD)[0, :, 0, 0].abs().max() < 0.5 / 255 / min(CLIP_STD)
    other = Geometry(kind="letterbox", size=(32, 32), mean=IMAGENET_MEAN).apply_image(image)
    assert other[:, 0, 0].tolist() == [124, 116, 104]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", ["letterbox", "stretch"])
def test_images_are_resized_as_pillow_does(kind: str, size: tuple[int, int]) -> None:
    geometry = Geometry(kind=kind, size=(48, 40))  # type: ignore[arg-type]
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    top, left, height, width = geometry.placed(size)
    expected = np.array(Image.fromarray(pixels).resize((width, height), Image.Resampling.BILINEAR)).astype(int)

    boxed = geometry.apply_image(torch.from_numpy(pixels).permute(2, 0, 1))

    assert boxed.shape == (3, 48, 40)
    inside = boxed.permute(1, 2, 0)[top : top + height, left : left + width].numpy()
    assert np.abs(inside - expected).max() <= 1


def test_memory_order_of_the_picture_changes_nothing() -> None:
    geometry = Geometry(kind="letterbox", size=(48, 48))
    pixels = torch.randint(0, 256, (3, 31, 60), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    channels_last = pixels.permute(1, 2, 0).contiguous().permute(2, 0, 1)

    assert torch.equal(geometry.apply_image(pixels), geometry.apply_image(channels_last))
    assert geometry.apply_image(channels_last).permute(1, 2, 0).is_contiguous()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", ["letterbox", "stretch"])
def test_masks_are_resized_as_pillow_does(kind: str, size: tuple[int, int]) -> None:
    geometry = Geometry(kind=kind, size=(48, 40))  # type: ignore[arg-type]
    mask = np.random.default_rng(1).integers(0, 2, size, np.uint8)
    mask[0, 0] = 1  # begins with object
    top, left, height, width = geometry.placed(size)
    expected = np.zeros((48, 40), np.uint8)
    resized = Image.fromarray(mask).resize((width, height), Image.Resampling.NEAREST)
    expected[top : top + height, left : left + width] = np.array(resized)

    drawn = geometry.apply_mask(np.cumsum(run_lengths(mask)), size)

    assert np.array_equal(drawn, expected)


@pytest.mark.parametrize("size", [(48, 64), (64, 48), (375, 500), (500, 333), (427, 640)])
@pytest.mark.parametrize("kind", ["letterbox", "stretch"])
def test_a_mask_comes_back_to_its_place(kind: str, size: tuple[int, int]) -> None:
    geometry = Geometry(kind=kind, size=(480, 480))  # type: ignore[arg-type]
    mask = blob(size)

    drawn = geometry.apply_mask(np.cumsum(run_lengths(mask)), size)
    back = geometry.invert(torch.from_numpy(drawn)[None].float(), size)[0].numpy() > 0.5

    assert back.shape == size
    assert (back & (mask > 0)).sum() / (back | (mask > 0)).sum() > 0.98


def test_image_mask_and_inverse_agree_on_where_a_picture_lies() -> None:
    # A white rectangle in a black picture: the mask must lie on the white pixels, and so must scores made of them.
    geometry = Geometry(kind="letterbox", size=(96, 96), mean=(0.0, 0.0, 0.0))
    mask = np.zeros((61, 97), np.uint8)
    mask[20:41, 30:71] = 1
    image = torch.from_numpy(mask * 255).expand(3, -1, -1)

    white = geometry.apply_image(image)[0] > 127
    drawn = torch.from_numpy(geometry.apply_mask(np.cumsum(run_lengths(mask)), (61, 97))) > 0
    back = geometry.invert(white[None].float(), (61, 97))[0].numpy() > 0.5

    assert (white & drawn).sum() / (white | drawn).sum() > 0.95
    assert (back & (mask > 0)).sum() / (back | (mask > 0)).sum() > 0.95


def test_inverting_leaves_the_border_out() -> None:
    # 2 x 4 pixels in a 4 x 4 input: rows 1 and 2. The border's high scores must not leak in.
    scores = torch.full((2, 4, 4), 100.0)
    scores[:, 1:3] = torch.tensor([[1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, 8.0]])

    back = Geometry(kind="letterbox", size=(4, 4)).invert(scores, (2, 4))

    assert back.shape == (2, 2, 4)
    assert back[1].tolist() == [[1, 2, 3, 4], [5, 6, 7, 8]]


def test_normalising_equals_its_formula() -> None:
    images = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(2, 3, -1, -1)

    floats = normalise(images, IMAGENET_MEAN, IMAGENET_STD)

    assert floats.dtype == torch.float32
    for channel in range(3):
        expected = (np.arange(256) / 255 - IMAGENET_MEAN[channel]) / IMAGENET_STD[channel]
        assert np.allclose(floats[1, channel].flatten().numpy(), expected, atol=1e-6)


def test_normalising_keeps_the_memory_order() -> None:
    images = torch.zeros(2, 8, 8, 3, dtype=torch.uint8).permute(0, 3, 1, 2)
    assert normalise(images, CLIP_MEAN, CLIP_STD).is_contiguous(memory_format=torch.channels_last)


def test_real_pictures_equal_pillow(train_index: ManifestIndex) -> None:
    geometry = Geometry(kind="stretch", size=(32, 32))
    picture = Image.open(BytesIO(train_index.read_image_bytes(1)))
    expected = np.array(picture.resize((32, 32), Image.Resampling.BILINEAR)).astype(int)

    resized = geometry.apply_image(train_index.decode_image(1))

    assert np.abs(resized.permute(1, 2, 0).numpy() - expected).max() <= 1


def test_constants_are_put_on_a_device_once(monkeypatch: pytest.MonkeyPatch) -> None:
    images = torch.arange(36, dtype=torch.uint8).reshape(1, 3, 3, 4)
    geometry = Geometry(kind="letterbox", size=(6, 4))
    with torch.inference_mode():  # an evaluation may come first, and a training use what it has left
        normalise(images, CLIP_MEAN, CLIP_STD)
    first = normalise(images, CLIP_MEAN, CLIP_STD), geometry.apply_image(images[0])
    monkeypatch.setattr(torch, "tensor", lambda *_, **__: pytest.fail("a constant is built again"))

    again = normalise(images, CLIP_MEAN, CLIP_STD), geometry.apply_image(images[0])
    assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))
    weight = torch.ones(1, 3, 1, 1, requires_grad=True)
    (again[0] * weight).sum().backward()
    assert torch.equal(weight.grad, again[0].sum(dim=(0, 2, 3), keepdim=True))
