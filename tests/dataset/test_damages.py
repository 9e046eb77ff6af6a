"""Every command and function refuses a damaged dataset with the message of `refseg verify`."""

import io
import json
import shutil
from collections.abc import Callable
from contextlib import redirect_stderr
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import refseg
from pipelines.build import build_dataset
from pipelines.export.run import ExportOptions, export_dataset
from pipelines.mix import MixOptions, mix_datasets
from pipelines.stats import stats_dataset
from pipelines.verify import verify_dataset
from refseg.apps.browse import write_browse_page
from refseg.cli import main
from refseg.compat.refer import REFER
from refseg.data.index import ManifestIndex
from refseg.data.webdataset import tar_urls
from refseg.dataset.descriptor import DESCRIPTOR_NAME, load_descriptor
from refseg.dataset.schema import FORMAT_VERSION, find_dataset
from refseg.errors import DatasetError
from tests.pipelines.conftest import TinyRefer

MANIFEST = "train-00000.parquet"


@dataclass(frozen=True)
class Built:
    """`refcoco/unc` in `base`, and `refcocoplus/unc` in `plus`, whose images all lie in `base`."""

    root: Path

    @property
    def base(self) -> Path:
        return self.root / "base"

    @property
    def plus(self) -> Path:
        return self.root / "plus"


def draw(folder: Path, name: str = "refcoco", split_by: str = "unc", first: int = 7) -> TinyRefer:
    """Five pictures in train and val."""
    tiny = TinyRefer(root=folder, folder=name, split_by=split_by)
    for number, split in enumerate(("train", "train", "train", "val", "val")):
        tiny.add_image(first + number, (split,))
    return tiny


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    root = tmp_path_factory.mktemp("built")
    build_dataset(draw(root / "refcoco").options(root / "base", images_per_shard=9))
    plus = draw(root / "refcoco+", "refcoco+")
    build_dataset(plus.options(root / "plus", images_per_shard=9, images_from=(root / "base",), images=None))
    build_dataset(draw(root / "others", first=70).options(root / "another", images_per_shard=9))
    return Built(root)


def alter_offset(built: Built) -> Path:
    """Shift a sample by one block, in a file with the right size and another hash."""
    path = built.base / MANIFEST
    table = pq.read_table(path)
    offsets = pa.array([offset + 512 for offset in table.column("image_offset").to_pylist()])
    pq.write_table(table.set_column(table.column_names.index("image_offset"), "image_offset", offsets), path)
    descriptor = load_descriptor(built.base)
    first, *others = descriptor.shards
    entry = replace(first, parquet_bytes=path.stat().st_size)
    (built.base / DESCRIPTOR_NAME).write_text(replace(descriptor, shards=(entry, *others)).to_json())
    return built.base


def cut_manifest(built: Built) -> Path:
    path = built.base / MANIFEST
    path.write_bytes(path.read_bytes()[:-100])
    return built.base


def take_manifest_of_another_build(built: Built) -> Path:
    shutil.copy(built.root / "another" / MANIFEST, built.base / MANIFEST)
    return built.base


def remove_tar(built: Built) -> Path:
    (built.base / "train-00000.tar").unlink()
    return built.base


def alter_pool(built: Built) -> Path:
    """Replace the pool by another undamaged build of the same dataset."""
    shutil.rmtree(built.base)
    shutil.copytree(built.root / "another", built.base)
    with (built.base / "train-00000.tar").open("ab") as file:
        file.write(bytes(512))
    return built.plus


def raise_format(built: Built) -> Path:
    path = built.base / DESCRIPTOR_NAME
    path.write_text(json.dumps({**json.loads(path.read_text()), "format_version": FORMAT_VERSION + 1}))
    return built.base


DAMAGES = {
    alter_offset: f"{MANIFEST}: found sha256 ",
    cut_manifest: f"{MANIFEST}: found ",
    take_manifest_of_another_build: f"{MANIFEST}: found ",
    remove_tar: "train-00000.tar: found no such file, expected ",
    alter_pool: "train-00000.tar: found ",
    raise_format: f"{DESCRIPTOR_NAME}: found format version {FORMAT_VERSION + 1}, expected {FORMAT_VERSION}; use the ",
}


