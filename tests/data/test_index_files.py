"""Index files: equal rows give equal bytes, and each machine compares and checks an index once before it is used."""

import hashlib
import os
import pickle
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file

from pipelines.build import build_dataset
from pipelines.options import BuildOptions
from pipelines.sources.refer import load_plain_pickle
from pipelines.toy import draw_toy
from pipelines.verify import verify_dataset
from pipelines.verify.index import check_index
from refseg.data.index import ManifestIndex
from refseg.dataset import split_index
from refseg.dataset.descriptor import DESCRIPTOR_NAME, load_descriptor
from refseg.dataset.index_checks import find_index_faults
from refseg.dataset.index_file import ARRAYS, map_arrays, write_indexes
from refseg.dataset.packed_runs import pack_runs, unpack_ends
from refseg.errors import DatasetError
from refseg.storage import open_folder

from .conftest import Picture, Ref, grid_pictures, write_overlay

Write = Callable[..., Path]
TRAIN = "train.index.safetensors"


@pytest.fixture
def copy(tmp_path: Path, write: Write) -> Path:
    """A dataset that a test may damage: train has 11 images and 21 refs in two shards; it also has a val split."""
    shards = {"train-00000": grid_pictures(0, 6), "train-00001": grid_pictures(6, 5), "val-00000": grid_pictures(50, 2)}
    return write(tmp_path / "copy", shards)


