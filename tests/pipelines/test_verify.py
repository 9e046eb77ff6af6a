import hashlib
import json
import re
import shutil
import tarfile
from collections.abc import Callable
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest

from pipelines.build import build_dataset
from pipelines.manifest import ManifestRow, read_manifest, write_manifest
from pipelines.tars import TarWriter, read_members
from pipelines.verify import verify_dataset
from refseg.descriptor import ShardEntry, load_descriptor
from refseg.errors import UsageError


@pytest.fixture
def built(tiny: Any, tmp_path: Path) -> Path:
    """Shards val-00000 (one image), val-00001 and testA-00000 (two each)."""
    build_dataset(tiny.options(tmp_path / "built"))
    return tmp_path / "built"


def flip(path: Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 4
    path.write_bytes(data)


def swap(first: Path, second: Path) -> None:
    data = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(data)


def offsets(path: Path) -> list[int]:
    with tarfile.open(path) as tar:
        return [info.offset for info in tar]


def cut(path: Path, size: int) -> None:
    path.write_bytes(path.read_bytes()[:size])


def _swap_tars(out: Path) -> None:
    swap(out / "val-00001.tar", out / "testA-00000.tar")


def _stale_parquet(out: Path) -> None:
    """The manifest of another build: same refs, another sentence."""
    path = out / "val-00001.parquet"
    rows = read_manifest(path)
    sentence = replace(rows[0].record.sentences[0], raw="of yore")
    write_manifest(path, [replace(rows[0], record=replace(rows[0].record, sentences=(sentence,))), *rows[1:]])


def _drop_sample(out: Path) -> None:
    path = out / "val-00001.tar"
    members = list(read_members(path))[2:]
    _write_tar(path, [(member.name, member.payload) for member in members])


def _edit_json(out: Path) -> None:
    path = out / "val-00001.tar"
    members = [(member.name, member.payload) for member in read_members(path)]
    name, text = members[1]
    members[1] = (name, text.replace(b"the square", b"The square"))
    _write_tar(path, members)


def _write_tar(path: Path, members: list[tuple[str, bytes]]) -> None:
    buffer = BytesIO()
    tar = TarWriter(buffer)
    for name, payload in members:
        tar.add(name, payload)
    tar.finish()
    path.write_bytes(buffer.getvalue())


def _newer_format(out: Path) -> None:
    text = (out / "refseg.json").read_text()
    (out / "refseg.json").write_text(text.replace('"format_version": 1', '"format_version": 2'))


FAULTS: dict[str, tuple[Callable[[Path], object], bool, str]] = {
    "tar cut at a member's border": (
        lambda out: cut(out / "val-00001.tar", offsets(out / "val-00001.tar")[2]),
        True,
        r"val-00001\.tar: found damage at byte \d+: found 0 more bytes",
    ),
    "tar cut in a header": (
        lambda out: cut(out / "val-00001.tar", offsets(out / "val-00001.tar")[2] + 100),
        True,
        r"val-00001\.tar: found damage at byte \d+: found 100 more bytes",
    ),
    "tar cut in data": (
        lambda out: cut(out / "val-00001.tar", offsets(out / "val-00001.tar")[2] + 600),
        True,
        r"val-00001\.tar: found damage at byte \d+: member \d{12}\.jpg ends after 88 bytes",
    ),
    "a flipped payload bit": (
        lambda out: flip(out / "val-00001.tar", 700),
        False,
        r"val-00001\.tar, \d{12}: found other image bytes, expected xxh3",
    ),
    "a flipped header bit": (
        lambda out: flip(out / "val-00001.tar", offsets(out / "val-00001.tar")[2] + 130),
        False,
        r"val-00001\.tar: found damage at byte \d+: the member's header is damaged",
    ),
    "two tars swapped": (_swap_tars, False, r"val-00001\.tar, 0000000000\d\d: found this image, expected image \d"),
    "a shard missing": (
        lambda out: [(out / f"val-00001.{kind}").unlink() for kind in ("tar", "parquet")],
        True,
        r"val-00001\.tar: found no such file, expected \d+ bytes",
    ),
    "a shard duplicated": (
        lambda out: [shutil.copy(out / f"val-00001.{kind}", out / f"val-00002.{kind}") for kind in ("tar", "parquet")],
        True,
        r"val-00002\.tar: found a file that the descriptor does not name",
    ),
    "a manifest of another build": (_stale_parquet, True, r"val-00001\.parquet: found rows of another build"),
    "json and manifest disagreeing": (
        _edit_json,
        False,
        r"val-00001\.tar, \d{12}: found a \.json that differs from the manifest in sentences of ref \d\d",
    ),
    "a sample missing inside": (_drop_sample, True, r"val-00001\.tar: found 1 samples, expected 2"),
    "no descriptor": (lambda out: (out / "refseg.json").unlink(), True, "found no refseg.json, so no finished dataset"),
    "a newer format": (_newer_format, True, "found format version 2, expected 1; use the refseg release that built it"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_each_fault_is_found_and_named(name: str, built: Path) -> None:
    damage, is_fast, message = FAULTS[name]
    assert verify_dataset(built) == []

    damage(built)

    faults = "\n".join(map(str, verify_dataset(built)))
    assert re.search(message, faults), faults
    assert bool(verify_dataset(built, fast=True)) == is_fast


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
            r"found shard x\.tar, expected val-0000",
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

    assert f"{built}/refseg.json: cannot be read" in fault.found
    assert field in fault.found


def test_a_source_hash_that_the_plan_does_not_know_is_a_fault(built: Path) -> None:
    fields = json.loads((built / "refseg.json").read_text())
    fields["sources"][0]["sha256"] = "0" * 64
    (built / "refseg.json").write_text(json.dumps(fields))

    (fault,) = verify_dataset(built)

    assert re.search(r"found source refcoco/refs\(unc\)\.\w+ with sha256 0{12}, expected", str(fault))
