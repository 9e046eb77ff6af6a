"""Builds from real images and annotations: all four datasets of `refer-mini`."""

import json
import pickle
import runpy
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from pycocotools.coco import COCO

from pipelines.build import build_dataset
from pipelines.options import BuildOptions
from pipelines.verify import verify_dataset
from refseg.dataset.manifest_writer import ManifestRow
from refseg.dataset.schema import find_dataset

from .conftest import read_manifest

# refs, sentences and images by split, as the data's README states them (and sums over splits).
STATED = {
    "refcoco/unc": ({"val": 13, "testA": 4}, 48, 5),
    "refcoco+/unc": ({"val": 13, "testA": 4}, 50, 5),
    "refcocog/umd": ({"test": 5}, 9, 5),
    "refcocog/google": ({"val": 9}, 9, 8),
}


@pytest.fixture(scope="module", params=STATED)
def built(
    request: pytest.FixtureRequest, shared_data: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Path]:
    out = tmp_path_factory.mktemp("built") / "dataset"
    options = BuildOptions(
        dataset=request.param, annotations=shared_data / "refer-mini", out=out, workers=1, accept_counts=True
    )
    build_dataset(options)
    return request.param, out


def rows_of(out: Path) -> list[ManifestRow]:
    return [row for path in sorted(out.glob("*.parquet")) for row in read_manifest(path)]


def test_refs_sentences_and_images_are_those_stated(built: tuple[str, Path]) -> None:
    dataset, out = built
    rows = rows_of(out)
    refs, num_sentences, num_images = STATED[dataset]

    assert {split: sum(row.record.split == split for row in rows) for split in refs} == refs
    assert len(rows) == sum(refs.values())
    assert sum(len(row.record.sentences) for row in rows) == num_sentences
    assert len({row.record.image_id for row in rows}) == num_images
    assert verify_dataset(out) == []


def test_rows_hold_the_refs_of_the_pickle(built: tuple[str, Path], shared_data: Path) -> None:
    dataset, out = built
    spec = find_dataset(dataset)
    path = shared_data / "refer-mini" / spec.folder / f"refs({spec.split_by}).p"
    refs = {ref["ref_id"]: ref for ref in pickle.loads(path.read_bytes(), encoding="latin1")}

    for row in rows_of(out):
        ref = refs.pop(row.record.ref_id)
        assert (row.record.image_id, row.record.split) == (ref["image_id"], ref["split"])
        assert [annotation.ann_id for annotation in row.record.annotations] == [ref["ann_id"]]
        for sentence, expected in zip(row.record.sentences, ref["sentences"], strict=True):
            assert (sentence.sent_id, sentence.raw, sentence.sent, list(sentence.words)) == (
                expected["sent_id"], expected["raw"], expected["sent"], expected["tokens"],
            )  # fmt: skip
    assert not refs


def test_masks_equal_pycocotools_and_images_the_source_byte_for_byte(
    built: tuple[str, Path], shared_data: Path
) -> None:
    dataset, out = built
    coco = COCO()  # its constructor prints when given a file
    coco.dataset = json.loads(
        (shared_data / "refer-mini" / find_dataset(dataset).folder / "instances.json").read_text()
    )
    for name in ("images", "annotations"):
        setattr(coco, {"images": "imgs", "annotations": "anns"}[name], {x["id"]: x for x in coco.dataset[name]})
    images = shared_data / "refer-mini/images/mscoco/images/train2014"

    for row in rows_of(out):
        (annotation,) = row.record.annotations
        expected = coco.annToMask(coco.anns[annotation.ann_id])
        counts = row.record.mask.counts
        mask = np.repeat(np.arange(len(counts)) % 2, counts).reshape(row.record.width, row.record.height).T
        np.testing.assert_array_equal(mask, expected)
        assert row.record.area == expected.sum() > 0
        with (out / row.location.shard).open("rb") as file:
            file.seek(row.location.image_offset)
            assert file.read(row.location.image_bytes) == (images / row.record.file_name).read_bytes()


def test_plain_tar_lists_every_image_with_its_json(built: tuple[str, Path]) -> None:
    _, out = built
    for path in out.glob("*.tar"):
        with tarfile.open(path) as tar:
            infos = tar.getmembers()
        names = [info.name for info in infos]
        image_ids = dict.fromkeys(row.record.image_id for row in read_manifest(path.with_suffix(".parquet")))
        assert names == [f"{image_id:012d}.{kind}" for image_id in image_ids for kind in ("jpg", "json")]
        assert {(info.mtime, info.uid, info.gid, info.mode) for info in infos} == {(0, 0, 0, 0o644)}


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # webdataset leaves the tar open
def test_the_documented_webdataset_loop_reads_image_mask_and_tokens(
    built: tuple[str, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _, out = built
    script = Path(__file__).parents[2] / "docs" / "read_with_webdataset.py"
    for path in out.glob("*.tar"):
        monkeypatch.setattr(sys, "argv", [str(script), str(path)])
        runpy.run_path(str(script))
        lines = capsys.readouterr().out.splitlines()

        expected = [
            f"{row.record.image_id:012d} {(row.record.height, row.record.width, 3)} {row.record.ref_id} "
            f"{row.record.area} {sentence.sent_id} {list(sentence.token_ids)}"
            for row in read_manifest(path.with_suffix(".parquet"))
            for sentence in row.record.sentences
        ]
        assert lines == expected
    assert "refseg" not in script.read_text().split('"""')[2]


@pytest.mark.slow
def test_one_and_four_workers_give_the_same_bytes(
    shared_data: Path, tmp_path: Path, contents: Callable[[Path], dict[str, bytes]]
) -> None:
    folders = []
    for workers in (1, 4):
        options = BuildOptions(
            dataset="refcocog/google",
            annotations=shared_data / "refer-mini",
            out=tmp_path / str(workers),
            workers=workers,
            images_per_shard=2,
            accept_counts=True,
        )
        build_dataset(options)
        folders.append(contents(options.out))

    assert len(folders[0]) == 2 * 4 + 2  # with the index and the descriptor
    assert folders[0] == folders[1]
