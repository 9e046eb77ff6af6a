"""Streaming of tars: the order is approximate, the content complete."""

import tarfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch
from torch.utils.data import DataLoader

from refseg import storage_requests
from refseg.data.index import ManifestIndex
from refseg.data.transforms import Geometry
from refseg.data.webdataset import StreamSample, stream, tar_urls
from refseg.errors import DatasetError, UsageError
from refseg.tokenizer import EOS_ID

from .conftest import Picture, Ref, grid_pictures, write_overlay

GEOMETRY = Geometry(kind="letterbox", size=(24, 28))


def urls(dataset: Path) -> list[str]:
    return [str(path) for path in sorted(dataset.glob("train-*.tar"))]


def known_ids(index: ManifestIndex) -> list[tuple[int, int]]:
    numbers = [index.sentence_start[row + 1] - index.sentence_start[row] for row in range(index.num_rows)]
    return [
        (int(index.ref_id[row]), index.ids(row, s).sent_id)
        for row in range(index.num_rows)
        for s in range(numbers[row])
    ]


def test_every_expression_comes_once_in_the_order_of_the_tars(dataset: Path, train_index: ManifestIndex) -> None:
    samples = list(stream(urls(dataset), geometry=GEOMETRY, num_tokens=12))

    assert [(sample.ref_id, sample.sent_id) for sample in samples] == known_ids(train_index)


def test_a_streamed_sample_equals_the_index(dataset: Path, train_index: ManifestIndex) -> None:
    # The eighth expression is of row 3, the first ref of image 2: sentences 1 + 2 + 3 before it, then its second.
    sample = list(stream(urls(dataset), geometry=GEOMETRY, num_tokens=6))[7]

    assert (sample.image_id, sample.ref_id, sample.sent_id) == (2, 200, 2001)
    assert torch.equal(sample.image, GEOMETRY.apply_image(train_index.decode_image(2)))
    assert sample.mask.tolist() == GEOMETRY.apply_mask(train_index.run_ends(3), train_index.size(3)).tolist()
    assert sample.token_ids[:5].tolist() == train_index.token_ids(3, 1)[:5].tolist()
    assert sample.token_ids[5] == EOS_ID
    assert sample.token_mask.all()


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("num_workers", [0, 1, 2, 3])
def test_workers_share_the_shards_and_torch_makes_batches(
    dataset: Path, train_index: ManifestIndex, num_workers: int
) -> None:
    samples = stream(urls(dataset), geometry=GEOMETRY, num_tokens=12, shuffle_images=4)

    batches: list[StreamSample] = list(DataLoader(samples, batch_size=8, num_workers=num_workers))

    found = [pair for batch in batches for pair in zip(batch.ref_id.tolist(), batch.sent_id.tolist(), strict=True)]
    assert sorted(found) == sorted(known_ids(train_index))
    assert batches[0].image.shape == (8, 3, 24, 28)


@pytest.mark.parametrize("num_shards", [3, 8])
def test_two_ranks_of_two_workers_get_every_expression_once(
    tmp_path: Path, write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, num_shards: int
) -> None:
    # With 3 shards one of the four workers has nothing to do.
    folder = write(tmp_path / "d", {f"train-{i:05}": grid_pictures(10 * i, 3) for i in range(num_shards)})
    index = ManifestIndex.open(folder, ["train"])
    monkeypatch.setenv("WORLD_SIZE", "2")
    found: list[list[tuple[int, int]]] = []
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        samples = stream(tar_urls(folder, ["train"]), geometry=GEOMETRY, num_tokens=12, shuffle_images=4)
        batches: list[StreamSample] = list(DataLoader(samples, batch_size=4, num_workers=2))
        found.append(
            [pair for batch in batches for pair in zip(batch.ref_id.tolist(), batch.sent_id.tolist(), strict=True)]
        )

    assert sorted(found[0] + found[1]) == sorted(known_ids(index))
    assert all(found)


@pytest.mark.slow
def test_tars_in_object_storage_are_streamed_through_failures(
    dataset: Path, bucket: str, faulty_s3: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage_requests, "_FIRST_PAUSE_SECONDS", 0.01)
    monkeypatch.setattr("refseg.data.webdataset._BLOCK_BYTES", 10_000)  # a shard is several requests
    for path in dataset.iterdir():
        fsspec.filesystem("s3").put_file(str(path), f"{bucket}/toy/{path.name}")
    remote = tar_urls(f"{bucket}/toy", ["train"])
    faulty_s3.faults = iter([None, "cut", "503", None, "drop"])

    found = [(s.ref_id, s.sent_id) for s in stream(remote, geometry=GEOMETRY, num_tokens=12)]
    assert found == [(s.ref_id, s.sent_id) for s in stream(urls(dataset), geometry=GEOMETRY, num_tokens=12)]
    with pytest.raises(DatasetError, match=f"{bucket}/toy/none.tar: found no such tar"):
        list(stream([f"{bucket}/toy/none.tar"], geometry=GEOMETRY, num_tokens=12))