@pytest.fixture
def compared(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Record the names of the manifests whose hashes are compared."""
    names: list[str] = []

    hash_manifest = split_index._hash_manifest

    def count(place: Any, name: str) -> int | None:
        names.append(name)
        return hash_manifest(place, name)

    monkeypatch.setattr(split_index, "_hash_manifest", count)
    return names


def alter(folder: Path, change: Callable[[dict[str, np.ndarray]], object], *, masks: bool = True) -> None:
    """Change arrays of train's index, and correct the hashes that cover it."""
    path = folder / TRAIN
    data = path.read_bytes()
    arrays = {name: array.copy() for name, array in map_arrays(data).items()}
    change(arrays)
    if masks:
        parts = [arrays["mask_bytes"][a:b].tobytes() for a, b in pairwise(arrays["mask_start"].tolist())]
        arrays["mask_xxh3"][:] = [xxhash.xxh3_64_intdigest(part) for part in parts]
    header = data[: 8 + int.from_bytes(data[:8], "little")]
    body = b"".join(array.tobytes() for array in arrays.values())
    path.write_bytes(header + body)
    descriptor = load_descriptor(folder)
    entry = replace(
        descriptor.indexes[0],
        sha256=hashlib.sha256(header + body).hexdigest(),
        arrays_xxh3=xxhash.xxh3_64_hexdigest(header + body[: len(body) - len(arrays["mask_bytes"])]),
    )
    changed = replace(descriptor, indexes=(entry, *descriptor.indexes[1:]))
    (folder / DESCRIPTOR_NAME).write_text(changed.to_json())


def flip(path: Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 4
    path.write_bytes(data)


def masks(index: ManifestIndex) -> list[list[int]]:
    return [index.counts(row).tolist() for row in range(index.num_rows)]


def test_the_file_is_a_safetensors_file(copy: Path) -> None:
    ours, theirs = map_arrays((copy / TRAIN).read_bytes()), load_file(copy / TRAIN)

    assert list(ours) == list(ARRAYS)
    assert set(ours) == set(theirs)
    for name, values in ours.items():
        assert (values.dtype, values.tolist()) == (theirs[name].dtype, theirs[name].tolist()), name


def test_equal_manifests_give_equal_bytes(copy: Path, tmp_path: Path) -> None:
    before = {path.name: path.read_bytes() for path in copy.glob("*.safetensors")}
    assert set(before) == {TRAIN, "val.index.safetensors"}

    entries = write_indexes(open_folder(copy), replace(load_descriptor(copy), indexes=()), tmp_path)

    assert entries == load_descriptor(copy).indexes
    assert {path.name: path.read_bytes() for path in copy.glob("*.safetensors")} == before


def test_splits_are_joined_as_they_are_alone(copy: Path, tmp_path: Path) -> None:
    mix = write_overlay(tmp_path / "mix", copy, pool_path=str(copy), mix=("refcoco/unc", "refcocog/umd"))
    for folder in (copy, mix):
        both = ManifestIndex.open(folder, ["val", "train"])
        train, val = ManifestIndex.open(folder, ["train"]), ManifestIndex.open(folder, ["val"])
        assert masks(both) == masks(train) + masks(val)
        assert both.row_split.tolist() == [0] * train.num_rows + [1] * val.num_rows
        assert both.row_image.tolist() == [*train.row_image, *(val.row_image + train.num_images)]
        assert both.token_start.tolist() == [*train.token_start, *(val.token_start[1:] + len(train.tokens))]
        assert both.sent.to_pylist() == train.sent.to_pylist() + val.sent.to_pylist()
        assert [both.shards[n].address for n in both.image_shard] == [
            index.shards[n].address for index in (train, val) for n in index.image_shard
        ]


def test_each_ref_keeps_its_rank_in_the_source(tmp_path: Path) -> None:
    source = tmp_path / "source"
    draw_toy(source, num_images=10, seed=0, image_size=(96, 96))
    build_dataset(BuildOptions(dataset="toy/refseg", annotations=source, out=tmp_path / "out", workers=1))
    refs = load_plain_pickle(next(source.rglob("refs*.p")).read_bytes(), source)

    assert verify_dataset(tmp_path / "out", workers=1) == []
    index = ManifestIndex.open(tmp_path / "out", load_descriptor(tmp_path / "out").splits)

    assert sorted(index.source_rank.tolist()) == list(range(len(refs)))
    assert [refs[rank]["ref_id"] for rank in index.source_rank] == index.ref_id.tolist()


def test_a_machine_compares_a_dataset_once(copy: Path, tmp_path: Path, compared: list[str]) -> None:
    for _ in range(2):
        ManifestIndex.open(copy, ["train"])
        assert sorted(compared) == ["train-00000.parquet", "train-00001.parquet"]
    os.utime(copy / "train-00000.parquet", (1, 1))
    shutil.copytree(copy, tmp_path / "elsewhere")
    for folder in (copy, tmp_path / "elsewhere"):
        compared.clear()
        for _ in range(2):
            assert ManifestIndex.open(folder, ["train"]).num_images == 11
        assert sorted(compared) == ["train-00000.parquet", "train-00001.parquet"]


def test_without_a_cache_a_dataset_is_compared_at_each_opening(
    copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compared: list[str]
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("REFSEG_CACHE", str(tmp_path / "file"))
    for _ in range(2):
        assert ManifestIndex.open(copy, ["val"]).num_images == 2
    assert compared == ["val-00000.parquet"] * 2


def test_a_manifest_that_changed_since_is_refused(copy: Path) -> None:
    ManifestIndex.open(copy, ["train"])
    flip(copy / "train-00001.parquet", 100)
    for _ in range(2):
        with pytest.raises(DatasetError, match=r"train-00001.parquet: found sha256 \w{64}, expected \w{64}; the"):
            ManifestIndex.open(copy, ["train"])


def test_a_changed_bit_of_any_array_is_noticed(copy: Path) -> None:
    data = (copy / TRAIN).read_bytes()
    offset = 8 + int.from_bytes(data[:8], "little")
    for name, array in map_arrays(data).items():
        (copy / TRAIN).write_bytes(data)
        flip(copy / TRAIN, offset + array.nbytes // 2)
        offset += array.nbytes
        if name == "mask_bytes":  # masks are compared when they are read
            index = ManifestIndex.open(copy, ["train"])
            with pytest.raises(DatasetError, match=rf"{TRAIN}: ref \d+: found another mask, expected the one that was"):
                masks(index)
        else:
            with pytest.raises(DatasetError, match=rf"{TRAIN}: found .*; the dataset was changed after it was built"):
                ManifestIndex.open(copy, ["train"])
        assert [fault.file for fault in check_index((str(copy), "train"))] == [TRAIN], name


def test_whole_masks_are_read_beside_a_damaged_one(copy: Path) -> None:
    whole = masks(ManifestIndex.open(copy, ["train"]))
    flip(copy / TRAIN, (copy / TRAIN).stat().st_size - 1)  # the last byte of the last of 21 masks
    index = ManifestIndex.open(copy, ["train"])
    assert [index.counts(row).tolist() for row in range(20)] == whole[:20]
    with pytest.raises(DatasetError, match=r"ref \d+: found another mask, expected the one that was built"):
        index.counts(20)


def test_an_index_that_was_made_of_other_manifests_is_refused(copy: Path) -> None:
    alter(copy, put("manifest_xxh3", 1, 7))
    with pytest.raises(DatasetError, match=rf"{TRAIN}: found another manifest_xxh3 of train-00001.parquet, expected"):
        ManifestIndex.open(copy, ["train"])
    assert [fault.found for fault in check_index((str(copy), "train"))] == ["another manifest_xxh3"]


def test_an_index_that_is_missing_or_anothers_is_refused(copy: Path, tmp_path: Path, write: Write) -> None:
    other = write(tmp_path / "other", {"train-00000": grid_pictures(0, 11)})
    shutil.copy(other / TRAIN, copy / TRAIN)
    with pytest.raises(DatasetError, match=rf"{TRAIN}: found \d+ bytes, expected \d+ bytes; the dataset was changed"):
        ManifestIndex.open(copy, ["train"])
    assert TRAIN in {fault.file for fault in verify_dataset(copy, fast=True)}
    (copy / TRAIN).unlink()
    with pytest.raises(DatasetError, match=rf"{TRAIN}: found no such file, expected \d+ bytes; the dataset was"):
        ManifestIndex.open(copy, ["train"])
    assert ManifestIndex.open(copy, ["val"]).num_images == 2  # val does not need the damaged file


def test_a_dataset_without_an_index_is_built_again(copy: Path) -> None:
    descriptor = load_descriptor(copy)
    (copy / DESCRIPTOR_NAME).write_text(replace(descriptor, indexes=()).to_json())
    with pytest.raises(DatasetError, match=r"copy: has no index of split train, .*; build the dataset again"):
        ManifestIndex.open(copy, ["train"])
    assert "found no index of split train" in str(check_index((str(copy), "train"))[0])


def put(name: str, position: int, value: int) -> Callable[[dict[str, np.ndarray]], None]:
    def change(arrays: dict[str, np.ndarray]) -> None:
        arrays[name][position] = value

    return change


def wrap(name: str) -> Callable[[dict[str, np.ndarray]], None]:
    """Positions that grow by 2^62 and overflow 64 bits, so that they are 0 again after four steps."""

    def change(arrays: dict[str, np.ndarray]) -> None:
        arrays[name][1:4] = [2**62, -(2**63), -(2**62)]
        arrays[name][4] = 0

    return change


@pytest.mark.parametrize(("change", "message"), [
    (put("row_start", 1, 10**15), "row_start that is not in order, expected positions from 0 to 21 in ref_id"),
    (put("row_start", 0, -1), "row_start that is not in order"),
    (wrap("sentence_start"), "sentence_start that is not in order, expected positions from 0 to"),
    (put("row_image", 3, 10), "another row_image"),
    (put("sentence_start", 1, 0), "sentence_start that is not in order"),
    (put("token_start", 2, 2**62), "token_start that is not in order"),
    (put("sent_start", 2, -5), "sent_start that is not in order"),
    (put("category_start", -1, 2**40), "category_start that is not in order"),
    (put("file_name_start", 1, 2**40), "file_name_start that is not in order"),
    (put("mask_start", 4, 2**40), "mask_start that is not in order"),
    (put("manifest_start", 1, 500), "other numbers of rows in manifests"),
    (put("height", 2, 0), r"size 0 x \d+ \(height x width\), expected 1 to 65,500 pixels a side"),
    (put("width", 2, 65_501), r"size \d+ x 65501"),
    (put("image_shard", 0, 2), "tar number 2, expected one of its tars"),
    (put("image_shard", 0, -1), "tar number -1"),
    (put("tar_bytes", 0, ord("x")), "shard 'xrain-00000.tar', expected train-00000.tar or train-00001.tar"),
    (put("tar_bytes", 0, 255), "names of tars that are not UTF-8"),
    (put("image_offset", 1, 2**62), "an image of .* expected a sample of header, image, header and JSON"),
    (put("image_bytes", 1, -3), "an image of -3 bytes"),
    (put("sample_bytes", 1, 2**45), "an image of .* in a sample of 35184372088832 bytes"),
    (put("row_dataset", 0, 1), "ref 0 with an unknown dataset"),
    (put("row_dataset", 0, -1), "ref 0 with an unknown dataset"),
    (put("num_runs", 0, 2**30), "ref 0 with another number of run lengths"),
    (put("num_runs", 0, 0), "ref 0 with another number of run lengths"),
    (put("num_runs", 0, 1), "ref 0 with no_target that its mask contradicts"),
    (put("tokens", 0, 3), "sentence 0 with token_ids that are not those of a sentence"),
    (put("tokens", 1, 60_000), "sentence 0 with token_ids that are not those of a sentence"),
    (put("sent_bytes", 0, 255), "sent that is not UTF-8, expected text"),
    (put("ref_id", 1, 0), "ref_id 0 more than once, expected each once"),
    (put("sent_id", 1, 0), "sent_id 0 more than once, expected each once in a split"),
])  # fmt: skip
def test_arrays_that_no_reader_can_use_are_refused(
    change: Callable[[dict[str, np.ndarray]], None], message: str, copy: Path
) -> None:
    alter(copy, change, masks=False)
    with pytest.raises(DatasetError, match=rf"{TRAIN}: found {message}"):
        ManifestIndex.open(copy, ["train"])
    assert [fault.file for fault in check_index((str(copy), "train"))] == [TRAIN]


@pytest.mark.parametrize("name", ["sent_id", "ref_id", "width", "token_start", "row_start", "mask_xxh3", "tar_start"])
def test_arrays_that_are_too_short_are_refused(name: str, tmp_path: Path, write: Write) -> None:
    # This split has as many images as rows, and as many rows as sentences.
    refs = [Picture(i, (24, 32), (Ref(i, (0, 0, 2, 2), ("it",)),)) for i in range(3)]
    folder = write(tmp_path / "d", {"train-00000": refs})
    arrays, descriptor = map_arrays((folder / TRAIN).read_bytes()), load_descriptor(folder)
    assert list(find_index_faults(arrays, descriptor, descriptor.shards)) == []

    fault = next(find_index_faults({**arrays, name: arrays[name][:-1]}, descriptor, descriptor.shards))

    assert name in fault.found


@pytest.mark.parametrize("content", [b"", b"\x00" * 8, b"\xff" * 100, b"\x02" + b"\x00" * 7 + b"{}", b"PAR1" * 10])
def test_a_file_that_is_no_index_is_refused(content: bytes) -> None:
    with pytest.raises(DatasetError, match="found a file that is not an index"):
        map_arrays(content)


def test_a_header_that_says_other_positions_is_refused(copy: Path) -> None:
    data = (copy / TRAIN).read_bytes()
    with pytest.raises(DatasetError, match="found arrays of another order or kind than an index has"):
        map_arrays(data.replace(b'"data_offsets":[0,', b'"data_offsets":[8,', 1))
    with pytest.raises(DatasetError, match="found arrays of another order or kind than an index has"):
        map_arrays(data[:-1])


def test_masks_that_are_not_those_of_the_image_are_refused(copy: Path) -> None:
    def swap(arrays: dict[str, np.ndarray]) -> None:  # replaces the first mask's bytes
        arrays["mask_bytes"][: arrays["mask_start"][1]] = 255

    alter(copy, swap)
    index = ManifestIndex.open(copy, ["train"])
    with pytest.raises(DatasetError, match=f"{TRAIN}: ref 0: found run lengths that cannot be unpacked, expected a"):
        index.counts(0)
    assert [str(fault).partition(";")[0] for fault in check_index((str(copy), "train"))] == [
        f"{TRAIN}: found another mask of ref 0, expected that of the rows of train-00000.parquet"
    ]


def test_a_mask_of_another_size_is_refused(copy: Path) -> None:
    def shrink(arrays: dict[str, np.ndarray]) -> None:
        arrays["height"][0] -= 1

    alter(copy, shrink)
    with pytest.raises(DatasetError, match="ref 0: found a mask of another size, expected run lengths of the image's"):
        ManifestIndex.open(copy, ["train"]).counts(0)


def test_verify_names_the_manifest_from_which_an_index_differs(copy: Path) -> None:
    alter(copy, put("source_rank", 15, 7))
    (fault,) = check_index((str(copy), "train"))
    assert str(fault).startswith(
        f"{TRAIN}: found another source_rank, expected that of the rows of train-00001.parquet; copy the file again"
    )


def test_pickled_it_is_the_paths_of_its_files(copy: Path) -> None:
    index = ManifestIndex.open(copy, ["train", "val"])
    pickled = pickle.dumps(index)

    received = pickle.loads(pickled)

    assert len(pickled) < 6000  # the descriptor and the names of three tars, but no array
    assert masks(received) == masks(index)
    assert received.sent.to_pylist() == index.sent.to_pylist()
    assert received.read_image_bytes(3) == index.read_image_bytes(3)


def test_a_file_removed_or_replaced_while_in_use_is_named(copy: Path) -> None:
    pickled = pickle.dumps(ManifestIndex.open(copy, ["train"]))
    shutil.copy(copy / TRAIN, copy / "other")
    (copy / "other").rename(copy / TRAIN)
    with pytest.raises(DatasetError, match="the index was replaced while in use; start the run again"):
        pickle.loads(pickled)
    (copy / TRAIN).unlink()
    with pytest.raises(DatasetError, match=r"the index was removed while in use \(.*\); start the run again"):
        pickle.loads(pickled)


@given(st.lists(st.integers(0, 2**28), min_size=1, max_size=50))
def test_packed_runs_are_those_that_were_packed(counts: list[int]) -> None:
    runs = np.array(counts, np.uint32)
    unpacked = unpack_ends(pack_runs(runs), len(runs))
    assert (unpacked.dtype, unpacked.tolist()) == (np.int64, list(accumulate(counts)))


@given(st.binary(max_size=60), st.integers(1, 100))
def test_any_bytes_are_run_lengths_or_refused(data: bytes, num_runs: int) -> None:
    with suppress(DatasetError):
        ends = unpack_ends(data, num_runs)
        assert len(ends) == num_runs
        assert (np.diff(ends) >= 0).all()


def test_fewer_or_many_more_runs_than_were_packed_are_refused() -> None:
    packed = pack_runs(np.arange(10, dtype=np.uint32))
    for num_runs in (8, 2**28):
        with pytest.raises(DatasetError, match="found run lengths that cannot be unpacked"):
            unpack_ends(packed, num_runs)
