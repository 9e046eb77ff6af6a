"""The index of a dataset whose content is known."""

import hashlib
import os
import pickle
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from refseg import tokenizer
from refseg.data.index import ManifestIndex
from refseg.dataset.built import BuiltDataset
from refseg.dataset.descriptor import load_descriptor
from refseg.errors import DatasetError, UsageError

from .conftest import Picture, Ref, draw_jpeg, draw_mask, grid_pictures, write_overlay

Write = Callable[..., Path]
Edit = Callable[..., None]


def test_rows_sentences_and_images_are_counted(train_index: ManifestIndex, dataset: Path) -> None:
    # Images 0 to 10 have 1, 2, 3, 1, ... refs: 4 + 8 + 9 = 21.
    assert (train_index.num_images, train_index.num_rows, train_index.num_sentences) == (11, 21, 42)
    both = ManifestIndex.open(dataset, ["val", "train"])
    assert both.splits == ("train", "val")
    assert both.num_images == 15
    assert np.bincount(both.row_split).tolist() == [21, both.num_rows - 21]


def test_every_row_gives_back_what_was_written(dataset: Path) -> None:
    index = ManifestIndex.open(dataset, ["train", "val"])
    row = 0
    for image, picture in enumerate(grid_pictures(0, 11) + grid_pictures(50, 4)):
        assert index.image_id[image] == picture.image_id
        assert index.row_start[image] == row
        assert index.read_image_bytes(image) == draw_jpeg(picture.image_id, picture.size)
        for ref in picture.refs:
            assert index.row_image[row] == image
            assert index.size(row) == picture.size
            assert np.array_equal(index.target_mask(row), draw_mask(picture, ref))
            for s, sentence in enumerate(ref.sentences):
                split = "val" if picture.image_id >= 50 else "train"
                assert index.ids(row, s) == (split, ref.ref_id, picture.image_id, 10 * ref.ref_id + s)
                assert index.text(row, s) == sentence
                assert tuple(index.token_ids(row, s)) == tokenizer.encode(sentence)
            row += 1
    assert row == index.num_rows


def test_images_at_the_same_offset_of_two_shards_are_two(tmp_path: Path, write: Write) -> None:
    shards = {f"train-0000{i}": grid_pictures(i, 1) for i in range(3)}
    index = ManifestIndex.open(write(tmp_path / "d", shards), ["train"])

    assert index.image_id.tolist() == [0, 1, 2]
    assert index.row_start.tolist() == [0, 1, 3, 6]


def test_a_mask_may_begin_with_object_or_be_empty(tmp_path: Path, write: Write) -> None:
    refs = (Ref(1, (0, 0, 3, 4), ("all",)), Ref(2, (0, 0, 1, 1), ("corner",)), Ref(3, (0, 0, 0, 0), ("nothing",)))
    index = ManifestIndex.open(write(tmp_path / "d", {"train-00000": [Picture(7, (3, 4), refs)]}), ["train"])

    assert index.target_mask(0).tolist() == [[1] * 4] * 3
    assert index.target_mask(1).tolist() == [[1, 0, 0, 0], [0] * 4, [0] * 4]
    assert index.target_mask(2).sum() == 0
    assert index.no_target.tolist() == [False, False, True]


def test_a_sentence_that_names_nothing_has_an_empty_target(tmp_path: Path, write: Write) -> None:
    refs = (Ref(1, (0, 0, 1, 2), ("left one", "the elephant"), names_nothing=(1,)), Ref(2, (0, 0, 0, 0), ("nothing",)))
    index = ManifestIndex.open(write(tmp_path / "d", {"train-00000": [Picture(7, (3, 4), refs)]}), ["train"])

    assert index.sentence_exists.tolist() == [True, False, False]
    assert index.no_target.tolist() == [False, True]
    assert index.target_mask(0).sum() == index.target_mask(0, 0).sum() == 2
    assert index.target_mask(0, 1).tolist() == [[0] * 4] * 3
    assert index.target_mask(1, 0).tolist() == [[0] * 4] * 3


