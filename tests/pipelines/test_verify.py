"""Verify against datasets that contradict themselves; `test_faults.py` has those that were damaged after the build."""

import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipelines.build import build_dataset
from pipelines.manifest import ManifestRow, read_manifest, write_manifest
from pipelines.verify import verify_dataset
from refseg.descriptor import (
    ShardEntry,
    load_descriptor,
)
from refseg.errors import UsageError


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


def _change_token(row: ManifestRow) -> ManifestRow:
    (sentence,) = row.record.sentences
    return replace(row, record=replace(row.record, sentences=(replace(sentence, token_ids=(49406, 5, 49407)),)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_change("split", "train"), "found split train, expected val"),
        (_change("dataset", "refcocog"), "found dataset refcocog/unc, expected refcoco/unc"),
        (_change("area", 17), "found area 17, expected 16 pixels as in the mask"),
        (_change("width", 21), r"found a mask of 200 pixels, size \(10, 20\), expected size \(10, 21\)"),
        (_change("ref_id", 110), "found the same ref_id as in"),
        (_shift_mask, "found a mask that differs from its annotations, expected their union"),
        (_change_token, "found other token_ids in sentence 70, expected those of clip-bpe"),
        (
            lambda row: replace(row, location=replace(row.location, shard="x.tar")),
            r"found shard x\.tar, expected val-0000\d\.tar;",
        ),
        (lambda row: replace(row, location=replace(row.location, image_offset=0)), r"bytes at 512, expected \d+ at 0"),
    ],
)
def test_rows_that_contradict_themselves_are_named_even_if_every_hash_agrees(
    built: Path, change: Callable[[ManifestRow], ManifestRow], message: str
) -> None:
    """As if a fault of the build had written them: the descriptor is made to fit."""
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
    fields = json.loads((built / "refseg.json").read_text())
    fields["tokenizer"] = {"name": "bert", "vocab_sha256": "0"}
    fields["mask_rule"] = "sum"
    fields["plan_keys"]["seed"] = "1"
    (built / "refseg.json").write_text(json.dumps(fields))

    faults = "\n".join(map(str, verify_dataset(built, fast=True)))

    assert "refseg.json: found tokenizer {'name': 'bert'" in faults
    assert "refseg.json: found mask rule 'sum', expected one of union, legacy" in faults
    assert "expected the hash of its plan keys" in faults


def test_lost_rejects_are_named(tiny: Any, tmp_path: Path) -> None:
    tiny.refs[0]["ann_id"] = 4471
    out = tmp_path / "out"
    build_dataset(tiny.options(out, on_bad_sample="skip"))
    assert verify_dataset(out) == []

    (out / "rejects.parquet").write_bytes(b"PAR1")
    assert "rejects.parquet: found a file that is not Parquet, expected 1 rejects" in str(verify_dataset(out)[0])
    (out / "rejects.parquet").unlink()
    assert "rejects.parquet: found no such file, expected 1 rejects" in str(verify_dataset(out)[0])


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

    assert (fault.file, fault.remedy) == ("refseg.json", "build the dataset again")
    assert "cannot be read" in fault.found
    assert field in fault.found


def test_a_source_hash_that_the_plan_does_not_know_is_a_fault(built: Path) -> None:
    fields = json.loads((built / "refseg.json").read_text())
    fields["sources"][0]["sha256"] = "0" * 64
    (built / "refseg.json").write_text(json.dumps(fields))

    (fault,) = verify_dataset(built)

    assert re.search(r"found source refcoco/refs\(unc\)\.\w+ with sha256 0{12}, expected", str(fault))
