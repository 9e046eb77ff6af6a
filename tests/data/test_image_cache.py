"""The cache of decoded images returns what was stored or nothing, whatever happens to its file."""

import errno
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import xxhash

from refseg.data.image_cache import ImageCache
from refseg.data.transforms import Geometry
from refseg.errors import UsageError
from tests.disk import file_size_limit

SLOT = 8 + 3 * 4 * 6


def make_cache(folder: Path, **options: Any) -> ImageCache:
    settings = {"geometry": Geometry(kind="stretch", size=(4, 6)), "num_images": 3, "max_bytes": 10**6}
    return ImageCache(folder, **{"digest": "d" * 64, **settings, **options})


def picture(number: int) -> torch.Tensor:
    return torch.full((4, 6, 3), 10 + number, dtype=torch.uint8)


def fill(cache: ImageCache) -> Path:
    """Store all three pictures and return the path of the file."""
    for image in range(3):
        cache.write(image, picture(image))
    (file,) = cache._path.parent.iterdir()
    return file


def found(cache: ImageCache) -> list[int]:
    """Return the stored images, after checking that each is unchanged."""
    images = []
    for image in range(3):
        out = torch.zeros(4, 6, 3, dtype=torch.uint8)
        if cache.read(image, out):
            assert torch.equal(out, picture(image))
            images.append(image)
    return images


def test_what_is_put_there_is_found_by_all_processes_and_later_runs(tmp_path: Path) -> None:
    cache = make_cache(tmp_path)
    assert found(cache) == []
    file = fill(cache)
    assert file.stat().st_size == 3 * SLOT
    assert found(cache) == found(make_cache(tmp_path)) == found(pickle.loads(pickle.dumps(cache))) == [0, 1, 2]


def cut(file: Path) -> None:
    os.truncate(file, SLOT + SLOT // 2)


def write_over(file: Path) -> None:
    with file.open("r+b") as opened:
        opened.seek(SLOT + 30)
        opened.write(b"\xff")


@pytest.mark.parametrize(
    ("damage", "left"), [(Path.unlink, []), (cut, [0]), (write_over, [0, 2]), (lambda file: file.write_bytes(b""), [])]
)
@pytest.mark.parametrize("in_use", [False, True])
def test_what_is_removed_cut_or_written_over_is_not_there_and_can_be_put_again(
    tmp_path: Path, damage: Callable[[Path], None], left: list[int], in_use: bool
) -> None:
    cache = make_cache(tmp_path)
    damage(fill(cache))
    if not in_use:
        cache = make_cache(tmp_path)

    # A file that is removed while in use remains readable for the processes that have it open.
    assert found(cache) == ([0, 1, 2] if in_use and damage is Path.unlink else left)
    fill(make_cache(tmp_path))
    assert found(make_cache(tmp_path)) == [0, 1, 2]


def test_a_picture_is_hashed_once_in_each_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = make_cache(tmp_path)
    file = fill(cache)
    hashed = []
    digest = xxhash.xxh3_64_intdigest
    monkeypatch.setattr(xxhash, "xxh3_64_intdigest", lambda data: hashed.append(data[0]) or digest(data))

    assert found(cache) == found(cache) == found(cache) == [0, 1, 2]
    assert hashed == [10, 11, 12]  # the first byte of each picture
    copy = pickle.loads(pickle.dumps(cache))  # as another process gets it
    assert found(copy) == found(copy) == [0, 1, 2]
    assert hashed == [10, 11, 12] * 2
    write_over(file)
    # A slot that was compared is not compared again; a damaged slot is compared each time.
    later = make_cache(tmp_path)
    assert found(later) == found(later) == [0, 2]
    assert hashed[6:] == [10, 11, 12, 11]


def test_damage_is_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cache = make_cache(tmp_path)
    write_over(fill(cache))
    found(cache)
    found(cache)
    assert [record.getMessage().partition(": ")[2] for record in caplog.records] == [
        "the cache of decoded images: image 1 is damaged in it; damaged images are decoded again"
    ]


def test_a_larger_cache_keeps_what_a_smaller_one_held(tmp_path: Path) -> None:
    small = make_cache(tmp_path, max_bytes=2 * 72)
    for image in range(3):
        small.write(image, picture(image))
    assert found(small) == [0, 1]
    large = make_cache(tmp_path)
    assert found(large) == [0, 1]
    large.write(2, picture(2))
    assert found(make_cache(tmp_path, max_bytes=2 * 72)) == [0, 1]
    assert found(large) == [0, 1, 2]


def test_space_is_taken_before_a_run_begins(tmp_path: Path) -> None:
    cache = make_cache(tmp_path, num_images=10_000, max_bytes=10**7)
    assert cache._path.stat().st_blocks * 512 >= 10_000 * SLOT


def test_a_full_disk_is_told_before_a_run_begins_and_nothing_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def allocate(descriptor: int, start: int, length: int) -> None:
        os.ftruncate(descriptor, length // 2)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", allocate)
    with pytest.raises(UsageError) as caught:
        make_cache(tmp_path, num_images=10**6, max_bytes=10**9)
    assert (
        "the cache of decoded images, 0.080 GB, cannot be created (No space left on device); set REFSEG_CACHE to"
        in str(caught.value)
    )
    assert [path.stat().st_size for path in tmp_path.iterdir()] == [0]


def test_where_space_is_short_caches_that_nobody_uses_go_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old, recent, used = (make_cache(tmp_path, digest=letter * 64) for letter in "abc")
    for age, cache in ((300, used), (200, old), (100, recent)):
        os.utime(cache._path, (1e9 - age, 1e9 - age))
    kept = [recent._path, used._path]
    del old, recent, cache
    allocate = os.posix_fallocate

    def as_if_full(descriptor: int, start: int, length: int) -> None:
        if len(list(tmp_path.iterdir())) > 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        allocate(descriptor, start, length)

    monkeypatch.setattr(os, "posix_fallocate", as_if_full)
    new = make_cache(tmp_path)
    assert set(tmp_path.iterdir()) == {*kept, new._path}


def test_a_disk_that_fills_up_in_spite_of_all_stops_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delattr(os, "posix_fallocate")  # as on macOS: no space is taken
    cache = make_cache(tmp_path)
    with file_size_limit() as limit:
        limit(SLOT)
        fill(cache)
    assert found(cache) == [0]
    assert len(caplog.records) == 1
    assert "cannot be written (File too large); images that are not in it yet are decoded each time" in caplog.text


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match=r"file/decoded/d+-stretch-4x6-.*cannot be created \(Not a directory\)"):
        make_cache(tmp_path / "file" / "decoded")
    with pytest.raises(
        UsageError, match="a cache of 71 bytes is too small for an image of 4 x 6 pixels; expected at least 72"
    ):
        make_cache(tmp_path, max_bytes=71)


def test_a_link_in_the_place_of_the_file_is_not_followed(tmp_path: Path) -> None:
    make_cache(tmp_path / "decoded")
    (path,) = (tmp_path / "decoded").iterdir()
    victim = tmp_path / "victim"
    victim.write_bytes(b"mine")
    path.unlink()
    path.symlink_to(victim)

    with pytest.raises(UsageError, match="is a symbolic link, which a cache does not follow"):
        make_cache(tmp_path / "decoded")
    assert victim.read_bytes() == b"mine"
    assert (tmp_path / "decoded").stat().st_mode & 0o777 == 0o700
