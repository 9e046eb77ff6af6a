"""Verify finds contradictions within datasets; `test_faults.py` has datasets that were damaged after the build."""

import hashlib
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipelines.build import build_dataset
from pipelines.mix import MixOptions, mix_datasets
from pipelines.options import BuildOptions
from pipelines.stats import stats_dataset
from pipelines.verify import verify_dataset
from refseg.data.index import ManifestIndex
from refseg.dataset.descriptor import ImagePool, MixMember, PoolTar, ShardEntry, SplitCounts, load_descriptor
from refseg.dataset.index_file import write_indexes
from refseg.dataset.manifest_writer import ManifestRow, write_manifest
from refseg.errors import UsageError
from refseg.storage import open_folder

from .conftest import TinyRefer, read_manifest

REMEDY = "restore the file as it was built, or build the dataset again"


@pytest.fixture
def built(tiny: Any, tmp_path: Path) -> Path:
    """Shards val-00000 (one image), val-00001 and testA-00000 (two each)."""
    build_dataset(tiny.options(tmp_path / "built"))
    return tmp_path / "built"


def _change(field: str, value: Any) -> Callable[[ManifestRow], ManifestRow]:
    return lambda row: replace(row, record=replace(row.record, **{field: value}))


def _shift_mask(row: ManifestRow) -> ManifestRow:
    counts = row.record.mask.counts
    return replace(
        row,
        record=replace(
            row.record, mask=replace(row.record.mask, counts=(counts[0] + 1, *counts[1:-1], counts[-1] - 1))
        ),
    )


def _move(**location: Any) -> Callable[[ManifestRow], ManifestRow]:
    return lambda row: replace(row, location=replace(row.location, **location))


def _change_raw(row: ManifestRow) -> ManifestRow:
    (sentence,) = row.record.sentences
    return replace(row, record=replace(row.record, sentences=(replace(sentence, raw="of yore"),)))


def _change_sent_id(row: ManifestRow) -> ManifestRow:
    (sentence,) = row.record.sentences
    return replace(row, record=replace(row.record, sentences=(replace(sentence, sent_id=80),)))


def _change_token(row: ManifestRow) -> ManifestRow:
    (sentence,) = row.record.sentences
    return replace(row, record=replace(row.record, sentences=(replace(sentence, token_ids=(49406, 5, 49407)),)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_change("split", "train"), "found split train, expected val"),
        (_change("dataset", "refcocog"), "found dataset refcocog/unc, expected refcoco/unc"),
        (_change("area", 17), "found area 17, expected 16 pixels as in the mask"),
        (
            _change("width", 21),
            r"found a mask of 200 pixels, size \(10, 20\) in \d+ runs, expected run lengths of the image",
        ),
        (_change("ref_id", 110), "found the same ref_id as in"),
        (_shift_mask, "found a mask that differs from its annotations, expected their union"),
        (_change_sent_id, r"sentence 80: found the same sent_id as another sentence in val-0000\d"),
        (_change_token, "found other token_ids in sentence 70, expected those of clip-bpe"),
        (_move(shard="x.tar"), r"found shard 'x\.tar', expected val-0000\d\.tar;"),
        (
            _move(image_offset=0),
            r"found an image of \d+ bytes at 0 in a sample of \d+ bytes, expected a sample",
        ),
        (_move(image_xxh3="0" * 16), r"0{11}7: found other image bytes, expected xxh3 0{16} as in the manifest"),
        (_move(sample_xxh3="0" * 16), r"found a sample of \d+ bytes with xxh3 \w{16}, expected \d+ bytes with 0{16}"),
        (_move(sample_xxh3="?"), r"ref 70: found sample_xxh3 '\?', expected 16 hexadecimal digits"),
        (
            _change_raw,
            r"0{11}7: found a \.json that differs from the manifest in sentences of ref 70, expected the sam",
        ),
    ],
)
def test_rows_that_contradict_themselves_are_named_even_if_every_hash_agrees(
    built: Path, change: Callable[[ManifestRow], ManifestRow], message: str
) -> None:
    """Write changed rows and adapt the descriptor, as if a fault of the build had written them."""
    descriptor = load_descriptor(built)
    name = next(
        entry.name
        for entry in descriptor.shards
        if any(row.record.ref_id == 70 for row in read_manifest(built / f"{entry.name}.parquet"))
    )
    path = built / f"{name}.parquet"
    rows = [change(row) if row.record.ref_id == 70 else row for row in read_manifest(path)]
    rows_sha256 = write_manifest(path, rows)

    def fit(entry: ShardEntry) -> ShardEntry:
        if entry.name != name:
            return entry
        data = path.read_bytes()
        sha256 = hashlib.sha256(data).hexdigest()
        return replace(entry, parquet_bytes=len(data), parquet_sha256=sha256, rows_sha256=rows_sha256)

    fitted = replace(descriptor, shards=tuple(map(fit, descriptor.shards)))
    (built / "refseg.json").write_text(fitted.to_json())

    faults = [str(fault) for fault in verify_dataset(built)]

    assert not any("sha256" in fault for fault in faults)
    assert re.search(message, "\n".join(faults)), faults


