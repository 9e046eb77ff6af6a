"""One file with a known digest: from whatever a mirror does, it ends right, or the error names every mirror."""

import hashlib
import random
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipelines.download.catalogue import PinnedFile
from pipelines.download.pinned_file import fetch_file, is_complete, part_path
from refseg import http_file, storage_requests
from refseg.errors import DownloadError
from tests.range_server import RangeServer, serving

CONTENT = random.Random(0).randbytes(3 << 20)
HALF = len(CONTENT) // 2
PIN = PinnedFile(
    bytes=len(CONTENT), sha256=hashlib.sha256(CONTENT).hexdigest(), mirrors=("http://127.0.0.1:9/",), found_in="a test"
)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[RangeServer]:
    """Two mirrors, `one` and `two`, with the same file."""
    monkeypatch.setattr(storage_requests, "_FIRST_PAUSE_SECONDS", 0.0)
    monkeypatch.setattr(http_file, "LONGEST_WAIT_SECONDS", 0)
    with serving() as server:
        server.files = {"one/file.zip": CONTENT, "two/file.zip": CONTENT}
        yield server


def fetch(server: RangeServer, path: Path, *mirrors: str) -> int:
    """Fetch from `mirrors`, by default `one` and `two`; the bytes that were counted."""
    counted: list[int] = []
    fetch_file(PIN, path, [f"{server.url}/{mirror}/file.zip" for mirror in mirrors or ("one", "two")], counted.append)
    return sum(counted)


def asked(server: RangeServer) -> list[str]:
    return [request.path.partition("/")[0] for request in server.requests]


