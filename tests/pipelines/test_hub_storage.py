"""`hf://` folders: annotations, images and datasets on the Hugging Face Hub, here a stand-in of it on loopback."""

import sys
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from pipelines.build import build_dataset
from pipelines.verify import verify_dataset
from refseg import storage_requests
from refseg.cli import main
from refseg.storage import open_folder
from tests.hub_server import HubServer, serving_hub

from .conftest import TinyRefer

ROOT = "hf://datasets/owner/name"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    pytest.importorskip("huggingface_hub", reason="needs the extra hf")
    monkeypatch.setattr(storage_requests, "_FIRST_PAUSE_SECONDS", 0.0)
    with serving_hub() as server:
        monkeypatch.setitem(fsspec.config.conf, "hf", {"endpoint": server.url, "token": False})
        yield server


def test_files_are_read_in_part_written_listed_and_removed(hub: HubServer, tmp_path: Path) -> None:
    hub.files = {"a b/50%25 #1.txt": b"0123456789", "a b/c/d.txt": b"x", "top.txt": b"y"}
    folder = open_folder(f"{ROOT}/a b")

    assert (folder.exists(), open_folder(f"{ROOT}/gone").exists()) == (True, False)
    assert folder.list() == {"50%25 #1.txt": 10}
    assert folder.read("50%25 #1.txt") == b"0123456789"
    assert (folder.read("50%25 #1.txt", 3, 4), folder.read("50%25 #1.txt", 8, 9)) == (b"3456", b"89")
    with pytest.raises(FileNotFoundError):
        folder.read("gone")
    (tmp_path / "upload").write_bytes(b"new")
    folder.publish(tmp_path / "upload", "e/new.txt")
    assert hub.files["a b/e/new.txt"] == b"new"
    hub.files["a b/later.txt"] = b"by another process"
    assert folder.list() == {"50%25 #1.txt": 10, "later.txt": 18}
    folder.remove("c")
    assert "a b/c/d.txt" not in hub.files


def test_a_part_of_a_large_file_is_no_more_than_that_part(hub: HubServer) -> None:
    hub.files = {"train-00000.tar": bytes(range(256)) * 40_000}
    folder = open_folder(ROOT)
    sent: list[str] = []
    folder.read("train-00000.tar", 1000, 24)
    before = len(hub.requests)

    assert folder.read("train-00000.tar", 2048, 4) == b"\0\1\2\3"
    sent = hub.requests[before:]
    assert sent == ["GET /datasets/owner/name/resolve/main/train-00000.tar"]


def test_a_dataset_is_built_from_the_hub_to_the_hub_and_read_there(
    hub: HubServer, tiny: TinyRefer, tmp_path: Path
) -> None:
    tiny.write()
    hub.files = {str(path.relative_to(tiny.root)): path.read_bytes() for path in tiny.root.rglob("*") if path.is_file()}
    build = ["build-shards", "refcoco/unc", "--annotations", ROOT, "--out", f"{ROOT}/built", "--accept-counts"]

    assert main([*build, "--workers", "1", "--images-per-shard", "2"]) == 0
    assert verify_dataset(f"{ROOT}/built") == []
    build_dataset(tiny.options(tmp_path / "built"))
    for path in (tmp_path / "built").iterdir():
        assert hub.files[f"built/{path.name}"] == path.read_bytes()


def test_without_the_package_the_extra_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    monkeypatch.delitem(sys.modules["fsspec.registry"]._registry, "hf", raising=False)

    assert main(["verify", f"{ROOT}/built"]) == 2
    assert "hf:// needs a package that is not installed" in (said := capsys.readouterr().err)
    assert "pip install 'refseg[hf]'" in said