@dataclass(frozen=True)
class Damaged:
    """A damaged dataset, the start of a reader's message, and the message of `verify`."""

    folder: Path
    begins: str
    verified: list[str]


@pytest.fixture(scope="module", params=DAMAGES, ids=lambda damage: damage.__name__)
def damaged(request: pytest.FixtureRequest, built: Built, tmp_path_factory: pytest.TempPathFactory) -> Damaged:
    copy = Built(tmp_path_factory.mktemp(request.param.__name__) / "root")
    shutil.copytree(built.root, copy.root)
    folder = request.param(copy)
    faults = verify_dataset(folder, workers=1)
    said = [
        f"{fault.file.rpartition('/')[2]}: found {fault.found}, expected {fault.expected}; {fault.remedy}"
        for fault in faults
    ]
    return Damaged(folder, DAMAGES[request.param], said)


def open_refer(folder: Path, _out: Path) -> object:
    spec = find_dataset("refcocoplus/unc" if folder.name == "plus" else "refcoco/unc")
    return REFER(folder, spec.folder, spec.split_by)


def build_over(folder: Path, out: Path) -> object:
    options = draw(out / "source", "refcocog", "umd").options(out / "over", images_from=(folder,), images=None)
    return build_dataset(options)


def score(folder: Path, out: Path) -> object:
    """Run the command, because no function opens the dataset for it."""
    (out / "masks.jsonl").write_text("{}")
    errors = io.StringIO()
    with redirect_stderr(errors):
        assert main(["score", str(out / "masks.jsonl"), "--data", str(folder), "--split", "train"]) == 1
    raise DatasetError(errors.getvalue())


ENTRY_POINTS: dict[str, Callable[[Path, Path], object]] = {
    "ManifestIndex.open": lambda folder, _: ManifestIndex.open(folder, ["train"]),
    "load_dataset": lambda folder, _: refseg.load_dataset(folder, "train"),
    "REFER": open_refer,
    "browse": lambda folder, out: write_browse_page(folder, out / "page"),
    "export": lambda folder, out: export_dataset(ExportOptions(folder=folder, to="refer", out=out / "export")),
    "stats": lambda folder, _: stats_dataset(folder),
    "mix": lambda folder, out: mix_datasets(MixOptions(members=(folder,), out=out / "mix")),
    "build --images-from": build_over,
    "score": score,
}


@pytest.mark.parametrize("entry_point", ENTRY_POINTS)
def test_every_reader_refuses_a_damaged_dataset_with_the_words_of_verify(
    entry_point: str, damaged: Damaged, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REFSEG_CACHE", str(tmp_path / "cache"))

    with pytest.raises(DatasetError) as refusal:
        ENTRY_POINTS[entry_point](damaged.folder, tmp_path)

    said = str(refusal.value)
    assert damaged.begins in said
    assert any(fault in said for fault in damaged.verified), (said, damaged.verified)
    assert not (tmp_path / "over" / DESCRIPTOR_NAME).exists()


@pytest.mark.parametrize("entry_point", ENTRY_POINTS)
def test_every_reader_takes_the_whole_datasets(entry_point: str, built: Built, tmp_path: Path) -> None:
    if entry_point != "score":  # for which there are no masks
        for folder in (built.base, built.plus):
            (tmp_path / folder.name).mkdir()
            ENTRY_POINTS[entry_point](folder, tmp_path / folder.name)


def test_verify_finds_nothing_else_than_the_damage(built: Built) -> None:
    assert verify_dataset(built.base, workers=1) == verify_dataset(built.plus, workers=1) == []


def test_a_stream_is_refused_where_a_tar_is_missing(built: Built, tmp_path: Path) -> None:
    copy = Built(tmp_path / "root")
    shutil.copytree(built.root, copy.root)

    assert tar_urls(copy.base, ["train"]) == [str(copy.base / "train-00000.tar")]
    remove_tar(copy)
    with pytest.raises(DatasetError, match=r"base/train-00000\.tar: found no such file, expected \d+ bytes"):
        tar_urls(copy.base, ["train"])