def test_shuffling_changes_with_seed_and_epoch(dataset: Path) -> None:
    def order(**options: int) -> list[int]:
        options = {"shuffle_images": 6, **options}
        return [sample.sent_id for sample in stream(urls(dataset), geometry=GEOMETRY, num_tokens=12, **options)]

    assert order() == order()
    assert order() != order(epoch=1)
    assert order() != order(seed=1)
    assert sorted(order()) == sorted(order(shuffle_images=0))


@pytest.mark.parametrize("scheme", ["", "file://"])
@pytest.mark.parametrize(
    ("sample", "more", "message"),
    [
        (3, 0, "found no end-of-archive mark"),  # after three samples: nothing else tells
        (3, 512, "ends without|unexpected end of data"),
        (3, 600, "unexpected end of data"),
        (0, 0, "empty file"),
    ],
)
def test_a_tar_that_is_cut_short_is_named(
    dataset: Path, train_index: ManifestIndex, tmp_path: Path, scheme: str, sample: int, more: int, message: str
) -> None:
    tar = tmp_path / "cut.tar"
    tar.write_bytes((dataset / "train-00000.tar").read_bytes()[: int(train_index.image_offset[sample]) - 512 + more])
    with pytest.raises(DatasetError, match=rf"cut.tar: ({message}): the tar is truncated or damaged; copy the shard"):
        list(stream([f"{scheme}{tar}"], geometry=GEOMETRY, num_tokens=12))


def test_a_tar_of_someone_else_is_refused(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "other.tar", "w") as tar:
        header = tarfile.TarInfo("1.png")
        header.size = 3
        tar.addfile(header, BytesIO(b"PNG"))
    with pytest.raises(DatasetError, match=r"other.tar: sample 1: found no member 'json', expected jpg and json"):
        list(stream([str(tmp_path / "other.tar")], geometry=GEOMETRY, num_tokens=12))


def test_a_picture_that_cannot_be_decoded_is_named(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "bad.tar", "w") as tar:
        for name, data in (("1.jpg", b"no picture"), ("1.json", b'{"height": 8, "width": 8, "refs": []}')):
            header = tarfile.TarInfo(name)
            header.size = len(data)
            tar.addfile(header, BytesIO(data))
    with pytest.raises(DatasetError, match=r"bad.tar: sample 1: is not a JPEG; check the dataset with `refseg verify`"):
        list(stream([str(tmp_path / "bad.tar")], geometry=GEOMETRY, num_tokens=12))


def test_a_sentence_that_names_nothing_has_an_empty_target(tmp_path: Path, write: Callable[..., Path]) -> None:
    ref = Ref(1, (0, 0, 20, 20), ("left one", "the elephant"), names_nothing=(1,))
    folder = write(tmp_path / "d", {"train-00000": [Picture(7, (24, 28), (ref,))]})

    there, nowhere = stream(tar_urls(folder, ["train"]), geometry=GEOMETRY, num_tokens=12)

    assert (there.mask.sum(), nowhere.mask.sum()) == (400, 0)


def test_the_tars_of_splits_are_listed(dataset: Path) -> None:
    assert tar_urls(dataset, ["train"]) == urls(dataset)
    assert tar_urls(f"file://{dataset}", ["val"]) == [f"file://{dataset}/val-00000.tar"]
    with pytest.raises(UsageError, match="toy/refseg has no split 'testA'; expected some of train, val"):
        tar_urls(dataset, ["testA"])


def test_a_dataset_over_anothers_tars_is_not_streamed(dataset: Path, tmp_path: Path) -> None:
    folder = write_overlay(tmp_path / "over", dataset)
    message = (
        r"over: toy/refseg has images in the tars of toy/refseg \(../built\), .*; read it with ManifestIndex and RefL"
    )

    with pytest.raises(UsageError, match=message):
        tar_urls(folder, ["train"])
    with pytest.raises(UsageError, match=message):
        stream([str(folder / "train-00000.tar")], geometry=GEOMETRY, num_tokens=12)


def test_a_dataset_of_another_tokenizer_is_not_streamed(tmp_path: Path, write: Callable[..., Path]) -> None:
    folder = write(tmp_path / "d", {"train-00000": grid_pictures(0, 1)}, vocab_sha256="0" * 64)
    with pytest.raises(DatasetError, match="its token ids were made by tokenizer"):
        tar_urls(folder, ["train"])
    with pytest.raises(DatasetError, match="its token ids were made by tokenizer"):
        stream([str(folder / "train-00000.tar")], geometry=GEOMETRY, num_tokens=12)


def test_nothing_to_stream_is_refused() -> None:
    with pytest.raises(UsageError, match="found no tar to stream; expected at least one URL"):
        stream([], geometry=GEOMETRY, num_tokens=12)