def test_a_descriptor_that_lies_is_named(built: Path) -> None:
    plan_keys = {**load_descriptor(built).plan_keys, "seed": "1"}
    rewrite(built, tokenizer={"name": "bert", "vocab_sha256": "0"}, plan_keys=plan_keys)

    faults = "\n".join(map(str, verify_dataset(built, fast=True)))

    assert "refseg.json: found tokenizer {'name': 'bert'" in faults
    assert "expected the hash of its plan keys" in faults


def test_lost_rejects_are_named(tiny: Any, tmp_path: Path) -> None:
    tiny.refs[0]["ann_id"] = 4471
    out = tmp_path / "out"
    build_dataset(tiny.options(out, on_bad_sample="skip"))
    assert verify_dataset(out) == []

    (out / "rejects.parquet").write_bytes(b"PAR1")
    assert "rejects.parquet: found sha256" in str(verify_dataset(out)[0])
    (out / "rejects.parquet").unlink()
    assert "rejects.parquet: found no such file, expected 1 reject" in str(verify_dataset(out)[0])


def test_many_faults_of_a_shard_are_summed_up(tiny: Any, tmp_path: Path) -> None:
    for image_id in range(100, 130):
        tiny.add_image(image_id, ("train",))
    out = tmp_path / "out"
    build_dataset(tiny.options(out, images_per_shard=50))
    rows = read_manifest(out / "train-00000.parquet")
    write_manifest(out / "train-00000.parquet", [_change("area", 17)(row) for row in rows])

    faults = verify_dataset(out)

    assert len(faults) < 25
    assert "more faults" in str(faults[-1])


