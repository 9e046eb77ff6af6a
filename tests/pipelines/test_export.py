"""Exports: round trips, the results of each format's own readers, and errors."""

import io
import json
import os
import pickle
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from pipelines.build import build_dataset
from pipelines.export.run import REPORT_NAME, ExportOptions, export_dataset
from pipelines.mix import MixOptions, mix_datasets
from pipelines.options import BuildOptions
from pipelines.sources.plain_pickle import load_plain_pickle
from refseg.cli import main
from refseg.dataset.descriptor import load_descriptor
from refseg.dataset.manifest_writer import ManifestRow
from refseg.dataset.schema import find_dataset
from refseg.errors import DatasetError, UsageError
from refseg.locks import lock
from tests.disk import file_size_limit

from .conftest import TinyRefer, read_manifest

MINI = ("refcoco/unc", "refcoco+/unc", "refcocog/umd", "refcocog/google")
SAMPLE = Path(__file__).parents[2] / "manifests" / "sample"


def build(dataset: str, source: Path, out: Path, **changes: Any) -> Path:
    given = {"images_per_shard": 2, "workers": 1, "accept_counts": True, **changes}
    build_dataset(BuildOptions(dataset=dataset, annotations=source, out=out, **given))
    return out


def export(folder: Path, to: str, out: Path, **changes: Any) -> Path:
    export_dataset(ExportOptions(folder=folder, to=to, out=out, **changes))
    return out


def rows_of(folder: Path) -> Iterator[ManifestRow]:
    for path in sorted(folder.glob("*.parquet")):
        yield from read_manifest(path)


