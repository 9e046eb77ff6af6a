"""`refseg download`: from a mirror to files that `build-shards` reads; the images are those that refs are about."""

import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from pipelines.download.catalogue import load_catalogue
from pipelines.download.run import DownloadOptions, download
from refseg import storage_requests
from refseg.cli import main
from refseg.errors import DownloadError, UsageError
from refseg.locks import lock
from tests.range_server import RangeServer, Request, serving

from .conftest import TinyRefer

NUM_NEEDED, NUM_OTHERS = 5, 20


@dataclass
class World:
    """A mirror of a tiny RefCOCO on loopback, and a user's folder.

    `mirror/` has the archives, `images/` the single images; the first `num_needed` of them belong to refs.
    """

    server: RangeServer
    root: Path
    catalogue: Path
    images: dict[str, bytes]
    num_needed: int

    @property
    def out(self) -> Path:
        return self.root / "out"

    def command(self, *more: str, dataset: str = "refcoco/unc") -> list[str]:
        return ["download", dataset, "--out", str(self.out), "--catalogue", str(self.catalogue), *more]

    def download(self, **options: Any) -> int:
        """The images that were fetched."""
        given = {"datasets": ("refcoco/unc",), "out": self.out, "catalogue": self.catalogue}
        return download(DownloadOptions(**{**given, **options})).num_images

    def asked(self, since: int = 0) -> list[str]:
        return [request.path for request in self.server.requests[since:]]

    def is_right(self) -> bool:
        """All files are there, with their bytes, and nothing else is."""
        found = {str(path.relative_to(self.out)): path.read_bytes() for path in self.out.rglob("*") if path.is_file()}
        expected = {f"train2014/{name}": data for name, data in list(self.images.items())[: self.num_needed]}
        return found == {**expected, "refcoco.zip": self.server.files["mirror/refcoco.zip"]}


