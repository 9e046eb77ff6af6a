"""Clients see the same through our REFER as through the original files: images, masks, sentences, in one order."""

from pathlib import Path

import numpy as np
import pytest

from pipelines.export.run import ExportOptions, export_dataset
from refseg.compat.refer import G_REFER, REFER, MergedREFER

from .clients import CLIENTS, GENERAL_CLIENTS, LISAS_IMAGES, Client, caris, dmmi, files, lavt, lisa
from .conftest import OVERLAPPING, SQUARE, WriteSource, annotation, build, ref
from .plain_refer import PlainG_REFER, PlainMergedREFER, PlainREFER

MINI = [
    ("refcoco", "unc", ("val", "testA", "test")),
    ("refcoco+", "unc", ("val", "testA")),
    ("refcocog", "umd", ("test",)),
    ("refcocog", "google", ("val",)),
]


def with_images(built: Path, root: Path) -> Path:
    """A root with the built datasets and the folder in which LISA looks for images."""
    (root / LISAS_IMAGES).mkdir(parents=True)
    for folder in [built] if (built / "refseg.json").exists() else built.iterdir():
        (root / folder.name).symlink_to(folder)
    return root


@pytest.mark.slow
@pytest.mark.parametrize("client", CLIENTS, ids=lambda client: client.name)
@pytest.mark.parametrize(("dataset", "split_by", "splits"), MINI)
def test_a_client_sees_the_same_on_real_data(
    client: Client,
    dataset: str,
    split_by: str,
    splits: tuple[str, ...],
    mini_shards: Path,
    shared_data: Path,
    tmp_path: Path,
) -> None:
    root, source = with_images(mini_shards, tmp_path / "root"), shared_data / "refer-mini"
    ours = client.open(MergedREFER if client.merges else REFER, root, dataset, split_by)
    plain = client.open(PlainMergedREFER if client.merges else PlainREFER, source, dataset, split_by)

    for split in splits:
        if client.name == "rela" and split == "test" and dataset == "refcoco":
            continue  # it asserts the split's exact name
        seen = list(client.see(ours, split, root))
        assert len(seen) > 1
        assert seen == list(client.see(plain, split, source))


@pytest.mark.parametrize(("dataset", "split_by", "splits"), MINI)
def test_who_reads_the_files_themselves_sees_the_same_in_an_export(
    dataset: str, split_by: str, splits: tuple[str, ...], mini_shards: Path, shared_data: Path, tmp_path: Path
) -> None:
    folder = mini_shards / f"{dataset.replace('+', 'plus')}-{split_by}"
    export_dataset(ExportOptions(folder=folder, to="refer", out=tmp_path / "out"))

    for split in set(splits) - ({"test"} if dataset == "refcoco" else set()):
        seen = list(files(tmp_path / "out", dataset, split_by, split))
        assert len(seen) > 1
        assert seen == list(files(shared_data / "refer-mini", dataset, split_by, split))


def test_parts_that_overlap_are_summed_as_in_refer_and_merged_as_in_caris(
    write_source: WriteSource, tmp_path: Path
) -> None:
    refs = [ref(2, 9, 90), ref(5, 7, 70), ref(6, 7, 71)]
    annotations = [annotation(70, 7, OVERLAPPING), annotation(71, 7, [SQUARE]), annotation(90, 9, [SQUARE])]
    source = write_source("refcoco", "refs(unc).json", refs, annotations)
    folder = build("refcoco/unc", source, tmp_path / "built")
    summed, merged = REFER(folder, "refcoco", "unc"), MergedREFER(folder, ref_root=None, dataset="refcoco")
    plain = PlainREFER(source, "refcoco", "unc")

    assert list(lavt(summed, "val")) == list(lavt(plain, "val"))
    # 6 x 4 and 4 x 4 pixels with 2 x 4 in both: 40 counted twice, 32 once.
    assert np.unique(summed.getMask(summed.Refs[5])["mask"], return_counts=True)[1].tolist() == [168, 24, 8]
    assert summed.getMask(summed.Refs[5])["area"] == 40
    assert merged.getMask(merged.Refs[5])["mask"].sum() == merged.getMask(merged.Refs[5])["area"] == 32
    assert next(seen for seen in caris(merged, "val") if isinstance(seen, bytes) and len(seen) == 200).count(1) == 16


