"""Indexes kept as files: the same as those in memory, shared, and never trusted more than their manifests."""

import dataclasses
import fcntl
import hashlib
import os
import pickle
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from refseg.data.flat_arrays import FlatManifest, join_in_memory
from refseg.data.index_cache import CacheUnusableError, IndexCache

from refseg.data import index as index_module
from refseg.data.index import ManifestIndex
from refseg.dataset.descriptor import DESCRIPTOR_NAME, load_descriptor
from refseg.dataset.file_checks import read_as_built
from refseg.errors import DatasetError
from refseg.storage import Folder

from .conftest import grid_pictures, write_overlay

Write = Callable[..., Path]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of indexes; also the smallest dataset has its own."""
    monkeypatch.setenv("REFSEG_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(index_module, "_STORED_FROM_BYTES", 0)
    monkeypatch.setattr(index_module, "_MASKS_LATER_FROM_BYTES", 0)
    return tmp_path / "cache" / "index"


@pytest.fixture
def copy(tmp_path: Path, write: Write) -> Path:
    """A dataset that a test may damage."""
    shards = {"train-00000": grid_pictures(0, 6), "train-00001": grid_pictures(6, 5), "val-00000": grid_pictures(50, 2)}
    return write(tmp_path / "copy", shards)


@pytest.fixture
def manifests_read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the shards whose manifests were read, for the index or for their hashes alone."""
    read: list[str] = []

    def count(place: Folder, name: str, sha256: str) -> bytes:
        read.append(name.removesuffix(".parquet"))
        return read_as_built(place, name, sha256)

    monkeypatch.setattr("refseg.dataset.manifest_reader.read_as_built", count)
    monkeypatch.setattr("refseg.data.index_cache.read_as_built", count)
    return read


def indexes(cache: Path) -> list[Path]:
    return [path for path in cache.iterdir() if path.is_dir()]


def masks(index: ManifestIndex) -> list[list[int]]:
    """Run lengths of all rows."""
    return [index.counts(row).tolist() for row in range(index.num_rows)]


def assert_equal(one: ManifestIndex, other: ManifestIndex) -> None:
    assert masks(one) == masks(other)  # from now on all are in the arrays
    for field in dataclasses.fields(one):
        if field.name not in ("_stored", "_files", "folder", "shards"):
            ours, theirs = getattr(one, field.name), getattr(other, field.name)
            if isinstance(ours, np.ndarray):
                assert (ours.dtype, ours.tolist()) == (theirs.dtype, theirs.tolist()), field.name
            elif hasattr(ours, "to_pylist"):
                assert ours.to_pylist() == theirs.to_pylist(), field.name
            else:
                assert ours == theirs, field.name


