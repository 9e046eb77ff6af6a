"""Folders at paths and URLs: what one wrote another reads, whole or not at all, and failures are named."""

import itertools
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import fsspec
import pytest

from pipelines.sources.source_file import local_annotations
from refseg import storage_requests
from refseg.errors import RefsegError, StorageError, UsageError
from refseg.storage import Folder, RemoteFolder, is_remote, open_folder, read_file
from tests.warm_python import python


@pytest.fixture
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage_requests, "_FIRST_PAUSE_SECONDS", 0.01)
    monkeypatch.setattr(storage_requests, "_LONGEST_PAUSE_SECONDS", 0.02)


@pytest.fixture(params=["path", "file", "memory", "s3"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Folder:
    """A folder `data/set` that is not there yet, at a path and at URLs of several protocols."""
    if request.param == "s3":
        return open_folder(f"{request.getfixturevalue('bucket')}/data/set")
    if request.param == "memory":
        return open_folder(f"memory://{tmp_path}/data/set")
    place = tmp_path / "place" / "data" / "set"
    if request.param == "file":
        return open_folder(f"file://{place}")
    return open_folder(place)


@pytest.fixture
def put(tmp_path: Path) -> Callable[[Folder, str, bytes], None]:
    """Publishes bytes under a name, as a build does it: through a local temporary file."""

    def put(folder: Folder, name: str, data: bytes) -> None:
        if not is_remote(folder.address):
            Path(folder.join(name)).parent.mkdir(parents=True, exist_ok=True)
        temporary = tmp_path / "temporary"
        temporary.write_bytes(data)
        folder.publish(temporary, name)
        assert not temporary.exists()

    return put


Put = Callable[[Folder, str, bytes], None]


def test_what_was_published_is_read_whole_and_in_part(folder: Folder, put: Put) -> None:
    assert not folder.exists()
    put(folder, "a.tar", b"0123456789")
    put(folder, "below/b.json", b"{}")

    assert folder.exists()
    assert folder.list() == {"a.tar": 10}
    assert (folder.size("a.tar"), folder.size("below/b.json")) == (10, 2)
    assert folder.read("a.tar") == b"0123456789"
    assert folder.read("a.tar", 3, 4) == b"3456"
    assert folder.read("a.tar", 8) == b"89"
    assert read_file(folder.join("below/b.json")) == b"{}"


def test_reading_at_or_behind_the_end_gives_nothing(folder: Folder, put: Put) -> None:
    put(folder, "a", b"0123")
    put(folder, "empty", b"")

    assert folder.read("a", 2, 10) == b"23"
    assert folder.read("a", 4) == folder.read("a", 9, 2) == folder.read("a", 1, 0) == b""
    assert folder.read("empty") == folder.read("empty", 0, 5) == b""


def test_an_empty_place_has_no_files_and_says_so_when_read(folder: Folder) -> None:
    assert folder.list() == {}
    assert folder.size("a.tar") is None
    with pytest.raises(FileNotFoundError) as caught:
        folder.read("a.tar")
    assert caught.value.filename in (folder.join("a.tar"), Path(folder.join("a.tar")))


def test_publishing_again_replaces_and_listings_are_never_old(folder: Folder, put: Put) -> None:
    for data in (b"first", b"the second"):
        put(folder, "a", data)
        assert folder.list() == {"a": len(data)}
        assert (folder.size("a"), folder.read("a")) == (len(data), data)


def test_a_folder_is_no_file_and_is_removed_with_all_it_holds(folder: Folder, put: Put) -> None:
    put(folder, "keep", b"1")
    put(folder, ".build/receipts/one", b"1")
    put(folder, ".build/receipts/two", b"2")
    assert folder.size(".build") is None

    for _ in range(2):  # what is not there needs no removing
        folder.remove(".build")
        folder.remove("nothing")
    assert folder.size(".build/receipts/one") is None
    folder.remove("keep")
    assert folder.list() == {}


def test_addresses_are_joined_and_may_lead_up(tmp_path: Path) -> None:
    assert open_folder("s3://bucket/a/b/").join("../pool/x.tar") == "s3://bucket/a/pool/x.tar"
    assert open_folder(tmp_path / "a").join("../b") == str(tmp_path / "b")
    assert str(open_folder("s3://bucket/a/")) == "s3://bucket/a"
    for name in ("..", "../.."):  # nothing lies above a bucket
        assert open_folder("s3://bucket/a").join(name) == "s3://bucket"


@pytest.mark.slow
def test_another_process_sees_what_this_one_wrote_and_the_other_way_round(
    bucket: str, put: Put, tmp_path: Path
) -> None:
    folder = open_folder(f"{bucket}/set")
    put(folder, "mine", b"1")
    assert folder.list() == {"mine": 1}  # and does not answer from memory later
    theirs = tmp_path / "theirs"
    theirs.write_bytes(b"22")
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        assert pool.submit(folder.list).result() == {"mine": 1}
        pool.submit(folder.publish, theirs, "theirs").result()
    assert folder.list() == {"mine": 1, "theirs": 2}


def test_a_console_s_folder_marker_is_not_a_file(bucket: str, put: Put) -> None:
    fsspec.filesystem("s3").call_s3("put_object", Bucket=bucket.removeprefix("s3://"), Key="set/", Body=b"")
    folder = open_folder(f"{bucket}/set")
    assert folder.list() == {}
    put(folder, "a", b"1")
    assert folder.list() == {"a": 1}


@pytest.mark.parametrize(
    "faults", [["503"] * 4, ["500"] * 4, ["drop"] * 4, ["cut"] * 4], ids=["503", "500", "dropped", "cut"]
)
def test_reading_succeeds_when_a_fault_passes(
    faulty_s3: Any, bucket: str, put: Put, short_pauses: None, faults: list[str]
) -> None:
    folder = open_folder(f"{bucket}/set")
    put(folder, "a", b"0123456789")
    faulty_s3.requests.clear()

    faulty_s3.faults = iter(faults)
    assert folder.read("a") == b"0123456789"
    assert len(faulty_s3.requests) == 5  # four spoilt, one good


@pytest.mark.parametrize("fault", ["503", "500", "drop"])
def test_writing_listing_and_removing_succeed_when_a_fault_passes(
    faulty_s3: Any, bucket: str, put: Put, short_pauses: None, fault: str
) -> None:
    folder = open_folder(f"{bucket}/set")
    faulty_s3.faults = itertools.cycle([fault, fault, None, None])
    put(folder, "a", b"0123")
    assert folder.list() == {"a": 4}
    assert folder.size("a") == 4
    faulty_s3.faults = iter([None, fault, fault])
    folder.remove("a")
    assert folder.list() == {}


@pytest.mark.parametrize(
    ("fault", "found"),
    [
        ("503", "OSError: [Errno 16]"),
        ("500", "OSError: [Errno 121]"),
        ("drop", "ConnectionClosedError"),
        ("cut", "ClientPayloadError: Response"),
    ],
)
def test_a_fault_that_stays_is_an_error_that_says_where_what_and_how_often(
    faulty_s3: Any, bucket: str, put: Put, short_pauses: None, fault: str, found: str
) -> None:
    folder = open_folder(f"{bucket}/set")
    put(folder, "a", b"0123456789")
    faulty_s3.faults = itertools.repeat(fault)
    with pytest.raises(StorageError) as caught:
        folder.read("a")

    message = str(caught.value)
    assert message.startswith(f"{bucket}/set/a: reading failed 5 times in ")
    assert f" s, the last time with {found}" in message
    assert message.endswith("check the network and the server, then run the same command again to resume")
    assert isinstance(caught.value, RefsegError)
    assert isinstance(caught.value, OSError)
    assert str(pickle.loads(pickle.dumps(caught.value))) == message


def test_every_request_of_a_folder_names_what_it_was_for(
    faulty_s3: Any, bucket: str, short_pauses: None, tmp_path: Path
) -> None:
    folder = RemoteFolder(f"{bucket}/set")
    temporary = tmp_path / "temporary"
    temporary.write_bytes(b"1")
    faulty_s3.faults = itertools.repeat("503")
    for call, expected in (
        (lambda: folder.publish(temporary, "a"), f"{bucket}/set/a: writing failed 5 times"),
        (folder.list, f"{bucket}/set: reading failed 5 times"),
        (folder.exists, f"{bucket}/set: reading failed 5 times"),
        (lambda: folder.size("a"), f"{bucket}/set/a: reading failed 5 times"),
        (lambda: folder.remove("a"), f"{bucket}/set/a: reading failed 5 times"),  # looks first
        (lambda: folder.fetch("a", tmp_path / "copy"), f"{bucket}/set/a: reading failed 5 times"),
    ):
        with pytest.raises(StorageError) as caught:
            call()
        assert str(caught.value).startswith(expected)
    assert [path.name for path in tmp_path.iterdir()] == ["temporary"]  # the file is kept for the next run


@pytest.mark.slow
def test_a_slow_server_is_given_up_after_the_read_time_out_and_asked_again(
    s3_server: Any, faulty_s3: Any, bucket: str, put: Put, short_pauses: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = open_folder(f"{bucket}/set")
    put(folder, "a", b"0123")
    s3_server.configure(monkeypatch, faulty_s3.endpoint, read_timeout=0.5)
    monkeypatch.setattr(faulty_s3, "slow_seconds", 60)
    faulty_s3.faults = iter(["slow", "slow"])
    begin = time.monotonic()
    assert folder.read("a") == b"0123"
    assert 1.0 <= time.monotonic() - begin < 60  # two time-outs; the server would have taken twice 60 s

    faulty_s3.faults = itertools.repeat("slow")
    with pytest.raises(StorageError, match=r"/set/a: reading failed 5 times in \d+ s, the last time with ReadTimeout"):
        folder.read("a")


def test_no_try_is_begun_after_the_time_limit(
    faulty_s3: Any, bucket: str, short_pauses: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage_requests, "MAX_SECONDS", 0.0)
    faulty_s3.faults = itertools.repeat("503")
    with pytest.raises(StorageError, match="reading failed 1 times"):
        open_folder(bucket).read("a")


@pytest.mark.parametrize("status", ["403", "404"])
def test_a_refusal_is_an_error_at_once(faulty_s3: Any, bucket: str, status: str) -> None:
    faulty_s3.faults = iter([status])
    expected = {
        "403": r"^s3://bucket-\w+/a: reading is refused \(PermissionError: .*check the address, the credentials"
    }
    error = {"403": StorageError, "404": FileNotFoundError}[status]
    with pytest.raises(error, match=expected.get(status)):
        open_folder(bucket).read("a")
    assert len(faulty_s3.requests) == 1


def test_a_bucket_that_is_not_there_is_named(s3_server: Any, put: Put) -> None:
    folder = open_folder("s3://no-such-bucket/set")
    assert not folder.exists()
    assert folder.list() == {}
    with pytest.raises(
        StorageError, match=r"^s3://no-such-bucket/set/a: cannot be written: there is no such bucket; make"
    ):
        put(folder, "a", b"1")


def test_missing_credentials_are_an_error_at_once(
    s3_server: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(fsspec.config.conf, "s3", {"endpoint_url": s3_server.endpoint})
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    with pytest.raises(
        StorageError, match=r"^s3://some/a: reading is refused \(NoCredentialsError: Unable to locate cred"
    ):
        open_folder("s3://some").read("a")


def test_a_protocol_that_nobody_knows_is_named() -> None:
    with pytest.raises(
        UsageError, match=r"^s4://bucket/set: found the unknown protocol s4; expected a path or a URL such as s3://"
    ):
        open_folder("s4://bucket/set").exists()


def test_a_protocol_whose_package_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)
    monkeypatch.delitem(sys.modules["fsspec.registry"]._registry, "s3", raising=False)
    with pytest.raises(UsageError, match=r"s3:// needs a package that is not installed .*pip install 'refseg\[s3\]'"):
        open_folder("s3://bucket/set").exists()


def test_an_upload_that_arrived_short_is_made_again(faulty_s3: Any, bucket: str, put: Put, short_pauses: None) -> None:
    folder = open_folder(bucket)
    faulty_s3.faults = iter(["short"])
    put(folder, "a", b"0123")
    assert folder.read("a") == b"0123"

    faulty_s3.faults = itertools.cycle(["short", None])  # the upload, then the question for its size
    with pytest.raises(StorageError, match=r"writing failed 5 times .*found 2 bytes after the copy, expected 4"):
        put(folder, "a", b"0123")


def test_a_failed_question_for_the_size_does_not_upload_again(
    faulty_s3: Any, bucket: str, put: Put, short_pauses: None
) -> None:
    faulty_s3.faults = itertools.chain([None], itertools.repeat("503"))
    with pytest.raises(StorageError, match=r"/a: reading failed 5 times"):
        put(open_folder(bucket), "a", b"0123")
    assert [request.split()[0] for request in faulty_s3.requests] == ["PUT"] + ["HEAD"] * 5


def test_a_copy_that_is_cut_leaves_nothing_behind(
    faulty_s3: Any, bucket: str, put: Put, short_pauses: None, tmp_path: Path
) -> None:
    folder = RemoteFolder(bucket)
    put(folder, "a", b"0123")
    faulty_s3.faults = itertools.repeat("cut")
    with pytest.raises(StorageError, match=r"/a: reading failed 5 times"):
        folder.fetch("a", tmp_path / "copy")
    assert list(tmp_path.iterdir()) == []

    faulty_s3.faults = iter(["cut"])
    folder.fetch("a", tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == b"0123"


def test_objects_that_the_server_did_not_delete_are_an_error(
    faulty_s3: Any, bucket: str, put: Put, short_pauses: None
) -> None:
    folder = open_folder(bucket)
    put(folder, "a", b"1")
    faulty_s3.faults = ("200" if faulty_s3.requests[-1].startswith("POST") else None for _ in itertools.count())
    with pytest.raises(StorageError, match=r"/a: removing failed 5 times .* still there after it was removed"):
        folder.remove("a")


_UPLOAD = """
import sys
from pathlib import Path
from refseg.storage import open_folder
open_folder(sys.argv[1]).publish(Path(sys.argv[2]), "train-00000.tar")
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("megabytes", "faults"), [(4, ["hold"]), (101, [None, None, "hold"])], ids=["one request", "several parts"]
)
def test_a_killed_upload_is_not_taken_for_a_file(
    faulty_s3: Any, bucket: str, tmp_path: Path, megabytes: int, faults: list[str | None]
) -> None:
    # 101 MB go up in three parts: the upload is begun, a part arrives, and the next stays on the way.
    tar = tmp_path / "tar"
    with tar.open("wb") as file:
        file.truncate(megabytes << 20)
    faulty_s3.faults = itertools.chain(faults, itertools.repeat("hold"))
    child = subprocess.Popen([python(), "-c", _UPLOAD, f"{bucket}/set", str(tar)])
    try:
        deadline = time.monotonic() + 300
        while len(faulty_s3.requests) < len(faults) and time.monotonic() < deadline:
            assert child.poll() is None
            time.sleep(0.02)
        assert len(faulty_s3.requests) >= len(faults)
    finally:
        os.kill(child.pid, signal.SIGKILL)
        child.wait()

    faulty_s3.faults = iter(())
    folder = open_folder(f"{bucket}/set")
    assert folder.list() == {}
    assert folder.size("train-00000.tar") is None
    with pytest.raises(FileNotFoundError):
        folder.read("train-00000.tar", 0, 512)

    folder.publish(tar, "train-00000.tar")  # the next run
    assert folder.list() == {"train-00000.tar": megabytes << 20}


def test_a_half_copy_to_a_file_system_is_not_under_the_final_name(
    tmp_path: Path, put: Put, monkeypatch: pytest.MonkeyPatch
) -> None:
    # `file://` shows a file while it grows: until the rename it has another name.
    from fsspec.implementations.local import LocalFileSystem

    def put_file(self: Any, local: str, remote: str) -> None:
        Path(remote).write_bytes(b"01")
        raise KeyboardInterrupt

    folder = open_folder(f"file://{tmp_path}/set")
    with monkeypatch.context() as patch:
        patch.setattr(LocalFileSystem, "put_file", put_file)
        with pytest.raises(KeyboardInterrupt):
            put(folder, "a", b"0123")
    assert folder.list() == {"tmp-a": 2}

    put(folder, "a", b"0123")  # the next run
    assert folder.list() == {"a": 4}


@pytest.fixture
def annotations(bucket: str, put: Put) -> str:
    folder = open_folder(f"{bucket}/data")
    for name in ("table.csv", "refcoco/refs(unc).p", "refcoco/instances.json", "refcoco/masks/1.json", "images/7.jpg"):
        put(folder, name, name.encode())
    return folder.address


def test_annotations_at_a_url_are_local_files_for_a_while(annotations: str) -> None:
    with local_annotations(annotations) as folder:
        found = {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}
    names = ["table.csv", "refcoco/refs(unc).p", "refcoco/instances.json"]  # one level below, no pictures
    assert found == {name: name for name in names}
    assert not folder.exists()


def test_a_single_file_of_annotations_comes_with_those_beside_it(bucket: str, put: Put) -> None:
    for name in ("table.csv", "instances.json", "7.jpg", "below/other.csv"):
        put(open_folder(f"{bucket}/mine"), name, name.encode())
    with local_annotations(f"{bucket}/mine/table.csv") as path:
        assert path.read_text() == "table.csv"
        assert sorted(each.name for each in path.parent.iterdir()) == ["instances.json", "table.csv"]


def test_annotations_at_a_path_are_used_where_they_are(tmp_path: Path) -> None:
    with local_annotations(tmp_path) as folder:
        assert folder == tmp_path
    assert tmp_path.exists()


def test_a_url_without_annotations_is_named(bucket: str, put: Put) -> None:
    put(open_folder(f"{bucket}/data"), "7.jpg", b"1")
    for address in (f"{bucket}/data", f"{bucket}/data/7.jpg", f"{bucket}/data/none.csv", f"{bucket}/nothing"):
        with (
            pytest.raises(
                UsageError, match=rf"^{address}: found no annotation file \(\.p, \.json, .* or one folder below"
            ),
            local_annotations(address),
        ):
            pass


def test_listing_a_folder_that_is_not_there_does_not_list_the_one_above(faulty_s3: Any, bucket: str, put: Put) -> None:
    put(open_folder(f"{bucket}/many"), "a", b"1")
    faulty_s3.requests.clear()
    assert open_folder(f"{bucket}/many/none").list() == {}
    assert [request.split()[0] for request in faulty_s3.requests] == ["HEAD", "GET"]
    assert "prefix=many%2Fnone%2F" in faulty_s3.requests[1]
    assert open_folder(f"{bucket}/many/a").list() == {}  # a file


def test_an_upload_costs_two_requests_and_a_read_one(faulty_s3: Any, bucket: str, put: Put) -> None:
    folder = open_folder(f"{bucket}/set")
    put(folder, "train-00000.tar", b"0123")
    folder.read("train-00000.tar")
    folder.read("train-00000.tar", 1, 2)
    path = f"/{bucket.removeprefix('s3://')}/set/train-00000.tar"
    assert faulty_s3.requests == [f"PUT {path}", f"HEAD {path}", f"GET {path}", f"GET {path}"]


def test_a_file_that_is_read_from_its_start_may_be_a_pipe(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_bytes, args=(b"picture",))
    writer.start()
    assert read_file(pipe) == b"picture"
    writer.join()