def test_decoding_equals_pillow(train_index: ManifestIndex) -> None:
    expected = np.array(Image.open(BytesIO(train_index.read_image_bytes(4))).convert("RGB"))

    assert np.array_equal(train_index.decode_image(4).permute(1, 2, 0).numpy(), expected)


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_greyscale_and_cmyk_pictures_become_rgb(mode: str, tmp_path: Path, write: Write) -> None:
    jpeg = draw_jpeg(3, (20, 30), mode)
    picture = Picture(3, (20, 30), (Ref(1, (0, 0, 2, 2), ("x",)),), jpeg)
    index = ManifestIndex.open(write(tmp_path / "d", {"train-00000": [picture]}), ["train"])

    image = index.decode_image(0)

    assert image.shape == (3, 20, 30)
    assert image.dtype == torch.uint8
    true = np.array(Image.open(BytesIO(jpeg)).convert("RGB")).astype(int)
    assert np.abs(image.permute(1, 2, 0).numpy() - true).max() <= 2


def test_an_index_works_after_pickling_and_in_a_child_process(dataset: Path) -> None:
    index = ManifestIndex.open(dataset, ["train"])
    expected = index.read_image_bytes(2)  # opens the tar in this process
    child = os.fork()
    if child == 0:
        os._exit(0 if index.read_image_bytes(2) == expected else 1)
    assert os.waitpid(child, 0)[1] == 0
    pickled = pickle.dumps(index)
    del index  # closes the tar
    assert pickle.loads(pickled).read_image_bytes(2) == expected


