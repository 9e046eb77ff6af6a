"""ZIP archives are read as they are: local ones and remote ones, by byte ranges, and damage is named."""

import os
import struct
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

from pipelines.images import ImageFinder
from refseg import storage_requests
from refseg.errors import StorageError
from refseg.http_file import NoRangesError
from refseg.storage import archive_as_folder, open_folder, read_file
from tests.range_server import RangeServer, serving

FILES = {
    "train2014/a.jpg": os.urandom(3000),
    "train2014/empty.jpg": b"",
    "train2014/deep/b c%20#?ä.jpg": b"text " * 5000,
    "top.txt": b"0123456789",
}


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage_requests, "_FIRST_PAUSE_SECONDS", 0.0)


@pytest.fixture
def server() -> Iterator[RangeServer]:
    with serving() as server:
        yield server


def write_zip(path: Path, method: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", method, strict_timestamps=False) as archive:
        archive.writestr("train2014/", b"")
        for name, data in FILES.items():
            archive.writestr(name, data)
        archive.writestr("../out.jpg", b"out")
        archive.writestr("/etc/out.jpg", b"out")
    return path


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED], ids=["stored", "deflated"])
@pytest.mark.parametrize("where", ["path", "http", "memory"])
def test_files_are_read_whole_and_in_part_wherever_the_archive_lies(
    where: str, method: int, tmp_path: Path, server: RangeServer
) -> None:
    path = write_zip(tmp_path / "set.zip", method)
    server.files["set.zip"] = path
    fsspec.filesystem("memory").pipe(f"{tmp_path}/set.zip", path.read_bytes())
    address = {"path": path, "http": f"{server.url}/set.zip", "memory": f"memory:/{path}"}[where]

    top = open_folder(archive_as_folder(address))

    assert top.list() == {"top.txt": 10}
    folder = open_folder(top.join("train2014"))
    assert (folder.exists(), open_folder(top.join("val2014")).exists()) == (True, False)
    assert folder.list() == {"a.jpg": 3000, "empty.jpg": 0}
    assert folder.size("deep") is None
    for name, data in FILES.items():
        assert (top.size(name), top.read(name)) == (len(data), data)
        assert read_file(top.join(name)) == data
        for start, length in ((0, 7), (2, 5), (len(data), 3), (3, None), (0, 0)):
            assert top.read(name, start, length) == data[start : None if length is None else start + length]
    for missing in ("train2014/gone.jpg", "../out.jpg", "etc/out.jpg"):
        with pytest.raises(FileNotFoundError):
            top.read(missing)
    with pytest.raises(StorageError, match="a ZIP archive can only be read"):
        top.publish(path, "x")


def test_a_picture_of_a_remote_archive_is_one_request_after_the_directory(tmp_path: Path, server: RangeServer) -> None:
    server.files["set.zip"] = write_zip(tmp_path / "set.zip")
    folder = open_folder(f"zip://train2014::{server.url}/set.zip")
    folder.read("a.jpg")
    before = len(server.requests)

    assert folder.read("a.jpg") == FILES["train2014/a.jpg"]
    assert folder.read("a.jpg", 0, 100) == FILES["train2014/a.jpg"][:100]
    assert folder.list()
    assert len(server.requests) - before == 2


def test_a_changed_local_archive_is_read_anew(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "set.zip")
    folder = open_folder(archive_as_folder(path))
    assert folder.read("top.txt") == b"0123456789"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("top.txt", b"new")

    assert folder.read("top.txt") == b"new"


def test_damage_is_named_with_the_file(tmp_path: Path, server: RangeServer) -> None:
    path = write_zip(tmp_path / "set.zip")
    data = bytearray(path.read_bytes())
    data[data.index(FILES["train2014/a.jpg"]) + 5] ^= 1
    path.write_bytes(data)
    server.files["set.zip"] = bytes(data)

    with pytest.raises(OSError, match=r"found CRC-32 [0-9a-f]{8}, expected [0-9a-f]{8}; fetch the archive again"):
        read_file(f"zip://train2014/a.jpg::{path}")
    with pytest.raises(StorageError, match=r"zip://train2014/a\.jpg::http.*reading failed 5 times.*CRC-32"):
        read_file(f"zip://train2014/a.jpg::{server.url}/set.zip")
    path.write_bytes(data[:2000])
    with pytest.raises(StorageError, match=r"set\.zip: is not a complete ZIP archive"):
        read_file(f"zip://train2014/a.jpg::{path}")
    path.unlink()
    assert not open_folder(f"zip://::{path}").exists()


def test_a_file_that_unpacks_to_more_than_announced_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bomb.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.jpg", bytes(10**6))
    data = path.read_bytes()
    path.write_bytes(data.replace(struct.pack("<I", 10**6), struct.pack("<I", 1000)))

    with pytest.raises(OSError, match="found 1001 bytes, expected 1000"):
        read_file(f"zip://a.jpg::{path}")


@pytest.mark.parametrize("fault", ["cut", "503", "other part"])
def test_a_fault_of_the_server_that_passes_changes_nothing(fault: str, tmp_path: Path, server: RangeServer) -> None:
    server.files["set.zip"] = write_zip(tmp_path / "set.zip")
    server.fault = lambda request: fault if request.number in (1, 5) else None

    assert read_file(f"zip://train2014/a.jpg::{server.url}/set.zip") == FILES["train2014/a.jpg"]


def test_a_server_without_ranges_is_refused_before_the_archive_is_read(tmp_path: Path, server: RangeServer) -> None:
    server.files["set.zip"] = sparse = tmp_path / "set.zip"
    with sparse.open("wb") as file:
        file.truncate(1 << 32)
    server.fault = lambda request: "whole"

    with pytest.raises(NoRangesError, match=r"does not send parts of files \(byte ranges\)"):
        read_file(f"zip://a.jpg::{server.url}/set.zip")
    assert len(server.requests) < 3


def write_sparse_coco(path: Path, *, num_images: int, image_bytes: int) -> None:
    """Write an archive as large as COCO's whose pictures are zeros, which take no disk space."""
    crc = zlib.crc32(bytes(image_bytes))
    with zipfile.ZipFile(path, "w") as archive:
        file: Any = archive.fp
        for number in range(num_images):
            info = zipfile.ZipInfo(f"train2014/COCO_train2014_{number:012d}.jpg")
            info.CRC, info.file_size, info.compress_size = crc, image_bytes, image_bytes
            info.header_offset = file.tell()
            file.write(info.FileHeader(zip64=False))
            file.seek(image_bytes, os.SEEK_CUR)
            archive.filelist.append(info)
            archive.NameToInfo[info.filename] = info
        archive.start_dir = file.tell()
        archive._didModify = True  # type: ignore[attr-defined]


def test_one_percent_of_the_pictures_costs_less_than_two_percent_of_a_zip64_archive(
    tmp_path: Path, server: RangeServer
) -> None:
    path = tmp_path / "train2014.zip"
    write_sparse_coco(path, num_images=5000, image_bytes=900_000)
    server.files["train2014.zip"] = path
    assert path.stat().st_size > 1 << 32

    finder = ImageFinder([f"{server.url}/train2014.zip"], is_coco=True)
    for number in range(49, 5000, 100):
        found = finder.find(number, f"COCO_train2014_{number:012d}.jpg")
        assert found is not None
        assert len(read_file(found.address)) == found.num_bytes == 900_000

    assert 0.01 < server.num_bytes / path.stat().st_size < 0.011
    assert len(server.requests) == 53  # size, end, directory, and one for each picture