@pytest.fixture(scope="module")
def mini(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The datasets of `refer-mini`, built."""
    root = tmp_path_factory.mktemp("mini")
    return {name: build(name, shared_data / "refer-mini", root / name.replace("/", "-")) for name in MINI}


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled sample, built: one ref of it names nothing, one has two sentences."""
    return build("sample/ccby", SAMPLE, tmp_path_factory.mktemp("sample") / "built")


@pytest.fixture
def built(tiny: TinyRefer, tmp_path: Path) -> Path:
    """The five tiny pictures, built: three of val, two of testA."""
    build_dataset(tiny.options(tmp_path / "built"))
    return tmp_path / "built"


@pytest.mark.parametrize("dataset", MINI)
def test_refer_to_shards_to_refer_gives_equal_records(
    dataset: str, mini: dict[str, Path], shared_data: Path, tmp_path: Path
) -> None:
    spec = find_dataset(dataset)
    out = export(mini[dataset], "refer", tmp_path / "out")
    before, after = shared_data / "refer-mini" / spec.folder, out / spec.folder
    name = f"refs({spec.split_by})"
    refs = load_plain_pickle((before / f"{name}.p").read_bytes(), before)
    exported = load_plain_pickle((after / f"{name}.p").read_bytes(), after)

    assert json.loads((after / f"{name}.json").read_text()) == exported
    assert [list(ref) for ref in exported] == [list(ref) for ref in refs]
    if dataset.startswith("refcocog"):
        assert exported == refs
    else:  # the name that is no file's counts refs within the image there
        without = [{key: value for key, value in ref.items() if key != "file_name"} for ref in refs]
        assert [{key: value for key, value in ref.items() if key != "file_name"} for ref in exported] == without

    instances, source = (json.loads((folder / "instances.json").read_text()) for folder in (after, before))
    assert instances["categories"] == source["categories"]
    known = {annotation["id"]: annotation for annotation in source["annotations"]}
    assert {annotation["id"] for annotation in instances["annotations"]} == {ref["ann_id"] for ref in refs}
    assert all(annotation == known[annotation["id"]] for annotation in instances["annotations"])
    pictures = {image["id"]: image for image in source["images"]}
    assert {image["id"] for image in instances["images"]} == {ref["image_id"] for ref in refs}
    for image in instances["images"]:
        assert image == {key: pictures[image["id"]][key] for key in ("file_name", "height", "width", "id")}
        path = Path("images/mscoco/images/train2014", image["file_name"])
        assert (out / path).read_bytes() == (shared_data / "refer-mini" / path).read_bytes()


@pytest.mark.parametrize("dataset", MINI)
def test_an_export_builds_to_the_dataset_it_came_from(dataset: str, mini: dict[str, Path], tmp_path: Path) -> None:
    again = build(dataset, export(mini[dataset], "refer", tmp_path / "out"), tmp_path / "again")

    assert load_descriptor(again).digest == load_descriptor(mini[dataset]).digest


@pytest.mark.parametrize("dataset", ["rrefcoco/unc", "refzom/final", "refclef/unc", "toy/refseg"])
def test_exports_of_the_other_families_build_again_too(dataset: str, tiny: TinyRefer, tmp_path: Path) -> None:
    spec = find_dataset(dataset)
    tiny.folder, tiny.split_by = spec.folder, spec.split_by
    if spec.dataset == "rrefcoco":
        tiny.refs[0]["sentences"][0]["exist"] = False
    if spec.dataset == "refzom":
        for ref, kind in zip(tiny.refs, ("zero", "one", "one", "many", "one"), strict=True):
            ref |= {"source": kind, "split": "val"}
        tiny.annotations.append({**tiny.annotations[3], "id": 111})
        tiny.refs[3]["ann_id"] = [110, 111]
    if spec.dataset == "refclef":
        for annotation in tiny.annotations:
            annotation["segmentation"] = [{"size": [10, 20], "counts": "g064000000000e3"}]
    built = build(dataset, tiny.write(), tmp_path / "built", images=tiny.root)

    again = build(dataset, export(built, "refer", tmp_path / "out"), tmp_path / "again")

    assert load_descriptor(again).digest == load_descriptor(built).digest


def test_refs_that_name_nothing_come_back(sample: Path, tmp_path: Path) -> None:
    again = build("sample/ccby", export(sample, "refer", tmp_path / "out"), tmp_path / "again")

    assert load_descriptor(again).digest == load_descriptor(sample).digest
    assert any(row.record.no_target for row in rows_of(again))


def test_lists_of_targets_and_crowds_come_back(tiny: TinyRefer, tmp_path: Path) -> None:
    tiny.folder = "grefcoco"
    tiny.annotations.append(
        {"id": 904700010881, "image_id": 8, "category_id": 1, "iscrowd": 1, "area": 9, "bbox": [0, 0, 3, 3]}
        | {"segmentation": {"size": [10, 20], "counts": [0, 3, 197]}}
    )
    for ref, ann_id in zip(tiny.refs, ([70], [80, 904700010881], [-1], [110], [-1]), strict=True):
        ref |= {"ann_id": ann_id, "category_id": ann_id and [1 if found > 0 else -1 for found in ann_id]}
        ref["no_target"] = ann_id == [-1]
    source = tiny.write()
    (source / "grefcoco/refs(unc).p").rename(source / "grefcoco/grefs(unc).p")
    built = build("grefcoco/unc", source, tmp_path / "built", images=tiny.root)
    out = export(built, "refer", tmp_path / "out")

    exported = load_plain_pickle((out / "grefcoco/grefs(unc).p").read_bytes(), out)
    given = {ref["ref_id"]: ref for ref in tiny.refs}
    for ref in exported:
        assert {**ref, **given[ref["ref_id"]]} == ref
    again = build("grefcoco/unc", out, tmp_path / "again")
    assert load_descriptor(again).digest == load_descriptor(built).digest


def test_a_users_own_boxes_and_names_come_back_as_the_same_masks(tmp_path: Path) -> None:
    source = tmp_path / "mine"
    (source / "one").mkdir(parents=True)
    Image.new("RGB", (20, 10), "red").save(source / "one" / "a.jpg")
    row = {
        "image": "one/a.jpg",
        "sentence": "the corner",
        "split": "val",
        "category": "thing",
        "height": 10,
        "width": 20,
    }
    (source / "sentences.jsonl").write_text(json.dumps({**row, "box": [-1, 4.5, 7, 6.5]}) + "\n")
    built = build("custom/mine", source, tmp_path / "built", images=source)
    out = export(built, "refer", tmp_path / "out")

    (annotation,) = json.loads((out / "mine/instances.json").read_text())["annotations"]
    assert annotation["segmentation"] == [[0.0, 4.5, 0.0, 10.0, 6.0, 10.0, 6.0, 4.5]]
    assert annotation["bbox"] == [0.0, 4.5, 6.0, 5.5]  # clipped by the build
    assert (out / "images/one/a.jpg").read_bytes() == (source / "one/a.jpg").read_bytes()
    coco = COCO(export(built, "coco", tmp_path / "coco") / "annotations/instances_val.json")
    with pytest.raises(UsageError, match=r"found no sentences\.csv"):  # a user's own data are a table
        build("custom/mine", out, tmp_path / "again")
    (found,) = rows_of(built)
    assert coco.annToMask(coco.anns[annotation["id"]]).sum() == found.record.area


def test_files_of_every_split_have_all_categories_of_ones_own_data(tmp_path: Path) -> None:
    source = tmp_path / "mine"
    source.mkdir()
    Image.new("RGB", (20, 10), "red").save(source / "a.jpg")
    rows = "a.jpg,it,train,1 1 4 4,cup\na.jpg,it,val,1 1 5 5,dog\na.jpg,it,test,2 2 5 5,\n"
    (source / "sentences.csv").write_text("image,sentence,split,box,category\n" + rows)
    built = build("custom/mine", source, tmp_path / "built")

    out = export(built, "coco", tmp_path / "coco")
    export(built, "refer", tmp_path / "refer", splits=("val",))

    every = [{"id": 1, "name": "cup"}, {"id": 2, "name": "dog"}, {"id": 3, "name": ""}]
    files = [out / f"annotations/instances_{split}.json" for split in ("train", "val", "test")]
    for path in (*files, tmp_path / "refer/mine/instances.json"):
        assert json.loads(path.read_text())["categories"] == every
    with pytest.raises(UsageError, match=r"--annotations: custom/mine was built from a table and .* remove the option"):
        export(built, "refer", tmp_path / "again", annotations=source)


def test_annotations_of_the_build_are_put_back_byte_for_byte(
    mini: dict[str, Path], shared_data: Path, tmp_path: Path
) -> None:
    source = shared_data / "refer-mini"
    out = export(mini["refcoco+/unc"], "refer", tmp_path / "out", annotations=source)

    for name in ("refcoco+/refs(unc).p", "refcoco+/instances.json"):
        assert (out / name).read_bytes() == (source / name).read_bytes()
    assert json.loads((out / REPORT_NAME).read_text())["differences"] == []
    with pytest.raises(UsageError, match=r"refs\(unc\)\.p: differs from the file that the build of refcoco/unc read"):
        export(mini["refcoco/unc"], "refer", tmp_path / "other", annotations=source / "refcoco+")
    with pytest.raises(UsageError, match=r"found no refcoco/refs\(unc\)\.p, expected the files that the build read"):
        export(mini["refcoco/unc"], "refer", tmp_path / "other", annotations=source / "images")
    assert not (tmp_path / "other").exists()


def read_cris(folder: Path, name: str, split: str) -> list[dict[str, Any]]:
    """CRIS's `RefDataset`, with pickle in place of what pyarrow dropped."""
    path = folder / "lmdb" / name / f"{split}.lmdb"
    with lmdb.open(str(path), subdir=path.is_dir(), readonly=True, lock=False) as base, base.begin() as transaction:
        keys = pickle.loads(transaction.get(b"__keys__"))
        assert pickle.loads(transaction.get(b"__len__")) == len(keys)
        return [pickle.loads(transaction.get(key)) for key in keys]


@pytest.mark.parametrize(
    ("dataset", "name"), list(zip(MINI, ("refcoco", "refcoco+", "refcocog_u", "refcocog_g"), strict=True))
)
def test_cris_reads_the_records_it_would_have_written(
    dataset: str, name: str, mini: dict[str, Path], shared_data: Path, tmp_path: Path
) -> None:
    spec = find_dataset(dataset)
    source = shared_data / "refer-mini"
    out = export(mini[dataset], "cris-lmdb", tmp_path / "out")
    refs = json.loads((source / spec.folder / f"refs({spec.split_by}).json").read_text())
    coco = COCO(source / spec.folder / "instances.json")
    order = [category["id"] for category in coco.dataset["categories"]]

    for split in {ref["split"] for ref in refs}:
        records = read_cris(out, name, split)
        anns = json.loads((out / "anns" / name / f"{split}.json").read_text())
        expected = [ref for ref in refs if ref["split"] == split]
        assert len(records) == len(anns) == len(expected)
        for record, ann, ref in zip(records, anns, expected, strict=True):
            file_name = coco.imgs[ref["image_id"]]["file_name"]
            sents = [sentence["sent"] for sentence in ref["sentences"]]
            annotation = coco.anns[ref["ann_id"]]
            left, top, width, height = map(int, annotation["bbox"])
            image = (source / "images/mscoco/images/train2014" / file_name).read_bytes()
            loose = (out / "masks" / name / f"{ref['ref_id']}.png").read_bytes()
            assert record == {
                "img": image, "mask": loose, "cat": order.index(ref["category_id"]), "seg_id": ref["ref_id"],
                "img_name": file_name, "num_sents": len(sents), "sents": sents,
            }  # fmt: skip
            drawn = np.asarray(Image.open(io.BytesIO(loose)))
            assert np.array_equal(drawn, coco.annToMask(annotation) * 255)
            assert ann == {
                "bbox": [left, top, left + width, top + height], "cat": record["cat"], "segment_id": ref["ref_id"],
                "img_name": file_name, "sentences_num": len(sents), "sentences": [
                    {"idx": number, "sent_id": sentence["sent_id"], "sent": sentence["sent"]}
                    for number, sentence in enumerate(ref["sentences"])
                ],
            }  # fmt: skip


def test_cris_gets_only_sentences_that_its_one_mask_answers(tiny: TinyRefer, tmp_path: Path) -> None:
    tiny.folder = "rrefcoco"
    words = {"sent_id": 1, "raw": "none", "sent": "none", "tokens": ["none"], "exist": False}
    tiny.refs[0]["sentences"].append(words)
    tiny.refs[1]["sentences"] = [{**words, "sent_id": 2}]
    build_dataset(tiny.options(tmp_path / "built"))
    out = export(tmp_path / "built", "cris-lmdb", tmp_path / "out", splits=("val",))

    assert [(record["seg_id"], record["sents"]) for record in read_cris(out, "rrefcoco", "val")] == [
        (90, ["the square"]), (70, ["the square"]),
    ]  # fmt: skip
    assert "2 sentences that name nothing" in json.loads((out / REPORT_NAME).read_text())["differences"][-1]
    assert sorted(path.name for path in (out / "lmdb/rrefcoco").iterdir()) == ["val.lmdb"]


def test_without_lmdb_the_message_says_what_to_install(
    built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "lmdb", None)

    with pytest.raises(UsageError, match=r"the package lmdb is not installed; pip install 'refseg\[lmdb\]'"):
        export(built, "cris-lmdb", tmp_path / "out")


def test_cocos_own_tools_draw_the_masks_of_the_dataset(sample: Path, tmp_path: Path) -> None:
    out = export(sample, "coco", tmp_path / "out")
    coco = COCO(out / "annotations/instances_test.json")
    refs = {ref["ref_id"]: ref for ref in coco.dataset["refs"]}

    assert len(coco.loadCats(coco.getCatIds())) == 80
    for row in rows_of(sample):
        record, ref = row.record, refs.pop(row.record.ref_id)
        size = record.height, record.width
        drawn = np.any([np.zeros(size, bool), *(coco.annToMask(coco.anns[key]) for key in ref["ann_ids"])], axis=0)
        runs = np.repeat(np.arange(len(record.mask.counts)) % 2, record.mask.counts)
        assert np.array_equal(drawn, runs.reshape(size[::-1]).T)
        assert [sentence["sent"] for sentence in ref["sentences"]] == [found.sent for found in record.sentences]
        assert (out / "images" / coco.imgs[record.image_id]["file_name"]).is_file()
    assert refs == {}


def test_run_lengths_in_parts_are_one_mask_for_cocos_tools(tiny: TinyRefer, tmp_path: Path) -> None:
    # Two parts of 3 and 4 pixels, one of them in both: 6 together.
    parts = [{"size": [10, 20], "counts": [0, 3, 197]}, {"size": [10, 20], "counts": [2, 4, 194]}]
    tiny.annotations[0]["segmentation"] = parts
    tiny.annotations[1] |= {"segmentation": parts[0], "iscrowd": 1}
    build_dataset(tiny.options(tmp_path / "built"))
    coco = COCO(export(tmp_path / "built", "coco", tmp_path / "out", images=False) / "annotations/instances_val.json")

    assert [int(coco.annToMask(coco.anns[key]).sum()) for key in (70, 80, 90)] == [6, 3, 16]
    assert coco.anns[80]["segmentation"] == parts[0]
    assert not (tmp_path / "out" / "images").exists()


def test_pooled_images_are_exported_like_any_other(tiny: TinyRefer, tmp_path: Path) -> None:
    build_dataset(tiny.options(tmp_path / "pool"))
    tiny.folder = "refcoco+"
    build_dataset(tiny.options(tmp_path / "built", images_from=(tmp_path / "pool",)))
    out = export(tmp_path / "built", "refer", tmp_path / "out")

    assert not list((tmp_path / "built").glob("*.tar"))
    for path in (out / "images/mscoco/images/train2014").iterdir():
        assert path.read_bytes() == (tiny.image_folder / path.name).read_bytes()


@pytest.mark.parametrize("to", ["refer", "coco"])
def test_a_name_that_leads_elsewhere_is_never_written(to: str, tiny: TinyRefer, tmp_path: Path) -> None:
    tiny.images[0]["file_name"] = "../../../" + tiny.images[0]["file_name"]
    build_dataset(tiny.options(tmp_path / "built"))
    before = sorted(tmp_path.rglob("*.jpg"))

    with pytest.raises(DatasetError, match=r"found file name '\.\./\.\./.*expected a path below the folder of images"):
        export(tmp_path / "built", to, tmp_path / "out")
    assert sorted(tmp_path.rglob("*.jpg")) == before


def test_two_images_of_one_name_are_not_written_over_each_other(tiny: TinyRefer, tmp_path: Path) -> None:
    tiny.images[1]["file_name"] = tiny.images[0]["file_name"]
    build_dataset(tiny.options(tmp_path / "built"))

    with pytest.raises(
        DatasetError, match=r"images (7 and 8|8 and 7) have the same file name, 'COCO_train2014_000000000007"
    ):
        export(tmp_path / "built", "refer", tmp_path / "out")


def test_a_dataset_at_a_url_is_exported_like_a_folder(built: Path, tmp_path: Path) -> None:
    names = ("refcoco/refs(unc).json", "refcoco/instances.json")
    here = export(built, "refer", tmp_path / "here")
    there = tmp_path / "there"
    export_dataset(ExportOptions(folder=built.as_uri(), to="refer", out=there))

    assert [(there / name).read_bytes() for name in names] == [(here / name).read_bytes() for name in names]
    assert len(list(there.rglob("*.jpg"))) == 5


@pytest.mark.parametrize("to", ["refer", "cris-lmdb", "coco", "parquet-hf"])
def test_a_damaged_image_ends_an_export_that_leaves_nothing(to: str, built: Path, tmp_path: Path) -> None:
    row = next(rows_of(built))
    with (built / row.location.shard).open("r+b") as file:
        file.seek(row.location.image_offset + 10)
        file.write(b"damaged")
    before = sorted(tmp_path.iterdir())

    match = rf"image {row.record.image_id} \(.*\): found a sample with XXH3 \w+, expected"
    with pytest.raises(DatasetError, match=match):
        export(built, to, tmp_path / "out")
    assert sorted(tmp_path.iterdir()) == before


def test_nothing_is_overwritten(built: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious").touch()

    with pytest.raises(UsageError, match="already exists, expected a new or empty folder"):
        export(built, "refer", tmp_path / "out")
    (tmp_path / "empty").mkdir()
    assert (export(built, "refer", tmp_path / "empty") / "refcoco").is_dir()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["built", "data", "empty", "out"]


def test_the_same_export_again_is_finished_and_another_one_is_refused(
    built: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    arguments = ["export", str(built), "--to", "coco", "--out", str(out)]
    assert main(arguments) == 0
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    capsys.readouterr()

    assert main(arguments) == 0
    assert capsys.readouterr().out.startswith(
        f"{out}: was already finished, nothing was changed: refcoco/unc as coco: 5 refs"
    )
    assert main([*arguments, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["was_complete"] is True
    for others, differing in (
        (["--to", "refer"], "format"),
        (["--no-images"], "images"),
        (["--splits", "val"], "splits"),
    ):
        assert main([*arguments, *others]) == 2
        assert f"--out {out}: already exists and holds another export ({differing})" in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before

    next(out.rglob("*.jpg")).unlink()
    assert main(arguments) == 2
    assert "holds this export, but" in capsys.readouterr().err
    (out / REPORT_NAME).write_text("{}")
    assert main(arguments) == 2
    assert f"{out / REPORT_NAME} is not the report of an export" in capsys.readouterr().err


def test_what_a_killed_export_left_behind_is_removed_by_the_next_one(built: Path, tmp_path: Path) -> None:
    for name in (".out.0000abcd.part", ".out.at-work0.part", ".other.0000abcd.part"):
        (tmp_path / name / "new").mkdir(parents=True)
    at_work = os.open(tmp_path / ".out.at-work0.part", os.O_RDONLY)
    lock(at_work)  # nobody holds the locks of the others

    export(built, "coco", tmp_path / "out")
    os.close(at_work)
    assert {path.name for path in tmp_path.glob(".*")} == {".out.at-work0.part", ".other.0000abcd.part"}


@pytest.mark.parametrize("name", ["out", "a/b/out", "empty"])
def test_nothing_is_written_into_a_dataset(name: str, built: Path, tmp_path: Path) -> None:
    (built / "empty").mkdir()
    (tmp_path / "link").symlink_to(built)
    before = sorted(built.rglob("*"))

    for out in (built / name, tmp_path / "link" / name):
        with pytest.raises(UsageError, match=f"--out {out}: is within the dataset {built}; give a folder outside"):
            export(built, "coco", out)
    with pytest.raises(UsageError, match="already exists, expected a new or empty folder"):
        export(built, "coco", built)
    assert sorted(built.rglob("*")) == before


@pytest.mark.parametrize("to", ["refer", "cris-lmdb", "coco", "parquet-hf"])
def test_a_full_disk_is_one_line_and_nothing_is_left(
    to: str, built: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(tmp_path.iterdir())
    with file_size_limit() as limit:
        limit(600)  # masks fit, and no picture does
        code = main(["export", str(built), "--to", to, "--out", str(tmp_path / "out")])

    (line,) = capsys.readouterr().err.splitlines()
    assert code == 1
    assert line.startswith(f"refseg: error: {tmp_path}")
    assert line.endswith("; check the path, its permissions and the free disk space")
    assert ("val.lmdb: cannot be written (" in line) == (to == "cris-lmdb")
    assert sorted(tmp_path.iterdir()) == before


def test_what_cannot_be_exported_is_refused(tiny: TinyRefer, built: Path, tmp_path: Path) -> None:
    tiny.folder = "refcoco+"
    tiny.refs[0]["split"] = "train"
    build_dataset(tiny.options(tmp_path / "plus"))
    build_dataset(tiny.options(tmp_path / "small", store="letterbox:8"))
    mix_datasets(MixOptions(members=(str(built), str(tmp_path / "plus")), out=tmp_path / "mix", allow_leak=True))
    for folder, changes, message in (
        (tmp_path / "small", {}, "pictures were reduced to fit 8 x 8 pixels"),
        (tmp_path / "mix", {}, r"is a mix.*export its members \(refcoco/unc, refcocoplus/unc\)"),
        (
            built,
            {"splits": ("val", "testB")},
            "built: refcoco/unc has no split 'testB'; expected some of val, testA",
        ),
        (built, {"to": "tfds"}, "--to tfds: expected one of refer, cris-lmdb, coco, parquet-hf"),
        (built, {"to": "parquet-hf", "images": False}, "--no-images: parquet-hf stores the images"),
        (built, {"to": "coco", "annotations": tmp_path}, "--annotations: expected --to refer, found coco"),
        (built, {"annotations": tmp_path, "splits": ("val",)}, "remove --splits"),
        (built, {"out": "s3://bucket/out"}, "expected a folder on this machine"),
    ):
        given: dict[str, Any] = {"folder": folder, "to": "refer", "out": tmp_path / "out", **changes}
        with pytest.raises(UsageError, match=message):
            export_dataset(ExportOptions(**given))
    with pytest.raises(DatasetError, match=r"found no refseg\.json, so the dataset is unfinished"):
        export(tmp_path / "data", "refer", tmp_path / "out")


def test_the_command_says_what_was_exported_and_what_differs(
    built: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        main(["export", str(built), "--to", "refer", "--splits", "testA", "--out", str(tmp_path / "a"), "--json"]) == 0
    )
    report = json.loads(capsys.readouterr().out)
    assert (report["dataset"], report["splits"], report["num_refs"], report["num_sentences"]) == (
        "refcoco/unc", ["testA"], 2, 2,
    )  # fmt: skip
    assert len(report["differences"]) == 5

    assert main(["export", str(built), "--to", "coco", "--no-images", "--out", str(tmp_path / "b")]) == 0
    assert capsys.readouterr().out.startswith(f"{tmp_path / 'b'}: refcoco/unc as coco: 5 refs, 5 sentences\n")
    (tmp_path / "c").mkdir()
    (tmp_path / "c/mine").touch()
    assert main(["export", str(built), "--to", "refer", "--out", str(tmp_path / "c")]) == 2
    assert "nothing is overwritten" in capsys.readouterr().err
