"""Builds with inputs or output on an S3 server: the bytes of a local build, also after kills and failures."""

import itertools
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import pytest

from pipelines.build import build_dataset
from pipelines.verify import verify_dataset
from refseg import storage_requests
from refseg.cli import main
from refseg.dataset.descriptor import load_descriptor
from refseg.errors import DatasetError, StorageError
from refseg.storage import open_folder
from tests.warm_python import python

pytestmark = pytest.mark.slow


def remote_contents(url: str) -> dict[str, bytes]:
    """Every object below a URL, by its name below it."""
    files, root = fsspec.core.url_to_fs(url, use_listings_cache=False)
    return {name.removeprefix(f"{root}/"): files.cat_file(name) for name in files.find(root)}


@pytest.fixture
def built(tiny: Any, tmp_path: Path, contents: Callable[[Path], dict[str, bytes]]) -> dict[str, bytes]:
    """The files of an undisturbed local build of `tiny`."""
    build_dataset(tiny.options(tmp_path / "built"))
    return contents(tmp_path / "built")


@pytest.fixture
def uploaded(tiny: Any, bucket: str, built: dict[str, bytes]) -> str:
    """URL of the annotations and images of `tiny`, in the same layout as on the disk."""
    fsspec.filesystem("s3").put(str(tiny.root), f"{bucket}/data", recursive=True)
    return f"{bucket}/data"


@pytest.fixture
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage_requests, "_FIRST_PAUSE_SECONDS", 0.01)
    monkeypatch.setattr(storage_requests, "_LONGEST_PAUSE_SECONDS", 0.02)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_build_to_s3_has_the_bytes_of_a_local_build(
    tiny: Any, bucket: str, built: dict[str, bytes], workers: int
) -> None:
    result = build_dataset(tiny.options(f"{bucket}/out", workers=workers))

    assert remote_contents(f"{bucket}/out") == built
    assert load_descriptor(f"{bucket}/out") == result.descriptor


def test_a_build_from_s3_has_the_bytes_of_a_local_build(
    tiny: Any,
    uploaded: str,
    built: dict[str, bytes],
    tmp_path: Path,
    contents: Callable[[Path], dict[str, bytes]],
) -> None:
    build_dataset(replace(tiny.options(tmp_path / "out"), annotations=uploaded))
    assert contents(tmp_path / "out") == built


def test_a_build_from_s3_to_s3_has_the_bytes_of_a_local_build(
    tiny: Any, bucket: str, uploaded: str, built: dict[str, bytes]
) -> None:
    images = f"{uploaded}/{tiny.image_folder.relative_to(tiny.root)}"
    build_dataset(replace(tiny.options(f"{bucket}/out", images=images), annotations=uploaded))
    assert remote_contents(f"{bucket}/out") == built