def test_an_index_in_files_is_that_in_memory(
    copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    mix = write_overlay(tmp_path / "mix", copy, pool_path=str(copy), mix=("refcoco/unc", "refcocog/umd"))
    for folder, splits in ((copy, ["val", "train"]), (copy, ["val"]), (mix, ["train"])):
        first, again = ManifestIndex.open(folder, splits), ManifestIndex.open(folder, splits)
        with monkeypatch.context() as patch:
            patch.setattr(index_module, "_STORED_FROM_BYTES", 10**9)
            in_memory = ManifestIndex.open(folder, splits)

        assert_equal(first, in_memory)
        assert_equal(again, in_memory)
        assert [again.read_image_bytes(i) for i in range(again.num_images)] == [
            in_memory.read_image_bytes(i) for i in range(in_memory.num_images)
        ]
    assert len(indexes(cache)) == 3


def test_a_later_opening_reads_no_manifest(copy: Path, manifests_read: list[str]) -> None:
    ManifestIndex.open(copy, ["train"])
    assert sorted(manifests_read) == ["train-00000", "train-00001"]
    ManifestIndex.open(copy, ["train"])
    assert len(manifests_read) == 2


def test_a_small_dataset_leaves_no_files(copy: Path, monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    monkeypatch.setattr(index_module, "_STORED_FROM_BYTES", 8_000_000)
    ManifestIndex.open(copy, ["train"])
    assert not cache.exists()


def test_masks_are_read_with_the_first_of_their_manifest(copy: Path, manifests_read: list[str]) -> None:
    index, other = ManifestIndex.open(copy, ["train"]), ManifestIndex.open(copy, ["train"])
    manifests_read.clear()

    # Images 6 to 10 are in the second shard, whose first row is the 13th.
    assert index.counts(15).sum() == np.prod(index.size(15))
    assert manifests_read == ["train-00001"]
    for row in range(12, 21):
        other.counts(row)
    assert manifests_read == ["train-00001"]
    # The row before ends where what is there starts; its own manifest was not read.
    index.counts(11)
    assert manifests_read == ["train-00001", "train-00000"]


def test_masks_that_came_over_a_network_are_there_at_once(
    copy: Path, manifests_read: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index_module, "is_remote", lambda address: True)  # it is not, but nothing else asks
    index = ManifestIndex.open(copy, ["train"])
    assert sorted(manifests_read) == ["train-00000", "train-00001"]
    assert all(index.counts(row).sum() == np.prod(index.size(row)) for row in range(index.num_rows))
    assert len(manifests_read) == 2


def test_masks_of_a_middling_dataset_are_there_at_once(
    copy: Path, manifests_read: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index_module, "_MASKS_LATER_FROM_BYTES", 100_000_000)
    masks(ManifestIndex.open(copy, ["train"]))
    assert sorted(manifests_read) == ["train-00000", "train-00001"]


def test_masks_half_written_are_written_again(copy: Path, cache: Path, manifests_read: list[str]) -> None:
    index = ManifestIndex.open(copy, ["train"])
    expected = masks(index)
    (folder,) = indexes(cache)
    for name, start, end in (("mask_counts", 4 * 400, 4 * 600), ("mask_span", 8 * 7, 8 * 9)):
        with (folder / name).open("r+b") as file:  # as after a power cut: zeros
            file.seek(start)
            file.write(bytes(end - start))
        manifests_read.clear()

        assert masks(index) == expected
        assert len(manifests_read) == (2 if name == "mask_counts" else 1)
        manifests_read.clear()
        assert masks(ManifestIndex.open(copy, ["train"])) == expected
        assert manifests_read == []


def test_masks_that_cannot_be_kept_are_read_each_time(
    copy: Path, cache: Path, manifests_read: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    index = ManifestIndex.open(copy, ["val"])
    (folder,) = indexes(cache)
    (folder / "mask_counts").rename(folder / "elsewhere")
    manifests_read.clear()

    assert [index.counts(0).tolist(), index.counts(0).tolist()] == [masks(ManifestIndex.open(copy, ["val"]))[0]] * 2
    assert manifests_read[:2] == ["val-00000"] * 2
    assert caplog.text.count("masks cannot be kept here") == 1


def test_masks_of_a_manifest_that_changed_since_are_refused(copy: Path) -> None:
    index = ManifestIndex.open(copy, ["val"])
    path = copy / "val-00000.parquet"
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    with pytest.raises(DatasetError, match=r"val-00000.parquet: found sha256 \w{64}, expected \w{64}; the"):
        index.counts(0)


def test_row_groups_of_a_manifest_are_one(copy: Path, cache: Path) -> None:
    whole = ManifestIndex.open(copy, ["train"])
    expected, texts = masks(whole), whole.sent.to_pylist()
    descriptor = load_descriptor(copy)
    entries = []
    for entry in descriptor.shards:
        path = copy / f"{entry.name}.parquet"
        pq.write_table(pq.read_table(path), path, row_group_size=4)
        sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
        entries.append(dataclasses.replace(entry, parquet_bytes=path.stat().st_size, parquet_sha256=sha256))
    (copy / DESCRIPTOR_NAME).write_text(dataclasses.replace(descriptor, shards=tuple(entries)).to_json())
    shutil.rmtree(cache)

    again = ManifestIndex.open(copy, ["train"])

    assert (masks(again), again.sent.to_pylist()) == (expected, texts)


def test_pickled_it_is_the_place_of_its_files(copy: Path) -> None:
    index = ManifestIndex.open(copy, ["train"])
    pickled = pickle.dumps(index)

    received = pickle.loads(pickled)

    # No array, but the descriptor and the tars' names: two shards.
    assert len(pickled) < 5000
    assert_equal(received, index)
    assert received.read_image_bytes(3) == index.read_image_bytes(3)


def test_files_removed_while_in_use_are_named(copy: Path, cache: Path) -> None:
    pickled = pickle.dumps(ManifestIndex.open(copy, ["train"]))
    shutil.rmtree(cache)
    with pytest.raises(DatasetError, match=r"the index was removed while in use \(.*\); start the run again"):
        pickle.loads(pickled)


def test_a_manifest_that_changed_since_is_refused(copy: Path) -> None:
    ManifestIndex.open(copy, ["train"])
    path = copy / "train-00001.parquet"
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    path.write_bytes(data)

    for _ in range(2):
        with pytest.raises(DatasetError, match=r"train-00001.parquet: found sha256 \w{64}, expected \w{64}; the"):
            ManifestIndex.open(copy, ["train"])


def test_a_touched_manifest_and_another_copy_are_compared_once(
    copy: Path, tmp_path: Path, manifests_read: list[str], cache: Path
) -> None:
    ManifestIndex.open(copy, ["train"])
    os.utime(copy / "train-00000.parquet", (1, 1))
    shutil.copytree(copy, tmp_path / "elsewhere")
    for folder in (copy, tmp_path / "elsewhere"):
        manifests_read.clear()
        for _ in range(2):
            assert ManifestIndex.open(folder, ["train"]).num_images == 11
        assert sorted(manifests_read) == ["train-00000", "train-00001"]
    assert len(indexes(cache)) == 1


@pytest.mark.parametrize("damage", ["cut", "missing", "facts"])
def test_damaged_files_are_written_anew(
    damage: str, copy: Path, cache: Path, manifests_read: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    whole = ManifestIndex.open(copy, ["train"])
    whole.ref_id.tolist()
    (folder,) = indexes(cache)
    if damage == "cut":
        os.truncate(folder / "tokens", 10)
    elif damage == "missing":
        (folder / "tokens").unlink()
    else:
        (folder / "index.json").write_text("{")
    del whole
    manifests_read.clear()

    again = ManifestIndex.open(copy, ["train"])

    assert len(manifests_read) == 2
    assert again.text(0, 0) == "thing 0 of 0 said 0"
    if damage != "missing":  # which looks as if there were nothing
        assert "will be written anew" in caplog.text


def test_a_changed_bit_of_any_array_is_noticed(copy: Path, cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    whole = ManifestIndex.open(copy, ["train"])
    expected = {name: whole_array(whole, name) for name in ("tokens", "row_image", "width", "ref_id")}
    run_lengths = masks(whole)
    (folder,) = indexes(cache)
    del whole
    for path in sorted(folder.iterdir()):
        if path.name not in ("checked.json", "mask_check") and path.stat().st_size:
            with path.open("r+b") as file:
                file.seek(path.stat().st_size // 2)
                byte = file.read(1)[0]
                file.seek(-1, os.SEEK_CUR)
                file.write(bytes([byte ^ 4]))
            caplog.clear()

            again = ManifestIndex.open(copy, ["train"])

            assert {name: whole_array(again, name) for name in expected} == expected, path.name
            assert masks(again) == run_lengths, path.name
            # Masks that were filled in are compared when they are first asked for.
            assert ("will be written anew" in caplog.text) == (path.name not in ("mask_counts", "mask_span")), path.name
            del again


def whole_array(index: ManifestIndex, name: str) -> list[int]:
    values: list[int] = getattr(index, name).tolist()
    return values


def test_an_index_behind_a_link_is_not_read(copy: Path, cache: Path, tmp_path: Path) -> None:
    ManifestIndex.open(copy, ["train"])
    (name,) = (path.name for path in cache.iterdir() if (path / "index.json").is_file())
    (cache / name).rename(tmp_path / "theirs")
    (cache / name).symlink_to(tmp_path / "theirs")

    assert ManifestIndex.open(copy, ["train"]).num_rows == 21
    assert not (cache / name).is_symlink()
    assert (tmp_path / "theirs" / "index.json").is_file()
    cache.rename(tmp_path / "all")
    cache.symlink_to(tmp_path / "all")
    assert IndexCache(cache).open(name) is None


def test_a_link_in_the_place_of_an_index_is_not_followed(copy: Path, cache: Path, tmp_path: Path) -> None:
    ManifestIndex.open(copy, ["train"])
    (folder,) = indexes(cache)
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "mine").write_text("kept")
    shutil.rmtree(folder)
    for name in (folder.name, f"{folder.name}.part"):
        (cache / name).symlink_to(victim)
    (cache / "elsewhere").write_text("kept")
    (cache / "lock").unlink()
    (cache / "lock").symlink_to(victim / "mine")

    assert ManifestIndex.open(copy, ["train"]).num_rows == 21  # in memory, as the lock is a link
    (cache / "lock").unlink()
    assert ManifestIndex.open(copy, ["train"]).num_rows == 21
    assert [path.name for path in victim.iterdir()] == ["mine"]
    assert (victim / "mine").read_text() == "kept"
    assert cache.stat().st_mode & 0o777 == 0o700


def test_where_no_files_can_be_kept_the_index_is_in_memory(
    copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("REFSEG_CACHE", str(tmp_path / "file"))

    index = ManifestIndex.open(copy, ["train"])

    assert index._stored is None
    assert index.text(0, 0) == "thing 0 of 0 said 0"
    assert "the index is kept in memory, by each process" in caplog.text
    assert "give REFSEG_CACHE a folder" in caplog.text


def test_a_fault_of_the_dataset_leaves_nothing_behind(copy: Path, cache: Path) -> None:
    path = copy / "train-00001.parquet"
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    with pytest.raises(DatasetError, match="found sha256"):
        ManifestIndex.open(copy, ["train"])
    assert indexes(cache) == []


def test_what_a_killed_process_left_is_removed(copy: Path, cache: Path) -> None:
    ManifestIndex.open(copy, ["train"])
    (folder,) = indexes(cache)
    folder.rename(folder.with_suffix(".part"))  # killed just before it was finished

    assert ManifestIndex.open(copy, ["train"]).num_images == 11
    assert indexes(cache) == [folder]


def test_of_eight_processes_one_writes(
    copy: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    join = IndexCache._fill

    def slow_fill(*arguments: object) -> None:
        (tmp_path / f"writes-{os.getpid()}").touch()
        time.sleep(0.3)
        join(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(IndexCache, "_fill", slow_fill)
    children = []
    for _ in range(8):
        child = os.fork()
        if child == 0:
            right = ManifestIndex.open(copy, ["train"]).text(0, 0) == "thing 0 of 0 said 0"
            os._exit(0 if right else 1)
        children.append(child)

    assert [os.waitpid(child, 0)[1] for child in children] == [0] * 8
    assert len(list(tmp_path.glob("writes-*"))) == 1
    assert len(indexes(cache)) == 1


def manifests_of(number: int) -> list[FlatManifest]:
    """One manifest with a single array of 1,000 bytes."""
    return [FlatManifest({"ref_id": np.full(125, number, np.int64)}, [])]


def test_the_least_recently_used_are_removed_but_none_in_use(tmp_path: Path) -> None:
    # Each holds 1,000 bytes of array and less than 100 of facts: three have room.
    cache = IndexCache(tmp_path / "small", limit_bytes=3300)
    used, _ = cache.write("a", lambda: manifests_of(1))
    for number, key in enumerate("bc"):
        cache.write(key, lambda: manifests_of(2))
        os.utime(tmp_path / "small" / key / "index.json", (number, number))
    os.utime(tmp_path / "small" / "a" / "index.json", (0, 0))  # used least recently, but in use

    cache.write("d", lambda: manifests_of(3))

    assert {path.name for path in indexes(tmp_path / "small")} == {"a", "c", "d"}
    assert used.arrays()["ref_id"].tolist() == [1] * 125
    del used
    cache.write("e", lambda: manifests_of(4))
    assert {path.name for path in indexes(tmp_path / "small")} == {"c", "d", "e"}


def test_an_index_larger_than_the_limit_is_not_kept(tmp_path: Path) -> None:
    cache = IndexCache(tmp_path / "small", limit_bytes=500)
    with pytest.raises(CacheUnusableError, match=r"small: found an index of 1,\d+ bytes, expected 500 at most"):
        cache.write("a", lambda: manifests_of(1))
    assert indexes(tmp_path / "small") == []


def test_no_lock_is_left_when_the_index_is_gone(copy: Path, cache: Path) -> None:
    index = ManifestIndex.open(copy, ["train"])
    (folder,) = indexes(cache)
    with (folder / "index.json").open() as file:
        with pytest.raises(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        del index
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_arrays_that_count_others_go_on_counting() -> None:
    first = FlatManifest(
        {
            "ref_id": np.array([7, 8]), "row_image": np.array([0, 0]), "image_id": np.array([70]),
            "row_start": np.array([2]), "image_shard": np.array([0], np.int32),
        }, ["b.tar"],
    )  # fmt: skip
    second = FlatManifest(
        {
            "ref_id": np.array([9]), "row_image": np.array([0]), "image_id": np.array([80]),
            "row_start": np.array([1]), "image_shard": np.array([1], np.int32),
        }, ["unused.tar", "b.tar"],
    )  # fmt: skip

    arrays, tars = join_in_memory([first, second])

    assert arrays["ref_id"].tolist() == [7, 8, 9]
    assert arrays["row_image"].tolist() == [0, 0, 1]
    assert arrays["row_start"].tolist() == [0, 2, 3]
    assert [tars[number] for number in arrays["image_shard"]] == ["b.tar", "b.tar"]
