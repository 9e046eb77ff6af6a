from io import BytesIO
from pathlib import Path

import fsspec
import pytest
from PIL import Image

from pipelines.images import LAYOUTS, ImageFinder
from pipelines.jpeg_faults import read_jpeg_sizes
from refseg.storage import RemoteFolder

NAME = "COCO_train2014_000000000025.jpg"


def put(folder: Path, name: str = NAME) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(b"x")
    return folder / name


@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_image_is_found_in_every_layout(layout: str, tmp_path: Path) -> None:
    path = put(tmp_path / layout)

    found = ImageFinder([tmp_path], is_coco=True).find(25, NAME)

    assert found is not None
    assert (Path(found.address).resolve(), found.num_bytes) == (path.resolve(), 1)


@pytest.mark.parametrize("name", [NAME, "000000000025.jpg", "COCO_val2014_000000000025.jpg", "other.jpg"])
def test_an_image_is_found_under_every_name(name: str, tmp_path: Path) -> None:
    put(tmp_path / "train2017", name)

    found = ImageFinder([tmp_path], is_coco=True).find(25, "val2014/other.jpg")

    assert found is not None
    assert found.name == name


def test_the_annotated_name_wins_and_then_the_first_layout(tmp_path: Path) -> None:
    put(tmp_path, "000000000025.jpg")
    put(tmp_path / "train2014")
    first = put(tmp_path / "images/train2014")

    found = ImageFinder([tmp_path], is_coco=True).find(25, NAME)

    assert found is not None
    assert found.address == str(first)


def test_a_folder_or_a_dead_link_is_no_image(tmp_path: Path) -> None:
    (tmp_path / NAME).mkdir()
    (tmp_path / "000000000026.jpg").symlink_to(tmp_path / "nowhere")

    index = ImageFinder([tmp_path], is_coco=True)

    assert index.find(25, NAME) is None
    assert index.find(26, "COCO_train2014_000000000026.jpg") is None


def test_no_name_leads_out_of_the_folder(tmp_path: Path) -> None:
    put(tmp_path, "secret.jpg")
    (tmp_path / "images").mkdir()

    assert ImageFinder([tmp_path / "images"], is_coco=True).find(25, "../secret.jpg") is None


def test_pictures_of_saiapr_are_found_in_their_numbered_folders(tmp_path: Path) -> None:
    path = put(tmp_path / "saiapr_tc-12/19/images", "19579.jpg")

    found = ImageFinder([tmp_path], is_coco=False).find(19579, "19579.jpg")

    assert found is not None
    assert found.address == str(path)


def test_folders_of_a_name_tell_pictures_apart_where_they_are_kept(tmp_path: Path) -> None:
    put(tmp_path / "images", "a.jpg")
    put(tmp_path / "01/images", "a.jpg")
    first, second = put(tmp_path / "images/s/t", "b.jpg"), put(tmp_path / "s/u", "b.jpg")

    kept = ImageFinder([tmp_path], is_coco=False, keep_folders=True)
    found = {name: kept.find(1000, name) for name in ("s/t/b.jpg", "s/u/b.jpg", "./a.jpg")}

    assert [file and Path(file.address).resolve() for file in found.values()] == [
        first,
        second,
        tmp_path / "images/a.jpg",
    ]
    for name in ("s/t/a.jpg", "s/u/a.jpg", "b.jpg", "x/../a.jpg", "../a.jpg", str(first), "..", "/", ""):
        assert kept.find(1000, name) is None, name
    assert ImageFinder([tmp_path], is_coco=False).find(1000, "s/t/a.jpg") is not None  # RefClef's names have none


def test_sizes_of_remote_pictures_are_read_from_their_start_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = fsspec.filesystem("memory")
    data = BytesIO()
    Image.effect_noise((400, 300), 100).save(data, "JPEG", quality=95)
    assert len(data.getvalue()) > 2**16
    asked: list[int | None] = []
    read = RemoteFolder.read

    def noted(folder: RemoteFolder, name: str, start: int = 0, length: int | None = None) -> bytes:
        asked.append(length)
        return read(folder, name, start, length)

    monkeypatch.setattr(RemoteFolder, "read", noted)
    for name in ("a.jpg", "b.jpg"):
        files.pipe(f"{tmp_path}/{name}", data.getvalue())
    index = ImageFinder([f"memory://{tmp_path}"], is_coco=False, keep_folders=True)
    found = [image for name in ("a.jpg", "b.jpg") if (image := index.find(1, name))]

    assert read_jpeg_sizes(found) == [(300, 400), (300, 400)]
    assert asked == [2**16, 2**16]


def test_names_alike_are_found_in_the_folder_named_and_then_in_any(tmp_path: Path) -> None:
    for name in ("images/s/A.JPG", "images/a.jpeg", "images/b.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()

    found = ImageFinder([tmp_path], is_coco=False).find_alike(["s/a.jpg", "t/a.jpg", "b.jpg", "../a.jpg", "/a.jpg"])

    assert found == {"s/a.jpg": "s/A.JPG", "t/a.jpg": "a.jpeg"}


def test_a_name_longer_than_a_file_system_allows_is_no_file(tmp_path: Path) -> None:
    put(tmp_path)

    assert ImageFinder([tmp_path], is_coco=False, keep_folders=True).find(1, f"{'a' * 300}.jpg") is None


def test_names_alike_may_be_percent_encoded(tmp_path: Path) -> None:
    put(tmp_path, "a b.jpg")

    assert ImageFinder([tmp_path], is_coco=False).find_alike(["a%20b.jpg"]) == {"a%20b.jpg": "a b.jpg"}