@pytest.fixture
def world(tiny: TinyRefer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    monkeypatch.setattr(storage_requests, "_FIRST_PAUSE_SECONDS", 0.0)
    tiny.write()
    for image_id in range(100, 100 + NUM_OTHERS):
        shutil.copy(tiny.image_path(7), tiny.image_path(image_id))
    images = {path.name: path.read_bytes() for path in sorted(tiny.image_folder.iterdir())}
    padding = random.Random(0).randbytes(4 << 20)
    for name, files in {
        "refcoco.zip": {
            **{f"refcoco/{path.name}": path.read_bytes() for path in sorted((tiny.root / "refcoco").iterdir())},
            "refcoco/notes": padding,
        },
        "train2014.zip": {f"train2014/{name}": data for name, data in images.items()},
    }.items():
        with zipfile.ZipFile(tmp_path / name, "w") as archive:
            for member, data in files.items():
                archive.writestr(member, data)
    with serving() as server:
        server.files = {f"images/{name}": data for name, data in images.items()}
        lines = []
        for name in ("refcoco.zip", "train2014.zip"):
            server.files[f"mirror/{name}"] = data = (tmp_path / name).read_bytes()
            lines.append(
                f'[files."{name}"]\nbytes = {len(data)}\nsha256 = "{hashlib.sha256(data).hexdigest()}"\n'
                f'mirrors = ["{server.url}/mirror/{name}"]\nterms = ["all"]\nfound_in = "a test"\n'
            )
        lines.append(
            '[files."grefcoco/grefs(unc).json"]\nby_hand = "its authors\' page"\n'
            f'[images.train2014]\narchive = "train2014.zip"\nnum_images = {len(images)}\n'
            f'singles = ["{server.url}/images"]\n'
            '[datasets."refcoco/unc"]\nannotations = ["refcoco.zip"]\nimages = ["train2014"]\n'
            '[datasets."grefcoco/unc"]\nannotations = ["grefcoco/grefs(unc).json"]\nimages = ["train2014"]\n'
            '[terms]\nall = "Made for a test: no rights reserved."\n'
        )
        (tmp_path / "catalogue.toml").write_text("\n".join(lines))
        yield World(server, tmp_path, tmp_path / "catalogue.toml", images, len(tiny.refs))


def test_annotations_and_needed_images_arrive_and_a_second_run_fetches_nothing(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(world.command()) == 0
    said = capsys.readouterr()

    assert world.is_right()
    assert "- Made for a test: no rights reserved." in said.err
    assert f"{world.out}: fetched refcoco.zip, 5 images, 4.2 MB" in said.out
    assert f"refseg build-shards refcoco/unc --annotations {world.out} --out shards/refcoco-unc" in said.out
    assert not [path for path in world.asked() if path.startswith("images")]  # out of the archive, by ranges
    num_requests = len(world.server.requests)
    assert main(world.command()) == 0
    assert len(world.server.requests) == num_requests
    assert f"{world.out}: complete, nothing was fetched" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("images", "names", "fetched"), [("none", {"refcoco.zip"}, 0), ("all", {"refcoco.zip", "train2014.zip"}, 0)]
)
def test_images_are_left_out_or_come_as_the_archive(images: str, names: set[str], fetched: int, world: World) -> None:
    assert world.download(images=images) == fetched

    assert {path.name for path in world.out.iterdir()} == names
    if images == "all":
        assert world.download(images="needed") == 0  # they are in the archive
        build = ["build-shards", "refcoco/unc", "--annotations", str(world.out), "--out", str(world.root / "built")]
        assert main([*build, "--accept-counts", "--workers", "1"]) == 0


def test_what_the_toolkit_would_fetch_is_shown_without_a_request(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(world.command("--list")) == 0
    shown = capsys.readouterr().out

    assert f"refcoco.zip: 4.2 MB; from {world.server.url}/mirror/refcoco.zip" in shown
    assert "no rights reserved" in shown
    assert main(["download", "--list", "--catalogue", str(world.catalogue)]) == 0
    assert "grefcoco/unc       grefcoco/grefs(unc).json (by hand); images of train2014" in capsys.readouterr().out
    assert world.server.requests == []
    assert not world.out.exists()


def _archive_fault(fault: str, request: Request) -> str | None:
    return fault if request.path == "mirror/train2014.zip" else None


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("404", "train2014.zip: no such file"),
        ("lie", "train2014.zip: found"),
        ("short", "train2014.zip: found"),
        ("wrong byte", "train2014.zip"),
        ("whole", "does not send parts of files"),
        ("503", "reading failed 5 times"),
    ],
)
def test_single_images_are_fetched_where_the_archive_cannot_be_read(
    fault: str, said: str, world: World, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("refseg.http_file._CHUNK_BYTES", 1 << 10)  # below which the whole archive is no waste
    world.server.fault = lambda request: _archive_fault(fault, request)

    assert world.download() == NUM_NEEDED

    assert world.is_right()
    assert said in caplog.text
    assert len([path for path in world.asked() if path.startswith("images/")]) == NUM_NEEDED


def test_a_picture_that_differs_from_the_archives_checksum_is_not_kept(world: World) -> None:
    name = next(iter(world.images))
    data = bytearray(world.server.files["mirror/train2014.zip"])  # type: ignore[arg-type]
    data[data.index(world.images[name]) + 200] ^= 1
    world.server.files["mirror/train2014.zip"] = bytes(data)

    assert world.download() == NUM_NEEDED
    assert world.is_right()
    assert f"images/{name}" in world.asked()


@pytest.mark.parametrize(
    ("fault", "said"), [("404", "no such file"), ("short", "ends or is damaged"), ("503", "5 times")]
)
def test_a_picture_that_nobody_gives_is_named_and_the_same_command_completes_the_rest(
    fault: str, said: str, world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    name = list(world.images)[2]
    faults = {"mirror/train2014.zip": "404", f"images/{name}": fault}
    world.server.fault = lambda request: faults.get(request.path)

    assert main(world.command()) == 1
    error = capsys.readouterr().err.partition("refseg: error: ")[2]
    assert f"could not be downloaded ({name})" in error or fault == "503"
    assert said in error
    assert not (world.out / "train2014" / name).exists()
    world.server.fault = lambda request: _archive_fault("404", request)
    assert main(world.command()) == 0
    assert world.is_right()


def test_a_users_own_mirror_comes_first_and_may_be_a_folder(world: World, tiny: TinyRefer) -> None:
    for name in ("refcoco.zip", "train2014.zip"):
        world.server.files[f"own/{name}"] = world.server.files[f"mirror/{name}"]

    assert world.download(mirror=(f"{world.server.url}/own/",)) == NUM_NEEDED
    assert {path.partition("/")[0] for path in world.asked()} == {"own"}
    assert world.is_right()

    shutil.rmtree(world.out)
    shutil.copytree(tiny.image_folder, world.root / "lab/train2014")
    shutil.copy(world.root / "refcoco.zip", world.root / "lab")
    before = len(world.server.requests)
    assert world.download(mirror=(str(world.root / "lab"),)) == NUM_NEEDED
    assert world.is_right()
    assert world.asked(before) == []


def test_images_that_are_there_in_any_layout_are_not_fetched(world: World, tiny: TinyRefer) -> None:
    shutil.copytree(tiny.image_folder, world.out / "images/train2014")

    assert world.download() == 0


def test_a_file_without_a_digest_is_named_before_anything_is_fetched(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(world.command(dataset="grefcoco/unc")) == 1
    assert capsys.readouterr().err.endswith(
        "refseg: error: no digest is known of some files, so what a server sends could not be checked; put them there "
        "by hand and run the same command again, or leave their dataset out\n"
        f"  {world.out}/grefcoco/grefs(unc).json: from its authors' page\n"
    )
    assert world.server.requests == []
    (world.out / "grefcoco").mkdir(parents=True)
    (world.out / "grefcoco/grefs(unc).json").write_text("[]")
    assert main(world.command("--images", "none", dataset="grefcoco/unc")) == 0


def test_a_disk_that_is_too_small_is_named_before_anything_is_fetched(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 10**6))  # type: ignore[attr-defined]

    with pytest.raises(DownloadError, match=r"0\.0 GB are to be downloaded and 0\.0 GB are free; free some disk space"):
        world.download()
    assert world.server.requests == []


def test_two_downloads_into_one_folder_are_refused(world: World) -> None:
    world.out.mkdir()
    descriptor = os.open(world.out, os.O_RDONLY)
    lock(descriptor)
    try:
        with pytest.raises(DownloadError, match="another download is at work here"):
            world.download()
    finally:
        os.close(descriptor)


def test_mistakes_in_a_catalogue_are_all_listed(world: World) -> None:
    text = world.catalogue.read_text()
    for old, new, said in (
        ('sha256 = "', 'sha256 = "x', "files.refcoco.zip.sha256"),
        ("bytes = ", "byte = ", "files.refcoco.zip.byte: Extra inputs are not permitted"),
        ('terms = ["all"]', 'terms = ["none"]', "named and not defined: none"),
        ("[files", "[files", "is not TOML"),
        ('[files."refcoco.zip"]', '[files."../refcoco.zip"]', "named and not defined: refcoco.zip"),
    ):
        world.catalogue.write_text(text.replace(old, new) + ("[" if old == new else ""))
        with pytest.raises(UsageError) as error:
            world.download()
        assert said in str(error.value)


def test_the_shipped_catalogue_is_whole_and_the_page_shows_its_digests() -> None:
    catalogue = load_catalogue()
    page = (Path(__file__).parents[2] / "docs/get-refcoco.md").read_text(encoding="utf-8")

    assert set(catalogue.datasets) >= {"refcoco/unc", "refcocoplus/unc", "refcocog/umd", "refcocog/google"}
    pins = [pin for pin in catalogue.files.values() if pin.sha256]
    assert len(pins) == 5
    for pin in pins:
        assert pin.sha256 in page
        assert f"{pin.num_bytes:,}" in page
        assert pin.found_in


_RUNS = """
import os, sys
from pathlib import Path
from pipelines.download.run import DownloadOptions, download
import pipelines.sources, requests
out, catalogue, pid, runs = sys.argv[1:]
for _ in range(int(runs)):
    child = os.fork()
    if child == 0:
        Path(pid).write_text(str(os.getpid()))
        download(DownloadOptions(datasets=("refcoco/unc",), out=Path(out), catalogue=Path(catalogue)))
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""
"""Starts downloads one after the other, in forked children, so that the imports are paid for once."""


@pytest.fixture
def more_images(tiny: TinyRefer, request: pytest.FixtureRequest) -> None:
    for image_id in range(20, 20 + request.param):
        tiny.add_image(image_id)


@pytest.mark.slow
@pytest.mark.parametrize(("more_images", "most_pieces"), [(0, 12), (60, 8)], indirect=["more_images"])
def test_killed_ten_times_at_seeded_moments_the_same_command_completes_the_download(
    more_images: None, most_pieces: int, world: World
) -> None:
    seeded = random.Random(0)
    left = [seeded.randint(1, most_pieces) for _ in range(10)]  # pieces that the server sends before each kill
    pid, killed = world.root / "pid", ""
    if world.num_needed > NUM_NEEDED:
        world.download(images="none")

    def kill() -> None:
        nonlocal killed
        with world.server.lock:
            running = pid.read_text() if pid.exists() else ""
            if not left or running in ("", killed):  # the answer to a process that is dead by now
                return
            left[0] -= 1
            if left[0] == 0:
                del left[0]
                killed = running
                os.kill(int(running), signal.SIGKILL)

    world.server.on_chunk = kill
    command = [sys.executable, "-c", _RUNS, str(world.out), str(world.catalogue), str(pid), "12"]
    ended = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()

    assert ended == ["-9"] * 10 + ["0"] * 2
    assert world.is_right()
