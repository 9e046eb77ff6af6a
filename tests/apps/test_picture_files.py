"""The pictures that a user names: which files are taken, in which order, under which names."""

import functools
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import fsspec
import pytest

from refseg.apps.picture_files import find_pictures
from refseg.errors import ImageError, MissingImageError, UsageError


class _Handler(SimpleHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        """Say nothing."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two pictures, results of an earlier call beside them, a text and a folder."""
    (tmp_path / "photos" / "more").mkdir(parents=True)
    for name in ("b.JPG", "a.png", "a.mask.png", "a-2.overlay.png", "notes.txt", "more/c.png"):
        (tmp_path / "photos" / name).write_bytes(name.encode())
    return tmp_path / "photos"


@pytest.fixture
def url(folder: Path) -> Iterator[str]:
    """The folder on a web server."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Handler, directory=str(folder)))
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def test_a_folder_gives_its_pictures_by_name_and_each_picture_is_taken_once(folder: Path) -> None:
    found = find_pictures([folder / "b.JPG", folder, folder / "notes.txt"])

    assert [picture.address for picture in found] == [str(folder / name) for name in ("b.JPG", "a.png", "notes.txt")]
    assert [picture.read() for picture in found] == [b"b.JPG", b"a.png", b"notes.txt"]
    assert [picture.stem for picture in found] == ["b", "a", "notes"]


def test_what_is_left_out_of_a_folder_is_logged(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "refseg.apps")
    find_pictures([folder])

    assert caplog.messages == [f"{folder}: not pictures, left out: a-2.overlay.png, a.mask.png, notes.txt"]


def test_a_url_of_a_picture_is_read_as_it_is_written_and_named_by_its_path(url: str) -> None:
    (picture,) = find_pictures([f"{url}/b%2EJPG?size=large"])

    assert picture.read() == b"b.JPG"
    assert picture.stem == "b"


def test_folders_at_urls_are_listed(folder: Path, url: str) -> None:
    fsspec.filesystem("memory").pipe("/album/c.webp", b"c")
    try:
        found = find_pictures([f"{url}/", "memory://album"])
    finally:
        fsspec.filesystem("memory").rm("/album", recursive=True)

    assert [picture.stem for picture in found] == ["a", "b", "c"]
    assert found[0].read() == b"a.png"


def test_what_names_no_picture_is_refused(folder: Path, url: str) -> None:
    with pytest.raises(MissingImageError, match=r"gone\.jpg: no such file; expected an image"):
        find_pictures([folder, "gone.jpg"])
    (folder / "empty").mkdir()
    with pytest.raises(UsageError, match="empty: found no picture, expected files such as"):
        find_pictures([folder / "empty"])
    (missing,) = find_pictures([f"{url}/gone.jpg"])
    with pytest.raises(ImageError, match=r"gone\.jpg: no such file; expected an image"):
        missing.read()
