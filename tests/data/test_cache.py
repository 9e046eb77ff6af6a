"""The cache of remote shards: named by hash, downloaded once for all processes, limited, and never removed in use."""

import errno
import fcntl
import hashlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from refseg.cache_files import cache_folder
from refseg.dataset import shard_cache as cache_module
from refseg.dataset.read_ahead import ReadAhead
from refseg.dataset.shard_cache import ShardCache, Tar
from refseg.errors import DatasetError, UsageError
from tests.warm_python import python

Put = Callable[[str, bytes], Tar]


@pytest.fixture
def put(tmp_path: Path) -> Put:
    """Write an object; for the cache a `file://` address is remote like any other URL."""
    (tmp_path / "store").mkdir()

    def put(name: str, content: bytes) -> Tar:
        (tmp_path / "store" / name).write_bytes(content)
        return Tar(
            address=f"file://{tmp_path}/store/{name}",
            num_bytes=len(content),
            sha256=hashlib.sha256(content).hexdigest(),
        )

    return put


def content(cache: ShardCache, tar: Tar) -> bytes | None:
    descriptor = cache.open(tar)
    if descriptor is None:
        return None
    try:
        return os.pread(descriptor, 1 << 20, 0)
    finally:
        os.close(descriptor)


def held(cache: ShardCache) -> int:
    return sum(path.stat().st_size for path in cache.folder.iterdir())


def test_a_shard_is_downloaded_once_and_found_by_its_content(tmp_path: Path, put: Put) -> None:
    cache = ShardCache(tmp_path / "cache", 100)
    tar = put("a.tar", b"12345")
    same = put("copy of a.tar", b"12345")

    assert content(cache, tar) is None
    assert cache.fetch(tar) == "here"
    (tmp_path / "store" / "a.tar").unlink()
    assert cache.fetch(tar) == cache.fetch(same) == "here"
    assert content(cache, tar) == content(cache, same) == b"12345"
    assert {path.name for path in cache.folder.iterdir()} == {f"{tar.sha256}.tar", "lock"}


def test_a_large_shard_comes_in_blocks(tmp_path: Path, put: Put, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_module, "_BLOCK_BYTES", 2)
    cache = ShardCache(tmp_path / "cache", 100)
    tar = put("a.tar", b"1234567")
    assert cache.fetch(tar) == "here"
    assert content(cache, tar) == b"1234567"


def test_the_least_recently_used_goes_first(tmp_path: Path, put: Put) -> None:
    cache = ShardCache(tmp_path / "cache", 10)
    first, second, third = (put(f"{digit}.tar", digit.encode() * 5) for digit in "123")
    for age, tar in ((300, first), (200, second)):
        cache.fetch(tar)
        os.utime(cache.folder / f"{tar.sha256}.tar", (time.time() - age,) * 2)
    assert content(cache, first) == b"11111"  # used just now: the second is the older one

    assert cache.fetch(third) == "here"
    assert [content(cache, tar) for tar in (first, second, third)] == [b"11111", None, b"33333"]
    assert held(cache) == 10


def test_a_shard_in_use_stays_and_what_does_not_fit_is_not_fetched(tmp_path: Path, put: Put) -> None:
    cache = ShardCache(tmp_path / "cache", 9)
    first, second = put("1.tar", b"11111"), put("2.tar", b"22222")
    cache.fetch(first)
    descriptor = cache.open(first)
    assert descriptor is not None

    assert cache.fetch(second) == "no room"
    assert os.pread(descriptor, 9, 0) == content(cache, first) == b"11111"
    os.close(descriptor)
    assert cache.fetch(second) == "here"
    assert content(cache, first) is None
    assert held(cache) == 5