def test_the_command_line_takes_urls(
    tiny: Any, bucket: str, uploaded: str, built: dict[str, bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["build-shards", "refcoco/unc", "--annotations", uploaded, "--out", f"{bucket}/out"]
    command += ["--images-per-shard", "2", "--workers", "1", "--accept-counts"]
    assert main(command) == 0
    assert remote_contents(f"{bucket}/out") == built
    assert main(["verify", f"{bucket}/out"]) == 0
    assert main(command) == 0
    assert f"{bucket}/out: was already finished, nothing was changed" in capsys.readouterr().out


def test_a_finished_build_is_checked_and_not_written_again(tiny: Any, faulty_s3: Any, bucket: str) -> None:
    build_dataset(tiny.options(f"{bucket}/out"))
    faulty_s3.requests.clear()

    assert build_dataset(tiny.options(f"{bucket}/out")).was_complete
    assert not [request for request in faulty_s3.requests if not request.startswith(("GET", "HEAD"))]


def test_faults_that_pass_do_not_end_a_build(
    tiny: Any, faulty_s3: Any, bucket: str, uploaded: str, built: dict[str, bytes], short_pauses: None
) -> None:
    spoilt = itertools.cycle(["503", "drop", "500", "cut"])
    faulty_s3.faults = (None if number % 5 else next(spoilt) for number in itertools.count())
    build_dataset(replace(tiny.options(f"{bucket}/out"), annotations=uploaded))
    faulty_s3.faults = iter(())
    assert remote_contents(f"{bucket}/out") == built


def _fail_writes_from(proxy: Any, number: int) -> Iterator[str | None]:
    """503 for the `number`-th upload (from 0) and all that follow."""
    uploads = 0
    while True:
        uploads += proxy.requests[-1].startswith("PUT")
        yield "503" if uploads > number else None


def test_a_server_that_stays_away_ends_a_build_with_its_name_and_the_next_run_goes_on(
    tiny: Any, faulty_s3: Any, bucket: str, built: dict[str, bytes], short_pauses: None
) -> None:
    out = f"{bucket}/out"
    faulty_s3.faults = _fail_writes_from(faulty_s3, 8)
    with pytest.raises(StorageError, match=rf"^{out}/\S+: writing failed 5 times in .*Service Unavailable"):
        build_dataset(tiny.options(out))
    faulty_s3.faults = iter(())
    with pytest.raises(DatasetError, match=r"found no refseg\.json"):
        load_descriptor(out)
    receipts = ".build/receipts/"
    done = {name.removeprefix(receipts) for name in remote_contents(out) if name.startswith(receipts)}
    assert done == {"val-00000.json"}
    faulty_s3.requests.clear()

    build_dataset(tiny.options(out))
    assert remote_contents(out) == built
    uploads = {request.rpartition("/out/")[2] for request in faulty_s3.requests if request.startswith("PUT")}
    assert "val-00001.tar" in uploads
    assert "val-00000.tar" not in uploads  # what was up stays up


def test_images_that_cannot_be_fetched_are_not_taken_for_bad_ones(
    tiny: Any, faulty_s3: Any, bucket: str, uploaded: str, short_pauses: None
) -> None:
    out = f"{bucket}/out"
    options = replace(tiny.options(out, on_bad_sample="skip"), annotations=uploaded)
    faulty_s3.faults = ("503" if faulty_s3.requests[-1].endswith("9.jpg") else None for _ in itertools.count())
    with pytest.raises(StorageError, match=r"_000000000009\.jpg: reading failed 5 times in "):
        build_dataset(options)
    faulty_s3.faults = iter(())
    assert build_dataset(options).descriptor.num_rejects == 0


# Uploads: 0 to 2 what is planned for each shard, 3 the plan, then tar, manifest and receipt of each, 13 and 14 the
# indexes, 15 the descriptor.
@pytest.mark.parametrize("upload", [5, *(number for number in (0, 3, 6, 9, 12, 13, 15))])
def test_a_build_killed_during_an_upload_is_no_dataset_and_ends_with_the_same_bytes(
    tiny: Any, faulty_s3: Any, bucket: str, built: dict[str, bytes], upload: int
) -> None:
    out = f"{bucket}/out"
    faulty_s3.faults = ("hold" if fault else None for fault in _fail_writes_from(faulty_s3, upload))
    command = [python(), "-m", "refseg", "build-shards", "refcoco/unc", "--annotations", str(tiny.root)]
    command += ["--out", out, "--images-per-shard", "2", "--workers", "1", "--accept-counts"]
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 300
    while sum(request.startswith("PUT") for request in faulty_s3.requests) <= upload:
        assert child.poll() is None, "the build has ended"
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.kill(child.pid, signal.SIGKILL)
    child.wait()

    faulty_s3.faults = iter(())
    assert not open_folder(out).list().keys() & {"refseg.json"}
    with pytest.raises(DatasetError):
        load_descriptor(out)
    build_dataset(tiny.options(out))
    assert remote_contents(out) == built


@pytest.fixture
def damaged(tiny: Any, bucket: str, built: dict[str, bytes]) -> Callable[[str, Callable[[bytes], bytes]], str]:
    """Uploads the local build with one file changed."""

    def damage(name: str, change: Callable[[bytes], bytes]) -> str:
        files = fsspec.filesystem("s3")
        for each, data in built.items():
            files.pipe_file(f"{bucket}/out/{each}", change(data) if each == name else data)
        return f"{bucket}/out"

    return damage


def test_verify_finds_no_fault_at_a_url(damaged: Callable[..., str]) -> None:
    assert verify_dataset(damaged("", bytes)) == []


@pytest.mark.parametrize(
    ("change", "fast"),
    [
        (lambda data: data[:700] + bytes([data[700] ^ 1]) + data[701:], False),
        (lambda data: data[: len(data) // 1024 * 512], True),
    ],
    ids=["a flipped bit", "cut"],
)
def test_verify_finds_a_damaged_tar_at_a_url(
    damaged: Callable[..., str], built: dict[str, bytes], change: Callable[[bytes], bytes], fast: bool
) -> None:
    tar = sorted(name for name in built if name.endswith(".tar"))[0]
    faults = verify_dataset(damaged(tar, change), fast=fast)
    assert {fault.file for fault in faults} == {tar}


def test_verify_names_a_server_that_fails_and_not_a_fault_of_the_data(
    faulty_s3: Any, damaged: Callable[..., str], short_pauses: None
) -> None:
    url = damaged("", bytes)
    faulty_s3.faults = itertools.chain([None] * 4, itertools.repeat("503"))
    with pytest.raises(StorageError, match=r"failed 5 times in \d+ s, the last time with OSError"):
        verify_dataset(url)
