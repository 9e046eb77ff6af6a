"""Datasets that a web server shows are read like any other; nothing is written there."""

import functools
import shutil
import threading
from collections.abc import Callable, Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from pipelines.build import build_dataset
from pipelines.mix import MixOptions, mix_datasets
from pipelines.options import BuildOptions
from refseg import load_dataset, storage_requests
from refseg.cli import main
from refseg.errors import MissingDatasetError, StorageError
from refseg.storage import WebFolder, open_folder

pytestmark = pytest.mark.slow


class _Handler(SimpleHTTPRequestHandler):
    """Python's own server, which knows no ranges; `listed`: whether it shows folders."""

    listed = True
    protocol_version = "HTTP/1.1"

    def list_directory(self, path: object) -> None:  # type: ignore[override]
        if not type(self).listed:
            return self.send_error(403)
        return super().list_directory(path)  # type: ignore[arg-type, return-value]

    def log_message(self, *args: object) -> None:
        """Say nothing."""


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage_requests, "_FIRST_PAUSE_SECONDS", 0.0)


@pytest.fixture(params=["listed", "not listed"])
def serve(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Path], str]]:
    """Serves a folder on loopback."""
    monkeypatch.setattr(_Handler, "listed", request.param == "listed")
    servers = []

    def serve(folder: Path) -> str:
        server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Handler, directory=str(folder)))
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_address[1]}"

    yield serve
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def url(serve: Callable[[Path], str], toy_run: Path) -> str:
    """The toy dataset, served."""
    return f"{serve(toy_run.parent)}/shards"


def test_files_are_read_whole_and_in_part_whatever_their_names(serve: Callable[[Path], str], tmp_path: Path) -> None:
    (tmp_path / "a b").mkdir()
    for name in ("50%25 #1?.txt", "ä.txt"):
        (tmp_path / "a b" / name).write_bytes(b"0123456789")
    folder = open_folder(f"{serve(tmp_path)}/a b/")

    assert isinstance(folder, WebFolder)
    for name in ("50%25 #1?.txt", "ä.txt"):
        assert (folder.size(name), folder.read(name)) == (10, b"0123456789")
        assert (folder.read(name, 3, 4), folder.read(name, 8, 2), folder.read(name, 0, 0)) == (b"3456", b"89", b"")
        assert folder.list([name, "gone"])[name] == 10
    assert folder.size("gone") is None
    with pytest.raises(FileNotFoundError):
        folder.read("gone")
    (tmp_path / "upload").touch()
    with pytest.raises(StorageError, match="a web server can only be read"):
        folder.publish(tmp_path / "upload", "x")


@pytest.mark.parametrize(
    "arguments",
    [
        ["verify", "{url}"],
        ["verify", "{url}", "--fast"],
        ["stats", "{url}"],
        ["plan", "{url}", "--global-batch", "4"],
        ["browse", "{url}", "--out", "page"],
        ["export", "{url}", "--to", "coco", "--out", "export"],
        ["doctor", "{url}", "--seconds", "0.1", "--batch", "2", "--input-size", "64"],
        ["evaluate", "{run}", "--data", "{url}", "--out", "results"],
    ],
    ids=lambda arguments: " ".join(arguments),
)
def test_every_command_reads_a_dataset_from_a_web_server(
    arguments: list[str],
    url: str,
    toy_run: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([word.format(url=url, run=toy_run) for word in arguments]) == 0, capsys.readouterr().err
    assert "http:" not in {path.name for path in tmp_path.iterdir()}


def test_samples_from_a_web_server_are_those_of_the_folder(url: str, toy_run: Path) -> None:
    here, there = load_dataset(toy_run.parent / "shards", "val"), load_dataset(url, "val")
    assert len(there) == len(here) > 0
    assert (there[0].image == here[0].image).all()
    assert (there[0].mask == here[0].mask).all()


def test_a_mix_and_a_dataset_over_a_pool_are_made_of_served_ones(url: str, toy_run: Path, tmp_path: Path) -> None:
    mixed = mix_datasets(MixOptions(members=(url,), out=tmp_path / "mix", allow_leak=True))
    assert sum(shard.num_refs for shard in mixed.descriptor.shards) > 0
    source = toy_run.parent / "source"
    built = build_dataset(
        BuildOptions(dataset="toy/refseg", annotations=source, images_from=(url,), out=tmp_path / "over", workers=1)
    )
    assert built.descriptor is not None
    assert all(shard.num_samples == 0 for shard in built.descriptor.shards)


def test_what_is_missing_or_cut_on_the_server_is_named(
    serve: Callable[[Path], str], toy_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(toy_run.parent / "shards", tmp_path / "cut")
    tar = tmp_path / "cut/val-00000.tar"
    tar.write_bytes(tar.read_bytes()[:-512])
    (tmp_path / "cut/train-00000.parquet").unlink()
    url = serve(tmp_path)

    assert main(["verify", f"{url}/cut", "--fast"]) == 1
    said = capsys.readouterr().out
    assert "val-00000.tar: found" in said
    assert "train-00000.parquet: found no such file" in said
    with pytest.raises(MissingDatasetError, match="gone: no such folder"):
        load_dataset(f"{url}/gone", "val")


def test_a_server_that_is_down_is_no_missing_dataset(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", "http://127.0.0.1:9/shards"]) == 1
    assert "reading failed 5 times" in capsys.readouterr().err