def gref_source(write_source: WriteSource) -> Path:
    runs = {"size": [10, 20], "counts": [30, 40, 130]}
    annotations = [
        annotation(70, 7, [SQUARE]), annotation(71, 7, OVERLAPPING, category_id=3),
        annotation(904700010881, 7, runs, iscrowd=1), annotation(90, 9, [SQUARE]),
    ]  # fmt: skip
    refs = [
        ref(4, 9, [90], category_id=[1], no_target=False),
        ref(5, 9, [-1], category_id=[-1], no_target=True),
        ref(0, 7, [70, 71], category_id=[1, 3], no_target=False),
        ref(1, 7, [71, 904700010881], category_id=[3, 1], no_target=False),
        ref(2, 7, [-1], category_id=[-1], no_target=True, split="testA"),
    ]
    return write_source("grefcoco", "grefs(unc).json", refs, annotations)


@pytest.mark.parametrize("split", ["val", "testA"])
def test_several_targets_none_and_crowds_are_seen_as_through_grefer(
    split: str, write_source: WriteSource, tmp_path: Path
) -> None:
    source = gref_source(write_source)
    root = with_images(build("grefcoco/unc", source, tmp_path / "built"), tmp_path / "root")
    for client in GENERAL_CLIENTS:
        ours = client.open(G_REFER, root, "grefcoco", "unc")
        plain = client.open(PlainG_REFER, source, "grefcoco", "unc")
        assert list(client.see(ours, split, root)) == list(client.see(plain, split, source))
    for ref_id in plain.getRefIds(split):
        found, expected = (opened.getMaskByRef(opened.Refs[ref_id], merge=False) for opened in (ours, plain))
        if not plain.Refs[ref_id]["no_target"]:
            assert [item["area"] for item in found] == [item["area"] for item in expected]
            assert all(np.array_equal(one["mask"], other["mask"]) for one, other in zip(found, expected, strict=True))


def test_r_refcoco_tells_which_sentences_exist(write_source: WriteSource, tmp_path: Path) -> None:
    first = ref(3, 7, 70)
    first["sentences"][1]["exist"] = False
    first["sentences"][0]["exist"] = True
    source = write_source("rrefcoco", "refs(unc).json", [first], [annotation(70, 7, [SQUARE])])
    ours = REFER(build("rrefcoco/unc", source, tmp_path / "built"), "rrefcoco", "unc")

    assert list(lavt(ours, "val")) == list(lavt(PlainREFER(source, "rrefcoco", "unc"), "val"))
    assert [sentence["exist"] for sentence in ours.Refs[3]["sentences"]] == [True, False]


def test_ref_zom_counts_its_targets(write_source: WriteSource, tmp_path: Path) -> None:
    refs = [ref(1, 7, [70, 71], source="many"), ref(2, 7, 70, source="one"), ref(3, 7, 70, source="zero")]
    annotations = [annotation(70, 7, [SQUARE]), annotation(71, 7, OVERLAPPING)]
    source = write_source("ref-zom", "refs(final).json", refs, annotations)
    ours = MergedREFER(build("refzom/final", source, tmp_path / "built"), "ref-zom", "final")

    assert [seen[1] for seen in dmmi(ours, "val") if len(seen) == 2 and isinstance(seen[1], str)] == [
        "many",
        "one",
        "zero",
    ]
    assert [ours.Refs[ref_id]["source"] for ref_id in ours.getRefIds(split="val")] == ["many", "one", "zero"]
    # All of the square lies within the first part of the other.
    assert [int(ours.getMask(ours.Refs[ref_id])["mask"].sum()) for ref_id in (1, 2, 3)] == [32, 16, 0]
    assert [len(box) for box in map(ours.getRefBox, (1, 2, 3))] == [2, 4, 0]


def test_refclefs_run_lengths_are_text_again(write_source: WriteSource, tmp_path: Path) -> None:
    packed = {"size": [10, 20], "counts": "g064000000000e3"}
    refs = [ref(1, 7, 70)]
    source = write_source("refclef", "refs(unc).json", refs, [annotation(70, 7, [packed])], name="{}.jpg")
    build("refclef/unc", source, tmp_path / "root" / "built")
    images = tmp_path / "root/images/saiapr_tc-12"  # where LISA looks
    images.mkdir(parents=True)
    ours = REFER(tmp_path / "root", "refclef", "unc")

    (part,) = ours.Anns[70]["segmentation"]
    assert part == packed
    plain = PlainREFER(source, "refclef", "unc")
    assert list(lisa(ours, "val", images)) == list(lisa(plain, "val", source / LISAS_IMAGES))