def test_a_full_disk_is_no_room(
    tmp_path: Path, put: Put, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def allocate(*_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", allocate)
    cache = ShardCache(tmp_path / "cache", 100)
    assert cache.fetch(put("1.tar", b"11111")) == "no room"
    assert "the disk has no room for 5 bytes (No space left on device)" in caplog.text
    assert held(cache) == 0


def test_another_object_is_fetched_once_more_then_named_with_both_hashes(
    tmp_path: Path, put: Put, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = ShardCache(tmp_path / "cache", 100)
    tar = put("a.tar", b"12345")
    other = put("a.tar", b"1234X")
    requests: list[int] = []
    read = Tar.read
    monkeypatch.setattr(Tar, "read", lambda self, start, n: requests.append(start) or read(self, start, n))

    with pytest.raises(DatasetError) as caught:
        cache.fetch(tar)
    assert str(caught.value) == (
        f"file://{tmp_path}/store/a.tar: found 5 bytes with sha256 {other.sha256} at each of 2 downloads, expected 5 "
        f"bytes with sha256 {tar.sha256}: the object is damaged or belongs to another dataset; copy the shard again "
        "from its source or build the dataset again"
    )
    assert requests == [0, 0]
    put("a.tar", b"123")
    with pytest.raises(DatasetError, match=r"found 3 bytes with sha256 .* at each of 2 downloads, expected 5 bytes"):
        cache.fetch(tar)
    assert held(cache) == 0
    put("a.tar", b"12345")
    assert cache.fetch(tar) == "here"


def test_a_missing_object_is_named(tmp_path: Path, put: Put) -> None:
    tar = put("a.tar", b"12345")
    (tmp_path / "store" / "a.tar").unlink()
    with pytest.raises(DatasetError, match=r"store/a.tar: found no such object, expected 5 bytes; copy the shard"):
        ShardCache(tmp_path / "cache", 100).fetch(tar)


FETCH = """
import sys, os
from pathlib import Path
from refseg.dataset.shard_cache import ShardCache, Tar
address, num_bytes, sha256, folder, log, pause = sys.argv[1:]
read = Tar.read
def noted(self, start, length):
    os.write(os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT), b"r")
    if float(pause):
        import time; time.sleep(float(pause))
    return read(self, start, length)
Tar.read = noted
cache = ShardCache(Path(folder), 10**9)
tar = Tar(address=address, num_bytes=int(num_bytes), sha256=sha256)
print("go", flush=True); sys.stdin.readline()
print(cache.fetch(tar), os.pread(cache.open(tar), 5, 0).decode())
"""


def start(tar: Tar, tmp_path: Path, pause: float = 0.0) -> subprocess.Popen[str]:
    words = [tar.address, str(tar.num_bytes), tar.sha256, str(tmp_path / "cache"), str(tmp_path / "log"), str(pause)]
    command = [python(), "-c", FETCH, *words]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "go\n"
    return process


def test_eight_processes_download_once(tmp_path: Path, put: Put) -> None:
    tar = put("a.tar", b"12345")
    processes = [start(tar, tmp_path, pause=0.3) for _ in range(8)]
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()

    assert [process.communicate()[0] for process in processes] == ["here 12345\n"] * 8
    assert (tmp_path / "log").read_text() == "r"


def test_who_waits_goes_on_when_the_one_that_downloads_is_killed(tmp_path: Path, put: Put) -> None:
    tar = put("a.tar", b"12345")
    killed = start(tar, tmp_path, pause=60)
    assert killed.stdin is not None
    killed.stdin.write("\n")
    killed.stdin.flush()
    while not (tmp_path / "log").exists():
        time.sleep(0.01)
    cache = ShardCache(tmp_path / "cache", 5)
    assert cache.fetch(tar, wait=False) == "busy"
    assert cache.fetch(put("b.tar", b"1"), wait=False) == "no room"  # a download in progress is in use too
    killed.send_signal(signal.SIGKILL)
    killed.communicate()

    assert cache.fetch(tar) == "here"
    assert content(cache, tar) == b"12345"
    assert not list(cache.folder.glob("*.part"))


def test_who_waited_for_a_download_that_gave_up_waits_for_the_next(tmp_path: Path, put: Put) -> None:
    cache = ShardCache(tmp_path / "cache", 100)
    tar = put("a.tar", b"12345")
    part = cache.folder / f"{tar.sha256}.part"
    part.parent.mkdir()
    with part.open("w") as gave_up:
        fcntl.flock(gave_up, fcntl.LOCK_EX)
        waiting = threading.Thread(target=cache.fetch, args=(tar,))
        waiting.start()
        time.sleep(0.1)
        part.unlink()
        begun = part.open("w")
        fcntl.flock(begun, fcntl.LOCK_EX)
    waiting.join(0.2)
    assert waiting.is_alive()
    assert content(cache, tar) is None
    begun.close()
    waiting.join(60)
    assert content(cache, tar) == b"12345"


def test_what_a_killed_download_left_makes_room(tmp_path: Path, put: Put) -> None:
    cache = ShardCache(tmp_path / "cache", 5)
    cache.folder.mkdir()
    (cache.folder / f"{'0' * 64}.part").write_bytes(b"12345")

    assert cache.fetch(put("a.tar", b"12345")) == "here"
    assert held(cache) == 5


def test_a_child_forked_during_a_download_does_not_keep_its_lock(tmp_path: Path, put: Put) -> None:
    cache = ShardCache(tmp_path / "cache", 100)
    tar = put("a.tar", b"12345")
    part = cache.folder / f"{tar.sha256}.part"
    children = []

    class Forking(Tar):
        def read(self, start: int, num_bytes: int) -> bytes:
            child = os.fork()
            if child == 0:
                signal.pause()
            children.append(child)
            return super().read(start, num_bytes)

    try:
        assert cache.fetch(Forking(address=tar.address, num_bytes=5, sha256=tar.sha256)) == "here"
        with (cache.folder / f"{tar.sha256}.tar").open() as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        assert not part.exists()
    finally:
        for child in children:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)


def test_read_ahead_brings_all_and_raises_what_it_meets(tmp_path: Path, put: Put) -> None:
    cache = ShardCache(tmp_path / "cache", 100)
    tars = [put(f"{digit}.tar", digit.encode() * 5) for digit in "12345"]
    ReadAhead(cache, tars).join()
    assert [content(cache, tar) for tar in tars] == [digit * 5 for digit in (b"1", b"2", b"3", b"4", b"5")]

    bad = put("bad.tar", b"12345678")
    put("bad.tar", b"1234567X")
    with pytest.raises(DatasetError, match=r"store/bad.tar: found 8 bytes with sha256"):
        ReadAhead(cache, [bad]).join()


def fail(*_: object, **__: object) -> Any:
    raise OSError(errno.EROFS, "Read-only file system")


def test_a_cache_that_cannot_be_written_is_told_once_and_stops_no_run(
    tmp_path: Path, put: Put, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tars = [put(f"{digit}.tar", digit.encode() * 5) for digit in "12"]
    cache = ShardCache(tmp_path / "cache", 100)
    for place in (os, "pwrite"), (Path, "mkdir"):
        monkeypatch.setattr(*place, fail)
        assert [cache.fetch(tar) for tar in tars] == ["no room", "no room"]
    ReadAhead(cache, tars).join()
    (message,) = [record.getMessage() for record in caplog.records]
    assert message.startswith(f"{tmp_path}/cache: the cache of remote shards cannot be used ([Errno 30] Read-only file")
    assert "set REFSEG_CACHE to a writable folder on this machine" in message


def test_what_a_read_only_cache_holds_is_used(tmp_path: Path, put: Put, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = ShardCache(tmp_path / "cache", 100)
    tar = put("a.tar", b"12345")
    cache.fetch(tar)
    for name in ("utime", "unlink"):
        monkeypatch.setattr(os, name, fail)
    assert content(cache, tar) == b"12345"
    cache.discard(tar)


def test_a_cache_that_cannot_be_made_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("REFSEG_CACHE", str(tmp_path / "file"))
    assert ShardCache.of_this_machine() is None
    assert "file/shards: the cache of remote shards cannot be used ([Errno 20] Not a directory" in caplog.text


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_thread_that_breaks_off_by_a_mistake_says_so(
    tmp_path: Path, put: Put, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def divide(*_: object, **__: object) -> None:
        raise ZeroDivisionError("a mistake")

    monkeypatch.setattr(ShardCache, "fetch", divide)
    ReadAhead(ShardCache(tmp_path / "cache", 100), [put("a.tar", b"12345")]).join()
    assert "a thread that downloads remote shards failed" in caplog.text
    assert "ZeroDivisionError: a mistake" in caplog.text


def test_links_in_the_cache_are_not_followed(tmp_path: Path, put: Put, caplog: pytest.LogCaptureFixture) -> None:
    tar, victim = put("a", b"x" * 100), tmp_path / "victim"
    victim.write_bytes(b"mine")
    cache = ShardCache(tmp_path / "cache", 1_000)
    cache.folder.mkdir(mode=0o755)
    final = cache.folder / f"{tar.sha256}.tar"
    part = final.with_suffix(".part")
    part.symlink_to(victim)

    assert cache.fetch(tar) == "no room"
    assert "is a symbolic link, which a cache does not follow" in caplog.text
    assert victim.read_bytes() == b"mine"
    part.unlink()
    final.symlink_to(victim)
    assert cache.open(tar) is None
    assert cache.fetch(tar) == "here"
    assert (victim.read_bytes(), final.read_bytes()) == (b"mine", b"x" * 100)
    assert cache.folder.stat().st_mode & 0o777 == 0o700


def test_a_cache_folder_that_is_a_link_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "shards").symlink_to(tmp_path / "elsewhere")
    monkeypatch.setenv("REFSEG_CACHE", str(tmp_path))

    assert ShardCache.of_this_machine() is None
    assert "expected a folder: a cache follows no links" in caplog.text


def test_a_system_that_cannot_take_space_does_without(
    tmp_path: Path, put: Put, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(os, "posix_fallocate")
    cache = ShardCache(tmp_path / "cache", 100)
    assert cache.fetch(put("a.tar", b"12345")) == "here"
    assert held(cache) == 5


def test_folder_and_limit_come_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REFSEG_CACHE", str(tmp_path / "here"))
    monkeypatch.setenv("REFSEG_CACHE_GIGABYTES", "0.5")
    cache = ShardCache.of_this_machine()
    assert cache is not None
    assert (cache.folder, cache.limit_bytes) == (tmp_path / "here" / "shards", 500_000_000)

    monkeypatch.delenv("REFSEG_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("REFSEG_CACHE_GIGABYTES", "1e9")  # more than any disk
    cache = ShardCache.of_this_machine()
    assert cache is not None
    free = os.statvfs(tmp_path).f_bavail * os.statvfs(tmp_path).f_frsize
    assert cache.folder == tmp_path / ".cache" / "refseg" / "shards"
    assert cache.limit_bytes == pytest.approx(free, rel=0.05)
    monkeypatch.delenv("REFSEG_CACHE_GIGABYTES")
    cache = ShardCache.of_this_machine()
    assert cache is not None
    assert cache.limit_bytes == pytest.approx(0.8 * free, rel=0.05)


@pytest.mark.parametrize("text", ["much", "-1", "nan", "inf"])
def test_a_limit_that_is_none_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("REFSEG_CACHE", str(tmp_path))
    monkeypatch.setenv("REFSEG_CACHE_GIGABYTES", text)
    with pytest.raises(UsageError, match=f"REFSEG_CACHE_GIGABYTES is '{text}'; expected a number of gigabytes"):
        ShardCache.of_this_machine()


def test_the_folder_may_lie_in_the_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("REFSEG_CACHE", "~/rc")
    assert cache_folder("shards") == tmp_path / "rc" / "shards"


@pytest.mark.skipif(sys.platform != "linux", reason="other systems keep caches elsewhere")
def test_without_a_folder_of_its_own_the_cache_lies_among_the_users_caches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("REFSEG_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder("shards") == tmp_path / ".cache" / "refseg" / "shards"

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder("shards") == tmp_path / "xdg" / "refseg" / "shards"
