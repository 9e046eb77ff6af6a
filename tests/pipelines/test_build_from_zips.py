"""Annotations and images in ZIP archives are built from as they are, and the dataset has the same bytes."""

import shutil
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pipelines.build import build_dataset
from pipelines.verify import verify_dataset
from refseg import load_dataset, storage_requests
from refseg.cli import main
from tests.range_server import RangeServer, serving

from .conftest import TinyRefer


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[RangeServer]:
    monkeypatch.setattr(storage_requests, "_FIRST_PAUSE_SECONDS", 0.0)
    with serving() as server:
        yield server


@pytest.fixture
def zipped(tiny: TinyRefer, tmp_path: Path) -> Path:
    """The dataset as it is released: `refcoco.zip` and `train2014.zip`, with what macOS leaves in archives."""
    tiny.write()
    folder = tmp_path / "zipped"
    folder.mkdir()
    with zipfile.ZipFile(folder / "refcoco.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted((tiny.root / "refcoco").iterdir()):
            archive.write(path, f"refcoco/{path.name}")
        archive.writestr("__MACOSX/refcoco/._instances.json", b"\0\5\x16\7")
    with zipfile.ZipFile(folder / "train2014.zip", "w") as archive:
        for path in sorted(tiny.image_folder.iterdir()):
            archive.write(path, f"train2014/{path.name}")
    return folder


@pytest.mark.parametrize(
    ("annotations", "images"),
    [
        ("{zipped}", None),
        ("{zipped}/refcoco.zip", "{zipped}/train2014.zip"),
        ("{url}/refcoco.zip", "{url}/train2014.zip"),
        ("memory://{zipped}", None),
    ],
)
def test_a_dataset_out_of_archives_is_that_of_the_unpacked_files(
    annotations: str,
    images: str | None,
    tiny: TinyRefer,
    zipped: Path,
    server: RangeServer,
    tmp_path: Path,
    contents: Callable[[Path], dict[str, bytes]],
) -> None:
    import fsspec

    for path in zipped.iterdir():
        server.files[path.name] = path
        fsspec.filesystem("memory").pipe(str(path), path.read_bytes())
    build_dataset(tiny.options(tmp_path / "unpacked"))
    given = {"zipped": zipped, "url": server.url}
    options = ["--annotations", annotations.format(**given), *(["--images", images.format(**given)] if images else [])]
    command = ["build-shards", "refcoco/unc", *options, "--out", str(tmp_path / "out"), "--workers", "1"]
    command += ["--images-per-shard", "2", "--accept-counts"]

    assert main(command) == 0
    assert contents(tmp_path / "out") == contents(tmp_path / "unpacked")
    assert main(command) == 0  # a finished one is recognised


def test_a_folder_of_the_dataset_is_read_and_not_the_archive_beside_it(
    tiny: TinyRefer, zipped: Path, tmp_path: Path
) -> None:
    shutil.copy(zipped / "refcoco.zip", tiny.root)
    (tiny.root / "refcoco.zip").write_bytes(b"damaged")

    assert build_dataset(tiny.options(tmp_path / "out")).descriptor is not None


def test_a_damaged_picture_of_an_archive_is_named(
    tiny: TinyRefer, zipped: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = tiny.image_path(8).read_bytes()
    data = (zipped / "train2014.zip").read_bytes()
    (zipped / "train2014.zip").write_bytes(data.replace(picture, bytes(len(picture))))
    command = ["build-shards", "refcoco/unc", "--annotations", str(zipped), "--out", str(tmp_path / "out")]

    assert main([*command, "--accept-counts", "--workers", "1"]) == 1
    assert "COCO_train2014_000000000008.jpg cannot be read (is damaged in the archive: found CRC-32" in (
        capsys.readouterr().err
    )


def test_an_archive_without_annotations_is_named(
    zipped: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = f"{zipped}/train2014.zip"

    assert main(["build-shards", "refcoco/unc", "--annotations", given, "--out", str(tmp_path / "out")]) == 2
    assert f"{given}: found no annotation file (.p, .json" in capsys.readouterr().err


def test_a_built_dataset_is_read_out_of_an_archive(tiny: TinyRefer, tmp_path: Path, server: RangeServer) -> None:
    build_dataset(tiny.options(tmp_path / "built"))
    with zipfile.ZipFile(tmp_path / "built.zip", "w") as archive:
        for path in (tmp_path / "built").iterdir():
            archive.write(path, f"tiny/{path.name}")
    server.files["built.zip"] = tmp_path / "built.zip"
    whole = load_dataset(tmp_path / "built", "val")

    address = f"zip://tiny::{server.url}/built.zip"
    assert verify_dataset(address) == []
    assert (load_dataset(address, "val")[0].image == whole[0].image).all()
