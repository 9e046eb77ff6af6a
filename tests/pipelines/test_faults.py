"""Damages of a built dataset, and the message of each reader about them; `-s` prints the table."""

import random
import shutil
import sys
import tarfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import torch

from pipelines.build import build_dataset
from pipelines.tars import TarWriter, read_members
from pipelines.verify import Fault, verify_dataset
from refseg.data.batch import Batch
from refseg.data.index import ManifestIndex
from refseg.data.loader import RefLoader
from refseg.dataset.descriptor import load_descriptor
from refseg.dataset.manifest_writer import write_manifest
from refseg.errors import DatasetError
from refseg.reading import Reading

from .conftest import read_manifest

TAR, PARQUET = "val-00001.tar", "val-00001.parquet"


def _cut(past: int) -> Callable[[Path], object]:
    """Keep the first sample and some bytes of the second."""

    def damage(out: Path) -> None:
        path = out / TAR
        path.write_bytes(path.read_bytes()[: _second_sample(path) + past])

    return damage


def _flip(position: int) -> Callable[[Path], object]:
    """Flips a bit so many bytes into the second sample."""

    def damage(out: Path) -> None:
        path = out / TAR
        data = bytearray(path.read_bytes())
        data[_second_sample(path) + position] ^= 4
        path.write_bytes(data)

    return damage


def _second_sample(path: Path) -> int:
    with tarfile.open(path) as tar:
        return tar.getmembers()[2].offset


def _swap_tars(out: Path) -> None:
    one, other = out / TAR, out / "testA-00000.tar"
    data = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(data)


def _remove(*names: str) -> Callable[[Path], object]:
    return lambda out: [(out / name).unlink() for name in names]


def _copy(source: str, target: str, *kinds: str) -> Callable[[Path], object]:
    return lambda out: [shutil.copy(out / f"{source}.{kind}", out / f"{target}.{kind}") for kind in kinds]


def _parquet_of_another_build(out: Path) -> None:
    """The same refs, another sentence."""
    rows = read_manifest(out / PARQUET)
    sentence = replace(rows[0].record.sentences[0], raw="of yore")
    write_manifest(out / PARQUET, [replace(rows[0], record=replace(rows[0].record, sentences=(sentence,))), *rows[1:]])


def _edit_json(out: Path) -> None:
    members = [(member.name, member.payload) for member in read_members(out / TAR)]
    name, text = members[3]
    members[3] = (name, text.replace(b"the square", b"the circle"))
    _write_tar(out / TAR, members)


def _drop_sample(out: Path) -> None:
    _write_tar(out / TAR, [(member.name, member.payload) for member in read_members(out / TAR)][:2])


def _write_tar(path: Path, members: list[tuple[str, bytes]]) -> None:
    buffer = BytesIO()
    tar = TarWriter(buffer)
    for name, payload in members:
        tar.add(name, payload)
    tar.finish()
    path.write_bytes(buffer.getvalue())


def _newer_format(out: Path) -> None:
    text = (out / "refseg.json").read_text()
    (out / "refseg.json").write_text(text.replace('"format_version": 3', '"format_version": 4'))


@dataclass(frozen=True, kw_only=True)
class Case:
    """A fault: how it comes about, and what must be said of it.

    Attributes:
        name: Its number in the list of twelve, and in words.
        damage: Brings it about in a dataset's folder.
        fast: True if `--fast` sees it: it shows in names, sizes or the descriptor; None: as the sizes happen to be.
        file: That verify names.
        sample: True if verify must name the second sample of `TAR`.
        loader: When the loader refuses: "open" or "read".
    """

    name: str
    damage: Callable[[Path], object]
    fast: bool | None
    file: str = TAR
    sample: bool = False
    loader: str = "open"


CASES = [
    Case(name="1 tar cut at a member's border", damage=_cut(0), fast=True, sample=True),
    Case(name="2 tar cut in a header", damage=_cut(100), fast=True, sample=True),
    Case(name="3 tar cut in data", damage=_cut(600), fast=True, sample=True),
    Case(name="4 a flipped payload bit", damage=_flip(700), fast=False, sample=True, loader="read"),
    Case(name="5 a flipped header bit", damage=_flip(130), fast=False, sample=True, loader="read"),
    Case(name="6 two tars swapped", damage=_swap_tars, fast=False, sample=True, loader="read"),
    Case(name="7 a shard missing", damage=_remove(TAR, PARQUET), fast=True),
    Case(name="7 a tar missing", damage=_remove(TAR), fast=True),
    Case(name="8 a shard duplicated under a new name", damage=_copy("val-00001", "val-00002", "tar", "parquet"),
         fast=True, file="val-00002.tar"),
    Case(name="8 a shard duplicated over another", damage=_copy("testA-00000", "val-00001", "tar", "parquet"),
         fast=None),
    Case(name="8 a tar duplicated over another", damage=_copy("testA-00000", "val-00001", "tar"), fast=False,
         sample=True, loader="read"),
    Case(name="9 Parquet of another build", damage=_parquet_of_another_build, fast=None, file=PARQUET),
    Case(name="10 JSON and Parquet disagree", damage=_edit_json, fast=False, sample=True, loader="read"),
    Case(name="11 a sample missing inside", damage=_drop_sample, fast=True, sample=True),
    Case(name="12 no descriptor", damage=_remove("refseg.json"), fast=True, file="refseg.json"),
    Case(name="12 a descriptor of a newer format", damage=_newer_format, fast=True, file="refseg.json"),
]  # fmt: skip


