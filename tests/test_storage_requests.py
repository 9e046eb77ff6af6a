"""Whatever a backend raises is an error of ours that names the place and what to do."""

import errno
from collections.abc import Iterator
from http.client import RemoteDisconnected
from pathlib import Path
from typing import Any

import fsspec
import pytest

from refseg import storage_requests
from refseg.cli import main
from refseg.errors import StorageError, UsageError
from refseg.storage import RemoteFolder, open_folder


class Answer:
    def __init__(self, status_code: int) -> None:
        self.status_code = status_code


class OddLibraryError(Exception):
    """An error of a library that the toolkit has never heard of."""

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        if status:
            self.response = Answer(status)


class OddFileSystem(fsspec.AbstractFileSystem):  # type: ignore[misc]
    """Raises what the test says, at the calls the test says."""

    protocol = "odd"
    cachable = False
    raised: Exception | None = None
    at: tuple[str, ...] = ()
    num_calls = 0

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._fail("__init__")

    def _fail(self, call: str) -> None:
        if type(self).raised is not None and call in type(self).at:
            type(self).num_calls += 1
            raise type(self).raised

    def info(self, path: str, **options: Any) -> dict[str, Any]:
        self._fail("info")
        return {"name": path, "type": "directory", "size": 0}

    def ls(self, path: str, detail: bool = True, **options: Any) -> list[Any]:
        self._fail("ls")
        return []

    def cat_file(self, path: str, start: Any = None, end: Any = None, **options: Any) -> bytes:
        self._fail("cat_file")
        return b""

    def put_file(self, lpath: str, rpath: str, **options: Any) -> None:
        self._fail("put_file")

    def rm(self, path: str, recursive: bool = False, maxdepth: Any = None) -> None:
        self._fail("rm")


@pytest.fixture(autouse=True)
def odd(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[OddFileSystem]]:
    fsspec.register_implementation("odd", OddFileSystem, clobber=True)
    monkeypatch.setattr(storage_requests, "_FIRST_PAUSE_SECONDS", 0.0)
    yield OddFileSystem
    OddFileSystem.raised, OddFileSystem.at, OddFileSystem.num_calls = None, (), 0


CALLS = {
    "__init__": lambda folder, path: folder.read("x"),
    "info": lambda folder, path: folder.size("x"),
    "ls": lambda folder, path: folder.list(),
    "cat_file": lambda folder, path: folder.read("x"),
    "put_file": lambda folder, path: folder.publish(path, "x"),
    "rm": lambda folder, path: folder.remove("x"),
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize(
    ("raised", "said", "num_tries"),
    [
        (OddLibraryError("no route"), "OddLibraryError: no route", 5),
        (OddLibraryError("sign in", status=401), "is refused (OddLibraryError: sign in)", 1),
        (OddLibraryError("overloaded", status=503), "OddLibraryError: overloaded", 5),
        (OddLibraryError("slow down", status=429), "OddLibraryError: slow down", 5),
        (RemoteDisconnected("gone"), "RemoteDisconnected: gone", 5),
        (TimeoutError(), "TimeoutError", 5),
        (NotImplementedError("not here"), "is refused (NotImplementedError: not here)", 1),
        (ValueError("bad\nbucket"), "is refused (ValueError: bad bucket)", 1),
        (KeyError("Contents"), "is refused (KeyError: 'Contents')", 1),
    ],
    ids=lambda value: repr(value) if isinstance(value, Exception) else "",
)
def test_any_failure_of_any_backend_is_a_storage_error(
    call: str, raised: Exception, said: str, num_tries: int, odd: type[OddFileSystem], tmp_path: Path
) -> None:
    odd.raised, odd.at = raised, (call,)
    (tmp_path / "file").touch()

    with pytest.raises(StorageError) as error:
        CALLS[call](open_folder("odd://place/set"), tmp_path / "file")

    assert str(error.value).startswith("odd://place/set")
    assert said in str(error.value)
    assert "run the same command again" in str(error.value)
    assert odd.num_calls == num_tries


def test_a_package_that_is_missing_is_named_whenever_the_backend_asks_for_it(odd: type[OddFileSystem]) -> None:
    for call in ("__init__", "cat_file"):
        odd.raised, odd.at = ModuleNotFoundError("No module named 'oddlib'"), (call,)
        with pytest.raises(
            UsageError, match=r"odd:// needs a package that is not installed \(No module named 'oddlib'"
        ):
            RemoteFolder("odd://place").read("x")


def test_the_package_of_a_known_protocol_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*args: Any, **options: Any) -> None:
        raise ImportError("Install huggingface_hub to access HfFileSystem")

    monkeypatch.setattr("fsspec.core.url_to_fs", missing)
    with pytest.raises(UsageError, match=r"install it with: pip install 'refseg\[hf\]'"):
        open_folder("hf://datasets/owner/name").read("x")
    with pytest.raises(UsageError, match=r"install it with: pip install 'refseg\[s3\]'"):
        open_folder("s3://bucket").read("x")


def test_the_hub_without_a_network_is_a_storage_error(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("huggingface_hub")

    def no_network(*args: Any, **options: Any) -> None:
        raise ConnectionError("network is unreachable")

    monkeypatch.setattr("huggingface_hub.HfApi.repo_info", no_network)
    monkeypatch.setattr("huggingface_hub.HfFileSystem.resolve_path", no_network)
    with pytest.raises(StorageError, match=r"hf://datasets/owner/name.*ConnectionError: network is unreachable"):
        open_folder("hf://datasets/owner/name").read("x")


def test_an_unknown_protocol_is_wrong_usage_with_a_guess() -> None:
    with pytest.raises(UsageError, match=r"S3://bucket: found the unknown protocol S3; did you mean s3\?"):
        open_folder("S3://bucket").read("x")


def test_a_damaged_archive_is_a_storage_error_and_a_sound_one_is_read(tmp_path: Path) -> None:
    import zipfile

    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        archive.writestr("inner/a.txt", b"abc")
    folder = open_folder(f"zip://inner::{tmp_path}/set.zip")
    assert (folder.list(), folder.read("a.txt")) == ({"a.txt": 3}, b"abc")
    assert folder.join("a.txt") == f"zip://inner/a.txt::{tmp_path}/set.zip"

    (tmp_path / "cut.zip").write_bytes((tmp_path / "set.zip").read_bytes()[:40])
    with pytest.raises(StorageError, match="is not a complete ZIP archive") as error:
        open_folder(f"zip://inner::{tmp_path}/cut.zip").read("a.txt")
    assert error.value.errno == errno.EIO


@pytest.mark.parametrize("command", ["verify", "stats", "plan"])
def test_a_command_says_it_in_one_line(
    command: str, odd: type[OddFileSystem], capsys: pytest.CaptureFixture[str]
) -> None:
    odd.raised, odd.at = OddLibraryError("sign in", status=403), ("info", "cat_file", "ls")

    assert main([command, "odd://place/set"]) == 1
    assert capsys.readouterr().err.splitlines() == [
        "refseg: error: odd://place/set/refseg.json: reading is refused (OddLibraryError: sign in); check the address, "
        "the credentials and what they permit, then run the same command again"
    ]