def _num_open() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def test_few_files_are_held_open(train_index: ManifestIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("refseg.dataset.shard_files._MAX_OPEN_SHARDS", 1)
    index = pickle.loads(pickle.dumps(train_index))
    before = _num_open()
    for _ in range(5):
        for image in range(index.num_images):
            index.read_image_bytes(image)
    assert _num_open() == before + 1


def test_the_digest_depends_on_content_and_splits_alone(tmp_path: Path, dataset: Path, write: Write) -> None:
    shards = {"train-00000": grid_pictures(0, 6), "train-00001": grid_pictures(6, 5), "val-00000": grid_pictures(50, 4)}
    elsewhere = write(tmp_path / "elsewhere", shards)
    digest = ManifestIndex.open(dataset, ["train", "val"]).digest

    assert ManifestIndex.open(elsewhere, ["val", "train"]).digest == digest
    assert ManifestIndex.open(elsewhere, ["train"]).digest != digest


@pytest.fixture
def copy(tmp_path: Path, write: Write) -> Path:
    """A dataset that a test may damage."""
    return write(tmp_path / "copy", {"train-00000": grid_pictures(0, 3)})


# 0: the JPEG's name, 150: its header's checksum, 560: the picture, -300: the JSON or its padding.
@pytest.mark.parametrize("place", [0, 150, 560, -300])
def test_a_flipped_bit_anywhere_in_a_sample_is_noticed(copy: Path, place: int) -> None:
    index = ManifestIndex.open(copy, ["train"])
    tar = copy / "train-00000.tar"
    data = bytearray(tar.read_bytes())
    start = index.image_offset[1] - 512
    data[start + place % index.sample_bytes[1]] ^= 1
    tar.write_bytes(data)

    index.read_image_bytes(0)
    index.read_image_bytes(2)
    message = r"00000.tar: image 1 \(COCO_\w+.jpg\): found a sample with XXH3 \w{16}, expected \w{16}: .*copy"
    with pytest.raises(DatasetError, match=message):
        index.read_image_bytes(1)


def test_a_tar_cut_while_in_use_is_noticed(copy: Path) -> None:
    index = ManifestIndex.open(copy, ["train"])
    os.truncate(copy / "train-00000.tar", int(index.image_offset[2]) + 10)

    with pytest.raises(DatasetError, match=r"image 2 .*: found 522 bytes at offset \d+, expected \d+: the shard"):
        index.decode_image(2)


def test_a_tar_that_vanished_is_named(copy: Path) -> None:
    index = ManifestIndex.open(copy, ["train"])
    (copy / "train-00000.tar").unlink()

    with pytest.raises(DatasetError, match=r"train-00000.tar: cannot be opened \(No such file"):
        index.read_image_bytes(0)


def test_a_picture_that_is_no_jpeg_is_named(tmp_path: Path, write: Write) -> None:
    picture = Picture(5, (8, 8), (Ref(1, (0, 0, 2, 2), ("x",)),), b"GIF89a not a picture")
    index = ManifestIndex.open(write(tmp_path / "d", {"train-00000": [picture]}), ["train"])

    with pytest.raises(DatasetError, match=r"image 5 \(.*\): is not a JPEG; `refseg verify`"):
        index.decode_image(0)


def test_files_of_another_size_are_refused(copy: Path) -> None:
    os.truncate(copy / "train-00000.tar", 1000)
    with pytest.raises(DatasetError, match=r"train-00000.tar: found 1000 bytes, expected \d+ bytes; the dataset"):
        ManifestIndex.open(copy, ["train"])


def test_a_missing_file_is_refused(copy: Path) -> None:
    (copy / "train-00000.parquet").unlink()
    with pytest.raises(DatasetError, match=r"train-00000.parquet: found no such file, expected \d+ bytes"):
        ManifestIndex.open(copy, ["train"])


@pytest.mark.parametrize("name", ["train-00001.tar", "train-00000 (1).parquet"])
def test_a_file_that_the_descriptor_does_not_name_is_refused(copy: Path, name: str) -> None:
    shutil.copy(copy / f"train-00000{Path(name).suffix}", copy / name)
    message = rf"{re.escape(name)}: found a file that refseg.json does not name, expected only .*; remove it"
    with pytest.raises(DatasetError, match=message):
        ManifestIndex.open(copy, ["train"])


def test_rejects_lie_beside_the_shards(copy: Path) -> None:
    (copy / "rejects.parquet").touch()
    assert ManifestIndex.open(copy, ["train"]).num_images == 3


@pytest.fixture
def pool(tmp_path: Path, write: Write) -> Path:
    """A built dataset whose tars others may use: two shards of train, one of val."""
    shards = {"train-00000": grid_pictures(0, 3), "train-00001": grid_pictures(3, 2), "val-00000": grid_pictures(50, 2)}
    return write(tmp_path / "built", shards)


@pytest.mark.parametrize("absolute", [False, True])
def test_an_overlay_reads_the_images_of_its_pool(pool: Path, tmp_path: Path, absolute: bool) -> None:
    write_overlay(tmp_path / "over", pool, pool_path=str(pool) if absolute else "../built")
    (tmp_path / "elsewhere").mkdir()
    folder = tmp_path / "elsewhere" / "link"
    folder.symlink_to(tmp_path / "over")
    built, index = (ManifestIndex.open(path, ["train", "val"]) for path in (pool, folder))

    assert index.datasets == ("toy/refseg",)
    assert index.image_id.tolist() == built.image_id.tolist()
    for image in range(index.num_images):
        assert index.read_image_bytes(image) == built.read_image_bytes(image)


def test_a_pool_that_changed_or_moved_is_refused(pool: Path, tmp_path: Path) -> None:
    folder = write_overlay(tmp_path / "over", pool)
    os.truncate(pool / "val-00000.tar", 1000)

    assert ManifestIndex.open(folder, ["train"]).num_images == 5  # does not need the tar of val
    message = r"built/val-00000.tar: found 1000 bytes, expected \d+ bytes; restore toy/refseg with digest"
    with pytest.raises(DatasetError, match=message):
        ManifestIndex.open(folder, ["val"])
    pool.rename(tmp_path / "moved")
    with pytest.raises(DatasetError, match=r"built/train-00000.tar: found no such file, expected"):
        ManifestIndex.open(folder, ["train"])


def test_a_shard_without_a_tar_needs_none(pool: Path, tmp_path: Path) -> None:
    folder = write_overlay(tmp_path / "over", pool)
    assert list(folder.glob("*.tar")) == []
    assert [tar.address for tar in ManifestIndex.open(folder, ["val"]).shards] == [f"{pool}/val-00000.tar"]


def test_rows_of_a_tar_that_no_pool_has_are_refused(pool: Path, tmp_path: Path, edit_descriptor: Edit) -> None:
    folder = write_overlay(tmp_path / "over", pool)
    edit_descriptor(folder, lambda content: content["image_pools"][0].update(name="other"))
    with pytest.raises(
        DatasetError, match=r"safetensors: found shard .toy/train-00000.tar., expected other/train-00000.tar or other"
    ):
        ManifestIndex.open(folder, ["train"])


def test_each_row_of_a_mix_knows_its_dataset(pool: Path, tmp_path: Path) -> None:
    members = ("refcoco/unc", "refcocog/umd")
    index = ManifestIndex.open(write_overlay(tmp_path / "mix", pool, mix=members), ["train"])

    assert index.datasets == members
    # Shards of 3 and 2 images with 1 + 2 + 3 and 1 + 2 refs, one member each.
    assert index.row_dataset.tolist() == [0] * 6 + [1] * 3
    assert index.row_dataset.dtype == np.int16


def test_rows_of_another_dataset_are_refused(pool: Path, tmp_path: Path) -> None:
    folder = write_overlay(tmp_path / "mix", pool, mix=("refcoco/unc", "refcocog/umd"))
    descriptor = load_descriptor(folder)
    other = replace(descriptor, mix=(descriptor.mix[0], replace(descriptor.mix[1], dataset="refclef/unc")))
    (folder / "refseg.json").write_text(other.to_json())

    with pytest.raises(DatasetError, match="found dataset refcocog/umd, expected refcoco/unc, refclef/unc; "):
        BuiltDataset.open(folder, ["train"]).read(["ref_id"])


def test_a_changed_manifest_is_refused(copy: Path) -> None:
    path = copy / "train-00000.parquet"
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    path.write_bytes(data)
    with pytest.raises(
        DatasetError, match=r"train-00000.parquet: found sha256 \w{64}, expected \w{64}; the dataset was"
    ):
        ManifestIndex.open(copy, ["train"])


def test_another_tokenizer_is_refused(tmp_path: Path, write: Write) -> None:
    folder = write(tmp_path / "d", {"train-00000": grid_pictures(0, 1)}, vocab_sha256="f" * 64)
    with pytest.raises(
        DatasetError, match=r"token ids were made by tokenizer .*ffff.*, expected .*924691ac.*build the"
    ):
        ManifestIndex.open(folder, ["train"])


def test_an_unfinished_dataset_is_refused(copy: Path) -> None:
    (copy / "refseg.json").unlink()
    with pytest.raises(DatasetError, match=r"found no refseg.json, so the dataset is unfinished"):
        ManifestIndex.open(copy, ["train"])


def test_a_hash_that_is_none_is_refused(copy: Path, edit_descriptor: Edit) -> None:
    path = copy / "train-00000.parquet"
    table = pq.read_table(path)
    table = table.set_column(
        table.schema.get_field_index("sample_xxh3"), "sample_xxh3", pa.array(["?"] * table.num_rows)
    )
    pq.write_table(table, path)
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    found = {"parquet_bytes": path.stat().st_size, "parquet_sha256": sha256}
    edit_descriptor(copy, lambda content: content["shards"][0].update(found))

    with pytest.raises(DatasetError, match=r"ref 0: found sample_xxh3 '.', expected 16 hexadecimal digits"):
        BuiltDataset.open(copy).read(["ref_id"])


def test_an_unknown_split_lists_the_splits_there_are(dataset: Path) -> None:
    with pytest.raises(UsageError, match="toy/refseg has no split 'testA'; expected some of train, val"):
        ManifestIndex.open(dataset, ["train", "testA"])
    with pytest.raises(UsageError, match="no split was given; expected some of train, val"):
        ManifestIndex.open(dataset, [])
