"""A dataset in object storage: the same batches as from disk, in spite of failures and damage."""

import os
import subprocess
from itertools import chain, repeat
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch

from refseg import storage_requests
from refseg.config import load_recipe
from refseg.data.index import ManifestIndex
from refseg.data.loader import RefLoader
from refseg.dataset.descriptor import load_descriptor
from refseg.errors import DatasetError, StorageError
from refseg.reading import Reading
from refseg.training.run_files import read_metrics
from refseg.training.trainer import train
from tests.warm_python import python

from .conftest import write_overlay

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A separate cache for the test."""
    monkeypatch.setenv("REFSEG_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("REFSEG_CACHE_GIGABYTES", "1")
    monkeypatch.setattr(storage_requests, "_FIRST_PAUSE_SECONDS", 0.01)
    return tmp_path / "cache" / "shards"


@pytest.fixture
def remote(dataset: Path, bucket: str) -> str:
    """The dataset in a bucket."""
    files = fsspec.filesystem("s3")
    for path in dataset.iterdir():
        files.put_file(str(path), f"{bucket}/toy/{path.name}")
    return f"{bucket}/toy"


def cached(cache: Path) -> set[str]:
    return {path.stem for path in cache.glob("*.tar")}


def hashes(dataset: Path, split: str = "train") -> set[str]:
    return {entry.tar_sha256 for entry in load_descriptor(dataset).shards if entry.split == split}


def loader(index: ManifestIndex, **options: Any) -> RefLoader:
    settings: dict[str, Any] = {
        "input_size": (32, 32), "global_batch": 4, "num_tokens": 12, "remainder": "pad", **options,
    }  # fmt: skip
    process = {name: settings.pop(name) for name in ("rank", "world_size", "epoch") if name in settings}
    return RefLoader(index, Reading(**settings), **process)


def same(first: Any, second: Any) -> bool:
    return all(
        all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
        for one, other in zip(first, second, strict=True)
    )


def test_without_a_cache_samples_are_requested_one_by_one(
    dataset: Path, train_index: ManifestIndex, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache.parent.write_text("a file where the cache's folder should be")
    index = ManifestIndex.open(f"file://{dataset}", ["train"])
    assert same(loader(index), loader(train_index))
    index.check_ahead(wait=True)
    messages = [record.getMessage() for record in caplog.records]
    assert (
        [message.partition(": ")[2][:40] for message in messages]
        == [
            "the cache of remote shards cannot be used"[:40],  # of the folder for indexes
            "the index is kept in memory, by each process"[:40],
            "the cache of remote shards cannot be used"[:40],
        ]
    )
    assert messages[2].startswith(f"{cache}: ")


@pytest.mark.parametrize("num_workers", [0, 2])
def test_batches_are_those_of_the_local_dataset(
    remote: str, dataset: Path, train_index: ManifestIndex, cache: Path, num_workers: int
) -> None:
    index = ManifestIndex.open(remote, ["train"])
    assert index.digest == train_index.digest
    assert same(loader(index, num_workers=num_workers), loader(train_index))
    index.check_ahead(wait=True)
    assert cached(cache) == hashes(dataset)  # of train alone


def test_an_index_is_downloaded_once_and_no_manifest(faulty_s3: Any, remote: str, train_index: ManifestIndex) -> None:
    for number in range(2):
        faulty_s3.requests.clear()
        index = ManifestIndex.open(remote, ["train"])
        assert [index.counts(row).tolist() for row in range(index.num_rows)] == [
            train_index.counts(row).tolist() for row in range(index.num_rows)
        ]
        read = [line for line in faulty_s3.requests if line.startswith("GET") and "list-type" not in line]
        assert [line.rpartition("/")[2].partition("?")[0] for line in read] == [
            "refseg.json", *(["train.index.safetensors"] if number == 0 else []),
        ]  # fmt: skip


def test_a_damaged_index_in_a_bucket_is_refused(remote: str, dataset: Path) -> None:
    damaged = bytearray((dataset / "train.index.safetensors").read_bytes())
    damaged[-1] ^= 1
    fsspec.filesystem("s3").pipe_file(f"{remote}/train.index.safetensors", bytes(damaged))
    with pytest.raises(DatasetError, match=r"train.index.safetensors: found \d+ bytes with sha256 .* expected"):
        ManifestIndex.open(remote, ["train"])


def test_the_second_epoch_asks_for_nothing(faulty_s3: Any, remote: str, train_index: ManifestIndex) -> None:
    index = ManifestIndex.open(remote, ["train"])
    index.fetch_ahead(index.row_image)
    index.check_ahead(wait=True)
    faulty_s3.requests.clear()

    assert same(loader(index), loader(train_index))
    assert faulty_s3.requests == []


def test_a_sample_is_read_by_one_request_before_its_shard_is_here(
    faulty_s3: Any, remote: str, train_index: ManifestIndex
) -> None:
    index = ManifestIndex.open(remote, ["train"])
    faulty_s3.requests.clear()
    assert index.read_image_bytes(3) == train_index.read_image_bytes(3)
    assert [line.split()[0] for line in faulty_s3.requests] == ["GET"]


def test_a_cut_connection_is_asked_again(
    faulty_s3: Any, remote: str, dataset: Path, train_index: ManifestIndex, cache: Path
) -> None:
    index = ManifestIndex.open(remote, ["train"])
    faulty_s3.faults = iter(["cut", None, "503", "drop"] * 2)
    assert same(loader(index), loader(train_index))
    index.check_ahead(wait=True)
    assert cached(cache) == hashes(dataset)


def test_storage_that_stays_away_is_an_error_that_names_the_shard(faulty_s3: Any, remote: str, cache: Path) -> None:
    index = ManifestIndex.open(remote, ["train"])
    faulty_s3.faults = repeat("503")
    with pytest.raises(StorageError, match=r"toy/train-0000\d.tar: reading failed 5 times"):
        list(loader(index))
    assert cached(cache) == set()


def test_a_damaged_object_stops_the_epoch_with_its_url_and_hashes(remote: str, dataset: Path) -> None:
    index = ManifestIndex.open(remote, ["train"])
    tar = index.shards[0]
    damaged = bytearray((dataset / "train-00000.tar").read_bytes())
    damaged[-1] ^= 1  # behind the last sample: only the tar's own hash can show it
    fsspec.filesystem("s3").pipe_file(tar.address, bytes(damaged))

    message = rf"toy/train-00000.tar: found \d+ bytes with sha256 .* at each of 2 downloads, expected .* {tar.sha256}"
    index.fetch_ahead(index.row_image)
    with pytest.raises(DatasetError, match=message):
        index.check_ahead(wait=True)
    epoch = loader(index)
    with pytest.raises(DatasetError, match=message):  # within the epoch that runs when it is found
        list(chain.from_iterable(repeat(epoch, 200)))


def test_a_damaged_sample_is_asked_for_once_more_then_named(
    faulty_s3: Any, remote: str, dataset: Path, train_index: ManifestIndex
) -> None:
    index = ManifestIndex.open(remote, ["train"])
    damaged = bytearray((dataset / "train-00000.tar").read_bytes())
    damaged[int(index.image_offset[0]) + 40] ^= 1
    fsspec.filesystem("s3").pipe_file(index.shards[0].address, bytes(damaged))
    faulty_s3.requests.clear()

    with pytest.raises(DatasetError, match=r"s3://.*/toy/train-00000.tar: image 0 .*: found a sample with XXH3"):
        index.read_image_bytes(0)
    assert len(faulty_s3.requests) == 2
    assert index.read_image_bytes(1) == train_index.read_image_bytes(1)


def test_damage_in_the_cache_heals(
    remote: str, train_index: ManifestIndex, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    index = ManifestIndex.open(remote, ["train"])
    index.fetch_ahead(index.row_image)
    index.check_ahead(wait=True)
    for path in cache.glob("*.tar"):
        path.write_bytes(bytes(path.stat().st_size))

    assert index.read_image_bytes(0) == train_index.read_image_bytes(0)
    assert "train-00000.tar: image 0" in caplog.text
    assert "damaged in the cache; it was removed there and is read again" in caplog.text
    assert index.shards[0].sha256 not in cached(cache)
    index.fetch_ahead(index.row_image)
    index.check_ahead(wait=True)
    assert index.shards[0].sha256 in cached(cache)


def test_a_cache_smaller_than_the_dataset_keeps_what_fits_and_says_so(
    remote: str,
    train_index: ManifestIndex,
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    first, second = (tar.num_bytes for tar in train_index.shards)
    monkeypatch.setenv("REFSEG_CACHE_GIGABYTES", str((first + second - 1) / 1e9))
    index = ManifestIndex.open(remote, ["train"])
    both = (first + second) / 1e9
    assert f"train-00000.tar and 1 more remote shards hold {both:.3f} GB, but the cache" in caplog.text
    assert (
        f"in every epoch {second / 1e9:.3f} GB will be read over the network with one request per image." in caplog.text
    )
    assert "Give the cache a larger disk or limit (REFSEG_CACHE, REFSEG_CACHE_GIGABYTES)" in caplog.text

    assert index._files.cached == {0}  # not replaced by the second, whoever reads when
    for epoch in range(2):
        assert same(loader(index, epoch=epoch), loader(train_index, epoch=epoch))
        index.check_ahead(wait=True)
        assert cached(cache) == {index.shards[0].sha256}


def test_images_in_a_pool_come_from_where_it_lies(
    remote: str,
    dataset: Path,
    train_index: ManifestIndex,
    tmp_path: Path,
    bucket: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("REFSEG_ALLOW_HOSTS", bucket)  # of the second, which lies on this machine
    # The pool is beside the dataset in the bucket, or the dataset is on this machine and its pool at a URL.
    beside = write_overlay(tmp_path / "beside", dataset, pool_path="../toy")
    for path in beside.iterdir():
        fsspec.filesystem("s3").put_file(str(path), f"{bucket}/beside/{path.name}")
    here = write_overlay(tmp_path / "here", dataset, pool_path=remote)

    for folder in (f"{bucket}/beside", here):
        index = ManifestIndex.open(folder, ["train"])
        assert [tar.address for tar in index.shards] == [f"{remote}/train-0000{number}.tar" for number in (0, 1)]
        assert index.read_image_bytes(7) == train_index.read_image_bytes(7)


def test_faults_of_a_remote_folder_are_those_of_a_local_one(remote: str, bucket: str) -> None:
    files = fsspec.filesystem("s3")
    files.pipe_file(f"{remote}/copy.tar", b"")
    with pytest.raises(DatasetError, match=rf"{remote}/copy.tar: found a file that refseg.json does not name"):
        ManifestIndex.open(remote, ["train"])
    files.rm(f"{remote}/copy.tar")
    files.rm(f"{remote}/train-00001.tar")
    with pytest.raises(DatasetError, match=rf"{remote}/train-00001.tar: found no such file, expected \d+ bytes"):
        ManifestIndex.open(remote, ["train"])
    with pytest.raises(DatasetError, match=rf"{bucket}/none: no such folder; expected a dataset made by"):
        ManifestIndex.open(f"{bucket}/none", ["train"])


EIGHT_RANKS = """
import os, sys
from refseg.config import load_recipe
from refseg.data.index import ManifestIndex
from refseg.data.loader import RefLoader
from refseg.reading import Reading
children = {}
for rank in range(8):
    child = os.fork()
    if child:
        children[rank] = child
        continue
    index = ManifestIndex.open(sys.argv[1], ["train"])
    reading = Reading(geometry="stretch", input_size=(32, 32), global_batch=8, num_tokens=12, remainder="pad")
    loader = RefLoader(index, reading, rank=rank, world_size=8)
    rows = [int(batch.row_index[0]) for batch in loader if not batch.is_pad[0]]
    index.check_ahead(wait=True)
    os.write(1, (" ".join(map(str, rows)) + "\\n").encode())
    os._exit(0)
