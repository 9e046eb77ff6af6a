"""Pictures reduced to training size: files are smaller, and all else equals a build of the originals."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pipelines.build import build_dataset
from pipelines.resize import parse_store, shrink_jpeg
from pipelines.verify import verify_dataset
from refseg.data.index import ManifestIndex
from refseg.data.transforms import Geometry
from refseg.errors import BuildError, UsageError

Contents = Callable[[Path], dict[str, bytes]]


@pytest.mark.parametrize(
    ("store", "shape"),
    [("letterbox:8", (4, 8)), ("stretch:8", (8, 8)), ("letterbox:6x8", (4, 8)), ("stretch:4x6", (4, 6))],
)
def test_pictures_get_the_size_the_network_sees(tiny: Any, tmp_path: Path, store: str, shape: tuple[int, int]) -> None:
    descriptor = build_dataset(tiny.options(tmp_path / "out", store=store, store_quality=90)).descriptor

    assert descriptor.stored_images == parse_store(store, 90)
    assert verify_dataset(tmp_path / "out") == []
    index = ManifestIndex.open(tmp_path / "out", ["val"])
    assert tuple(index.decode_image(0).shape[1:]) == shape
    assert index.size(0) == (10, 20)  # what masks and scores go by


def test_masks_and_places_are_those_of_the_originals(tiny: Any, tmp_path: Path) -> None:
    build_dataset(tiny.options(tmp_path / "whole"))
    build_dataset(tiny.options(tmp_path / "small", store="letterbox:8"))
    whole, small = (ManifestIndex.open(tmp_path / name, ["val"]) for name in ("whole", "small"))

    for kind in ("letterbox", "stretch"):
        geometry = Geometry(kind=kind, size=(8, 8))
        for row in range(whole.num_rows):
            assert np.array_equal(whole.target_mask(row), small.target_mask(row))
            masks = [geometry.apply_mask(index.run_ends(row), index.size(row)) for index in (whole, small)]
            assert np.array_equal(*masks)
            image = int(whole.row_image[row])
            pictures = [
                geometry.apply_image(index.decode_image(image), index.size(row)).to(torch.float32)
                for index in (whole, small)
            ]
            # The border is the same to the pixel; inside, a JPEG of noise lies between.
            top, _, height, _ = geometry.placed((10, 20))
            assert torch.equal(pictures[0][:, :top], pictures[1][:, :top])
            inside = slice(top, top + height)
            assert (pictures[0][:, inside] - pictures[1][:, inside]).abs().mean() < 40


def test_a_picture_that_would_have_to_grow_stays_as_it_is(tiny: Any, tmp_path: Path) -> None:
    build_dataset(tiny.options(tmp_path / "out", store="letterbox:64"))

    index = ManifestIndex.open(tmp_path / "out", ["val"])
    image = int(index.row_image[0])
    assert index.read_image_bytes(image) == tiny.image_path(int(index.image_id[image])).read_bytes()


def test_grey_and_cmyk_pictures_become_rgb() -> None:
    for mode in ("L", "CMYK"):
        file = io.BytesIO()
        Image.new(mode, (40, 20)).save(file, "jpeg")
        small = Image.open(io.BytesIO(shrink_jpeg(file.getvalue(), parse_store("stretch:10", 95))))
        assert (small.mode, small.size) == ("RGB", (10, 10))


@pytest.mark.slow
def test_the_stored_size_is_a_key_of_the_plan(tiny: Any, tmp_path: Path, contents: Contents) -> None:
    build_dataset(tiny.options(tmp_path / "a", store="letterbox:8"))
    build_dataset(tiny.options(tmp_path / "b", store="letterbox:8", workers=2))
    assert contents(tmp_path / "a") == contents(tmp_path / "b")

    with pytest.raises(BuildError, match="store: letterbox:8"):
        build_dataset(tiny.options(tmp_path / "a"))


@pytest.mark.parametrize("store", ["480", "letterbox:", "crop:480", "stretch:0", "letterbox:480x", "stretch:99999"])
def test_other_words_are_refused(store: str) -> None:
    with pytest.raises(UsageError, match=f"--store {store}: expected letterbox:SIZE or stretch:SIZE"):
        parse_store(store, 95)


def test_what_contradicts_storing_is_refused(tiny: Any, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--store-quality 0: expected 1 to 100"):
        tiny.options(tmp_path / "out", store="letterbox:8", store_quality=0)
    with pytest.raises(UsageError, match=r"found --check-images header, .*; remove --check-images"):
        tiny.options(tmp_path / "out", store="letterbox:8", check_images="header")


def test_a_picture_of_any_number_of_pixels_is_made_smaller(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    # Pillow takes 179 million pixels for an attack; the size was compared with the annotated one before.
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50)

    small = shrink_jpeg(tiny.image_path(7).read_bytes(), parse_store("letterbox:8", 90))

    monkeypatch.undo()
    with Image.open(io.BytesIO(small)) as picture:
        assert picture.size == (8, 4)