def test_a_folder_that_is_not_there_is_a_wrong_path(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nowhere: no such folder"):
        verify_dataset(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("field", "value"),
    [("plan_fingerprint", None), ("plan_keys", "x"), ("num_rejects", None), ("licences", "x"), ("tokenizer", None)],
)
def test_a_field_of_another_type_is_a_fault(field: str, value: object, built: Path) -> None:
    fields = json.loads((built / "refseg.json").read_text())
    (built / "refseg.json").write_text(json.dumps({**fields, field: value}))

    (fault,) = verify_dataset(built)

    assert (fault.file, fault.remedy) == ("refseg.json", REMEDY)
    assert "cannot be read" in fault.found
    assert field in fault.found


def test_a_source_hash_that_the_plan_does_not_know_is_a_fault(built: Path) -> None:
    first, *others = load_descriptor(built).sources
    rewrite(built, sources=(replace(first, sha256="0" * 64), *others))

    (fault,) = verify_dataset(built)

    assert re.search(r"found source refcoco/refs\(unc\)\.\w+ with sha256 0{12}, expected", str(fault))


def rewrite(folder: Path, **changes: Any) -> None:
    """Change fields of a descriptor."""
    (folder / "refseg.json").write_text(replace(load_descriptor(folder), **changes).to_json())


def say(folder: Path, **options: Any) -> str:
    """Return all faults, one per line."""
    return "\n".join(map(str, verify_dataset(folder, **options)))


def counts(images: int, refs: int, sentences: int | None) -> SplitCounts:
    return SplitCounts(images=images, refs=refs, sentences=sentences)


def test_source_counts_are_rows_and_rejects(tiny: Any, tmp_path: Path) -> None:
    # val has 3 images with a ref and a sentence each, testA 2; one ref of val is rejected.
    tiny.refs[0]["ann_id"] = 4471
    built = tmp_path / "out"
    build_dataset(tiny.options(built, on_bad_sample="skip"))
    true = {"val": counts(3, 3, 3), "testA": counts(2, 2, 2)}

    rewrite(built, source_counts=true, counts_accepted=True)
    assert verify_dataset(built) == []
    rewrite(built, source_counts={**true, "val": counts(3, 4, 3)})
    assert "refseg.json: found 2 rows and 1 reject in split val, expected together the 4 refs of the sou" in say(built)
    rewrite(built, source_counts={**true, "testA": counts(2, 2, 3)})
    assert "refseg.json: found 2 sentences in split testA, expected 3 as in the source" in say(built)
    rewrite(built, source_counts={**true, "val": counts(1, 3, 3)})
    assert "refseg.json: found 2 images in split val, expected 1 as in the source" in say(built)
    rewrite(built, source_counts={**true, "val": counts(3, 3, None)})
    assert "refseg.json: found no count of the sentences in split val" in say(built)
    rewrite(built, source_counts={"val": true["val"]})
    assert "refseg.json: found no source counts of split testA, expected counts of every split" in say(built)


def test_counts_that_are_not_the_published_ones_are_named_unless_accepted(built: Path) -> None:
    source = {"val": counts(3, 3, 3), "testA": counts(2, 2, 2)}
    rewrite(built, source_counts=source, counts_accepted=True)
    assert verify_dataset(built) == []
    rewrite(built, counts_accepted=False)

    faults = verify_dataset(built, fast=True)

    assert len(faults) == 6  # images, refs and sentences of two splits
    assert str(faults[0]) == (
        "refseg.json, split val: found 3 images in the source, expected 1500 as published; build again from the "
        "complete, unchanged annotation files; if the other count is intended, build with --accept-counts, which is "
        "recorded in the descriptor"
    )


def overlay(built: Path, folder: Path, *, mix: bool = False, **of_row: Any) -> Path:
    """The rows of a built dataset over its tars; as a mix, its val rows are training rows of the members in turn."""
    folder.mkdir()
    descriptor = load_descriptor(built)
    members = ("refcoco/unc", "refcocog/umd") if mix else ("refcoco/unc",)
    entries, num_refs = [], [0] * len(members)
    for number, entry in enumerate(descriptor.shards):
        dataset, split_by = members[number % len(members)].split("/")
        changed = {"dataset": dataset, "split_by": split_by, "split": "train" if mix else entry.split, **of_row}
        name = f"train-{number:05d}" if mix else entry.name
        rows = [
            replace(
                row,
                record=replace(row.record, **changed),
                location=replace(row.location, shard=f"pool/{row.location.shard}"),
            )
            for row in read_manifest(built / f"{entry.name}.parquet")
        ]
        num_refs[number % len(members)] += len(rows)
        rows_sha256 = write_manifest(folder / f"{name}.parquet", rows)
        data = (folder / f"{name}.parquet").read_bytes()
        parquet = {"parquet_bytes": len(data), "parquet_sha256": hashlib.sha256(data).hexdigest()}
        no_tar = {"num_samples": 0, "tar_bytes": 0, "tar_sha256": ""}
        split = changed["split"]
        entries.append(replace(entry, name=name, split=split, rows_sha256=rows_sha256, **parquet, **no_tar))
    tars = tuple(
        PoolTar(name=f"{entry.name}.tar", num_bytes=entry.tar_bytes, sha256=entry.tar_sha256)
        for entry in descriptor.shards
    )
    pool = ImagePool(name="pool", path="../built", dataset="refcoco/unc", digest=descriptor.digest, tars=tars)
    nothing = {"dropped_refs": 0, "dropped_images": 0, "leaked_images": 0}
    mixed = tuple(
        MixMember(dataset=member, digest="0" * 64, weight=1.0, num_refs=number, **nothing)
        for member, number in zip(members, num_refs, strict=True)
    )
    changed_descriptor = replace(descriptor, shards=tuple(entries), image_pools=(pool,), indexes=())
    if mix:
        changed_descriptor = replace(changed_descriptor, dataset="mix/ours", mix=mixed, source_counts={}, sources=())
    indexes = write_indexes(open_folder(folder), changed_descriptor, folder)
    (folder / "refseg.json").write_text(replace(changed_descriptor, indexes=indexes).to_json())
    return folder


@pytest.mark.slow
def test_an_overlay_is_checked_down_to_the_samples_of_its_pool(built: Path, tmp_path: Path) -> None:
    folder = overlay(built, tmp_path / "over")
    assert verify_dataset(folder) == []
    assert verify_dataset(folder, workers=2) == []
    whole = (built / "val-00001.tar").read_bytes()
    image_id = read_manifest(built / "val-00001.parquet")[1].record.image_id

    data = bytearray(whole)
    data[read_manifest(built / "val-00001.parquet")[1].location.image_offset + 3] ^= 1
    (built / "val-00001.tar").write_bytes(data)
    assert verify_dataset(folder, fast=True) == []
    faults = verify_dataset(folder)
    assert [(fault.file, fault.sample) for fault in faults] == [
        ("pool/val-00001.tar", ""),
        ("pool/val-00001.tar", f"{image_id:012d}"),
    ]
    assert re.search(
        r"found a sample with xxh3 \w{16}, expected \w{16} as in the manifest; restore refcoco/unc with "
        r"digest \w{12} at \.\./built, or build this dataset again",
        str(faults[1]),
    )

    (built / "val-00001.tar").write_bytes(whole[:-512])
    expected = f"pool/val-00001.tar: found {len(whole) - 512} bytes, expected {len(whole)} bytes; restore refcoco/unc"
    assert expected in say(folder, fast=True)
    shutil.rmtree(built)
    assert say(folder, fast=True).count("found no such file") == 3


def test_a_built_overlay_has_tars_for_the_rest_and_is_verified_and_read(built: Path, tmp_path: Path) -> None:
    # RefCOCO has images 7, 8, 9 in val; RefCOCO+ here 8 and 9, and 20 that nobody has.
    plus = TinyRefer(root=tmp_path / "plus", folder="refcoco+")
    for image_id in (8, 9, 20):
        plus.add_image(image_id)
    build_dataset(plus.options(tmp_path / "over", images_from=(built,), images_per_shard=3))
    (entry,) = load_descriptor(tmp_path / "over").shards
    assert (entry.num_images, entry.num_samples) == (3, 1)

    assert verify_dataset(tmp_path / "over") == []
    index = ManifestIndex.open(tmp_path / "over", ["val"])
    for image, image_id in enumerate(index.image_id.tolist()):
        assert index.read_image_bytes(image) == plus.image_path(image_id).read_bytes()
    assert stats_dataset(tmp_path / "over").splits[0].num_pool_images == 2
    (tmp_path / "over" / "val-00000.tar").unlink()
    assert [fault.file for fault in verify_dataset(tmp_path / "over")] == ["val-00000.tar"]


def test_a_row_that_points_at_another_image_of_a_pool_is_named(built: Path, tmp_path: Path) -> None:
    folder = overlay(built, tmp_path / "over", image_id=11)
    # All hashes are right, but rows of the images 7, 8, 9 and 12 state image 11.
    lines = say(folder).splitlines()
    assert sum("expected image 11 as in the manifest" in line for line in lines) == 4


def test_rows_of_a_pool_that_the_descriptor_does_not_name_are_faults(built: Path, tmp_path: Path) -> None:
    folder = overlay(built, tmp_path / "over")
    (pool,) = load_descriptor(folder).image_pools
    rewrite(folder, image_pools=(replace(pool, name="other"),))
    assert re.search(r"val-00000.parquet, ref \d+: found shard 'pool/val-00000.tar', expected other/", say(folder))
    rewrite(folder, image_pools=())
    assert "refseg.json: found shard val-00000: 0 samples for 1 image, expected one for each image that" in say(folder)


def test_a_mix_is_checked_by_its_members(built: Path, tmp_path: Path) -> None:
    folder = overlay(built, tmp_path / "mix", mix=True)
    assert verify_dataset(folder) == []
    first, second = load_descriptor(folder).mix

    rewrite(folder, mix=(first, replace(second, num_refs=7)))
    assert f"refseg.json: found {second.num_refs} rows of refcocog/umd, expected 7" in say(folder)
    rewrite(folder, mix=(first, replace(second, leaked_images=2)))
    assert "found 2 leaked images of refcocog/umd, expected none, because leaks were not allowed" in say(folder)
    rewrite(folder, mix=(first, replace(second, dataset="refcocog/google")))
    assert "found dataset refcocog/umd, expected refcoco/unc, refcocog/google" in say(folder)
    rewrite(folder, mix=())
    assert "refseg.json: found dataset 'mix/ours'" in say(folder)


def test_a_built_mix_has_no_fault(built: Path, tmp_path: Path) -> None:
    plus = TinyRefer(root=tmp_path / "plus", folder="refcoco+")
    for image_id in (8, 20, 21):  # image 8 is in the other's val
        plus.add_image(image_id, ("train",))
    build_dataset(plus.options(tmp_path / "plus-built"))
    mix_datasets(MixOptions(members=(built, tmp_path / "plus-built"), out=tmp_path / "mix"))

    assert verify_dataset(tmp_path / "mix") == []
    assert ManifestIndex.open(tmp_path / "mix", ["train"]).image_id.tolist() in ([20, 21], [21, 20])
    flipped = bytearray((tmp_path / "plus-built" / "train-00000.tar").read_bytes())
    flipped[700] ^= 1
    (tmp_path / "plus-built" / "train-00000.tar").write_bytes(flipped)
    assert {fault.file for fault in verify_dataset(tmp_path / "mix")} == {"refcocoplus-unc/train-00000.tar"}


def test_a_custom_dataset_of_boxes_has_any_splits(tmp_path: Path) -> None:
    Image.new("RGB", (20, 10)).save(tmp_path / "a.jpg")
    header, row = "image,width,height,box,sentence,split", 'a.jpg,20,10,"[1, 1, 4, 4]",the box,dev'
    (tmp_path / "sentences.csv").write_text(f"{header}\n{row}\n")
    out = tmp_path / "out"
    build_dataset(BuildOptions(dataset="custom/mine", annotations=tmp_path, images=tmp_path, out=out, workers=1))

    assert verify_dataset(out) == []
    assert stats_dataset(out).splits[0].num_box_only == 1
    assert ManifestIndex.open(out, ["dev"]).target_mask(0, 0).sum() == 16


def test_a_descriptor_that_names_a_shard_twice_is_a_fault(built: Path) -> None:
    first, *others = load_descriptor(built).shards
    rewrite(built, shards=(first, first, *others))
    assert "refseg.json: found shard val-00000 more than once, expected each once" in say(built, fast=True)


@pytest.mark.slow
def test_a_url_and_several_processes_find_what_one_finds(built: Path) -> None:
    assert verify_dataset(f"file://{built}", workers=2) == []
    swapped = [built / name for name in ("val-00001.tar", "testA-00000.tar")]
    first, second = (path.read_bytes() for path in swapped)
    swapped[0].write_bytes(second)
    swapped[1].write_bytes(first)

    faults = verify_dataset(built, workers=1)

    assert verify_dataset(f"file://{built}", workers=2) == faults
    assert "val-00001.tar: found the bytes of testA-00000.tar, expected its own bytes; rename" in say(built)
    with pytest.raises(UsageError, match=r"built/nowhere: no such folder"):
        verify_dataset(f"file://{built}/nowhere")


def test_samples_behind_a_damage_are_checked_too(tiny: Any, tmp_path: Path) -> None:
    out = tmp_path / "out"
    build_dataset(tiny.options(out, images_per_shard=3))  # val-00000: three images
    rows = read_manifest(out / "val-00000.parquet")
    data = bytearray((out / "val-00000.tar").read_bytes())
    data[rows[0].location.image_offset - 400] ^= 1  # in the first header
    (out / "val-00000.tar").write_bytes(data)
    ids = [f"{row.record.image_id:012d}" for row in rows]

    assert [fault.sample for fault in verify_dataset(out)] == ["", ids[0]]
    data[rows[2].location.image_offset + 5] ^= 1
    (out / "val-00000.tar").write_bytes(data)
    assert [fault.sample for fault in verify_dataset(out)] == ["", ids[0], ids[2]]


def test_a_sentence_of_a_ref_without_target_does_not_exist(built: Path) -> None:
    path = built / "val-00000.parquet"
    table = pq.read_table(path)
    rows = table.to_pylist()
    rows[0] |= {"no_target": True, "annotations": [], "mask": {"size": [10, 20], "counts": [200]}, "area": 0}
    pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), path)
    assert "found no_target with a sentence that exists, expected no such sentence" in say(built)

    rows[0] = {**table.to_pylist()[0], "box_only": True}
    pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), path)
    assert "box_only is True, expected False" in say(built)