sys.exit(any(os.waitpid(child, 0)[1] for child in children.values()))
"""


def test_eight_ranks_of_one_machine_read_the_epoch_through_one_cache(
    remote: str, dataset: Path, train_index: ManifestIndex, cache: Path
) -> None:
    command = [python(), "-c", EIGHT_RANKS, remote]
    environ = os.environ | {"OMP_NUM_THREADS": "1"}
    printed = subprocess.run(command, env=environ, stdout=subprocess.PIPE, text=True, check=True).stdout

    assert sorted(map(int, printed.split())) == list(range(train_index.num_rows))
    assert cached(cache) == hashes(dataset)
    assert not list(cache.glob("*.part"))


def test_a_model_trains_from_object_storage_as_from_disk(
    faulty_s3: Any, bucket: str, toy_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards = toy_run.parent / "shards"
    for path in shards.iterdir():
        if path.is_file():
            fsspec.filesystem("s3").put_file(str(path), f"{bucket}/toy/{path.name}")
    monkeypatch.setattr("refseg.training.launch.cpu_threads", lambda environ, **numbers: 1)
    losses = []
    for place, faults in ((str(shards), []), (f"{bucket}/toy", ["cut", None, "503", None, "drop", "cut"])):
        settings = [
            f'data.root="{place}"', "data.input_size=64", "data.num_workers=1", "model.dim=32", "model.ffn_dim=64",
            "model.num_decoder_layers=1", "train.epochs=1", "train.global_batch=4", "train.log_every_steps=1",
            "train.max_steps=4", "train.val_every_epochs=1", "train.warmup_steps=0",
        ]  # fmt: skip
        faulty_s3.faults = iter(faults)
        out = tmp_path / f"run{len(losses)}"
        train(load_recipe("toy-quick", settings), out)
        losses.append([line["loss"] for line in read_metrics(out) if "loss" in line])

    assert next(faulty_s3.faults, "all met") == "all met"
    assert losses[1] == losses[0]
    assert len(losses[0]) == 4