@pytest.mark.parametrize("fault", ["cut", "503", "429", "slow", "redirect", "chunked"])
def test_a_fault_that_passes_costs_no_mirror(fault: str, server: RangeServer, tmp_path: Path) -> None:
    server.fault = lambda request: fault if request.number == 0 else None

    assert fetch(server, tmp_path / "file.zip") == len(CONTENT)
    assert (tmp_path / "file.zip").read_bytes() == CONTENT
    assert set(asked(server)) <= {"one", "moved"}
    assert [path.name for path in tmp_path.iterdir()] == ["file.zip"]


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("404", "/one/file.zip: no such file"),
        ("403", "reading is refused"),
        ("503", "reading failed 5 times"),
        ("wrong byte", "found SHA-256"),
        ("short", "found 1,572,864 bytes, expected 3,145,728"),
        ("lie", "found 3,145,729 bytes, expected 3,145,728"),
        ("other part", "reading failed 5 times"),
    ],
)
def test_the_next_mirror_is_tried(
    fault: str, said: str, server: RangeServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    part_path(tmp_path / "file.zip").write_bytes(CONTENT[:HALF] if fault == "other part" else b"")
    server.fault = lambda request: fault if request.path.startswith("one") else None

    fetch(server, tmp_path / "file.zip")

    assert (tmp_path / "file.zip").read_bytes() == CONTENT
    assert said in caplog.text
    assert asked(server)[-1] == "two"


def test_where_no_mirror_gives_the_file_the_error_names_each(server: RangeServer, tmp_path: Path) -> None:
    server.fault = lambda request: "404" if request.path.startswith("one") else "wrong byte"

    with pytest.raises(DownloadError, match=r"no mirror gave the file; run the same command again later") as error:
        fetch(server, tmp_path / "file.zip")

    assert str(error.value).splitlines()[1] == f"  {server.url}/one/file.zip: no such file"
    assert f"{server.url}/two/file.zip: found SHA-256" in str(error.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("fault", [None, "whole", "chunked", "redirect"])
def test_a_part_is_completed(fault: str | None, server: RangeServer, tmp_path: Path) -> None:
    part_path(tmp_path / "file.zip").write_bytes(CONTENT[:HALF])
    server.fault = lambda request: fault if request.path.startswith("one") else None

    assert fetch(server, tmp_path / "file.zip", "one") == len(CONTENT) - HALF
    assert (tmp_path / "file.zip").read_bytes() == CONTENT
    assert server.requests[0].range == f"bytes={HALF}-"
    assert server.num_bytes == (len(CONTENT) if fault in ("whole", "chunked") else len(CONTENT) - HALF)


@pytest.mark.parametrize(
    "part", [bytes(HALF), bytes(len(CONTENT)), bytes(len(CONTENT) + 1)], ids=["half", "all", "more"]
)
def test_a_part_of_another_file_is_given_up_for_the_same_mirror(
    part: bytes, server: RangeServer, tmp_path: Path
) -> None:
    part_path(tmp_path / "file.zip").write_bytes(part)

    fetch(server, tmp_path / "file.zip", "one")

    assert (tmp_path / "file.zip").read_bytes() == CONTENT


def test_a_server_that_breaks_off_again_and_again_is_read_to_the_end(server: RangeServer, tmp_path: Path) -> None:
    server.fault = lambda request: "cut" if request.number < 2 else None

    fetch(server, tmp_path / "file.zip", "one")

    assert [request.range for request in server.requests] == [
        "",
        f"bytes={HALF}-",
        f"bytes={HALF + HALF // 2}-",
    ]
    assert (tmp_path / "file.zip").read_bytes() == CONTENT


def test_the_pause_that_a_busy_server_states_is_kept_up_to_a_minute(
    server: RangeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited: list[float] = []
    monkeypatch.setattr(http_file, "LONGEST_WAIT_SECONDS", 60)
    monkeypatch.setattr(http_file.time, "sleep", waited.append)
    server.fault = lambda request: "429" if request.number == 0 else None

    fetch(server, tmp_path / "file.zip", "one")

    assert 60 in waited


def test_a_full_disk_is_named_and_the_same_call_completes_the_file(server: RangeServer, tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (HALF, limits[1]))
    try:
        with pytest.raises(DownloadError, match=r"file\.zip: cannot be written \(File too large\); check permissions"):
            fetch(server, tmp_path / "file.zip")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    assert part_path(tmp_path / "file.zip").read_bytes() == CONTENT[:HALF]
    assert asked(server) == ["one"]
    fetch(server, tmp_path / "file.zip")
    assert (tmp_path / "file.zip").read_bytes() == CONTENT


def test_a_file_that_is_there_is_compared_and_never_written_over(tmp_path: Path) -> None:
    path = tmp_path / "file.zip"

    assert not is_complete(PIN, path)
    path.write_bytes(CONTENT)
    assert is_complete(PIN, path)
    path.write_bytes(CONTENT[:-1] + b"x")
    with pytest.raises(DownloadError, match=r"found SHA-256 \w+, expected SHA-256 \w+; move the file away"):
        is_complete(PIN, path)
    path.write_bytes(b"mine")
    with pytest.raises(DownloadError, match=r"found 4 bytes, expected 3,145,728 bytes; move the file away"):
        is_complete(PIN, path)
    assert path.read_bytes() == b"mine"


def test_a_mirror_may_be_a_folder_or_any_storage(tmp_path: Path) -> None:
    import fsspec

    fsspec.filesystem("memory").pipe(f"{tmp_path}/file.zip", CONTENT)
    (tmp_path / "mirror").mkdir()
    (tmp_path / "mirror/file.zip").write_bytes(CONTENT)
    for number, address in enumerate((f"memory:/{tmp_path}/file.zip", str(tmp_path / "mirror/file.zip"))):
        part_path(tmp_path / f"{number}.zip").write_bytes(CONTENT[:HALF])
        counted: list[int] = []
        fetch_file(PIN, tmp_path / f"{number}.zip", [f"{tmp_path}/gone.zip", address], counted.append)
        assert (tmp_path / f"{number}.zip").read_bytes() == CONTENT
        assert sum(counted) == len(CONTENT) - HALF