@pytest.fixture
def built(tiny: Any, tmp_path: Path) -> Path:
    """Shards val-00000 (one image), val-00001 and testA-00000 (two each, of one size: padded after the picture)."""
    build_dataset(tiny.options(tmp_path / "built"))
    assert len({(tmp_path / "built" / name).stat().st_size for name in (TAR, "testA-00000.tar")}) == 1
    return tmp_path / "built"


def _batches(folder: Path, into: list[Batch]) -> None:
    """Return the batches of an epoch in order, up to the first error."""
    index = ManifestIndex.open(folder, ["val", "testA"])
    reading = Reading(
        geometry="letterbox", input_size=(24, 24), sampling="sentence", global_batch=1, num_tokens=12, shuffle=False,
        remainder="pad",
    )  # fmt: skip
    loader = RefLoader(index, reading)
    into.append(index)  # type: ignore[arg-type]  # says: it opened
    into.extend(loader)


def _loader_says(folder: Path, truth: list[Batch]) -> tuple[str, str]:
    """Return when and how the loader refuses a dataset. The batches before that must be correct."""
    given: list[Batch] = []
    message = ""
    try:
        _batches(folder, given)
    except DatasetError as error:
        message = str(error)
    for ours, true in zip(given[1:], truth[1:], strict=False):
        assert all(torch.equal(one, other) for one, other in zip(ours, true, strict=True)), "a wrong sample was given"
    return ("read" if given else "open") if message else "never", message


@pytest.mark.slow
def test_every_fault_is_reported_by_verify_and_by_the_loader(built: Path, tmp_path: Path) -> None:
    truth: list[Batch] = []
    _batches(built, truth)
    assert len(truth) == 1 + 5
    assert verify_dataset(built) == []
    second = f"{read_manifest(built / PARQUET)[1].record.image_id:012d}"

    table = []
    for case in CASES:
        out = tmp_path / "damaged" / case.name
        shutil.copytree(built, out)
        case.damage(out)
        whole, fast = (verify_dataset(out, fast=fast, workers=1) for fast in (False, True))
        when, message = _loader_says(out, truth)
        shown = _most_telling(whole, second)
        quick = str(fast[0]) if fast else "not seen: sizes agree"
        table.append((case.name, f"{shown} ({len(whole)} faults in all)", quick, f"({when}) {message}"))

        assert case.file in {fault.file for fault in whole}, case.name
        assert all(fault.remedy for fault in whole), case.name
        assert shown.sample == second or not case.sample, (case.name, whole)
        assert case.fast in (None, bool(fast)), (case.name, fast)
        assert when == case.loader, (case.name, message)
        assert any(word in message for word in ("copy", "build", "remove it", "use the refseg release")), message
    _print(table, str(tmp_path))
    assert len({name.split()[0] for name, *_ in table}) == 12


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_no_damage_of_a_shard_is_silent_wherever_it_is(seed: int, tiny: Any, tmp_path: Path) -> None:
    tiny.refs[0]["ann_id"] = 4471  # so that there are rejects
    built = tmp_path / "built"
    build_dataset(tiny.options(built, on_bad_sample="skip"))
    truth: list[Batch] = []
    _batches(built, truth)
    rng = random.Random(seed)
    files = sorted(path.name for path in built.iterdir())
    for number in range(20):
        out = tmp_path / f"damaged-{number}"
        shutil.copytree(built, out)
        path = out / rng.choice(files)
        data = bytearray(path.read_bytes())
        place = rng.randrange(len(data))
        kind = rng.choice(("flip", "flip", "cut", "insert", "append"))
        if kind == "flip":
            data[place] ^= 1 << rng.randrange(8)
        elif kind == "cut":
            del data[place:]
        else:
            where = place if kind == "insert" else len(data)
            data[where:where] = data[place:][:512]
        path.write_bytes(data)

        faults = verify_dataset(out, workers=1)
        _loader_says(out, truth)

        if path.name == "refseg.json" and not faults:  # white space that was added
            assert load_descriptor(out) == load_descriptor(built)
        else:
            assert path.name in {fault.file for fault in faults}, (path.name, kind, place)


def _most_telling(faults: list[Fault], sample: str) -> Fault:
    """The fault that names the sample, else one that names its file as such."""
    assert faults
    named = [fault for fault in faults if fault.sample == sample]
    return (named or faults)[0]


def _print(table: list[tuple[str, ...]], folder: str) -> None:
    lines = []
    for name, *said in table:
        lines.append(f"\n{name}\n")
        for who, what in zip(("verify", "verify --fast", "loader"), said, strict=True):
            short = what.replace(f"{folder}/damaged/{name}/", "").replace(f"{folder}/damaged/{name}", "folder")
            lines.append(f"    {who:<14}{short}\n")
    sys.stdout.writelines(lines)
