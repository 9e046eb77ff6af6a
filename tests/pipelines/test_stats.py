from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipelines.build import build_dataset
from pipelines.mix import MixOptions, mix_datasets
from pipelines.published import SplitCounts, published_counts
from pipelines.stats import stats_dataset
from refseg.cli import main
from refseg.dataset.descriptor import load_descriptor
from refseg.dataset.schema import DATASETS
from refseg.errors import DatasetError, UsageError

from .conftest import TinyRefer


def test_counts_lengths_and_areas_are_those_of_the_rows(tiny: Any, tmp_path: Path) -> None:
    tiny.refs[0]["sentences"] = [
        {"sent_id": 1, "sent": "the square"},  # 4 ids with SOS and EOS
        {"sent_id": 2, "sent": " ".join(["square"] * 19)},  # 21 ids
    ]
    tiny.refs[1]["ann_id"] = -1
    build_dataset(tiny.options(tmp_path / "out"))

    stats = stats_dataset(tmp_path / "out")
    val, test_a = stats.splits

    assert (stats.dataset, stats.mask_rule, stats.rejects) == ("refcoco/unc", "union", {})
    assert val.counts == SplitCounts(images=3, refs=3, sentences=4)
    assert val.published == SplitCounts(images=1500, refs=3811, sentences=10834)
    assert val.differing == ("images", "refs", "sentences")
    assert val.num_no_target == 1
    assert (val.words.mean, val.words.longest) == (25 / 4, 19)
    assert (val.tokens.mean, val.tokens.p95, val.tokens.longest) == (33 / 4, 21, 21)
    assert (val.num_nothing, val.num_box_only, val.num_pool_images) == (1, 0, 0)
    assert val.longer_than == {17: 1, 20: 1, 22: 0}
    assert set(val.area_quantiles.values()) == {16 / 200}
    assert (val.refs_per_image, val.sentences_per_ref) == (1.0, pytest.approx(4 / 3))
    assert test_a.counts == SplitCounts(images=2, refs=2, sentences=2)


def test_rejects_are_counted_by_reason(tiny: Any, tmp_path: Path) -> None:
    tiny.refs[0]["ann_id"] = tiny.refs[1]["ann_id"] = 4471
    build_dataset(tiny.options(tmp_path / "out", on_bad_sample="skip"))

    assert stats_dataset(tmp_path / "out").rejects == {"unknown_annotation": 2}


def test_published_counts_are_of_known_splits_and_add_up() -> None:
    for dataset_id, spec in DATASETS.items():
        assert set(published_counts(dataset_id)) in (set(), set(spec.splits))

    def total(dataset_id: str, name: str) -> int:
        return sum(getattr(counts, name) for counts in published_counts(dataset_id).values())

    # images, refs and sentences of the whole sets, as published
    assert [total("refcoco/unc", name) for name in ("images", "refs", "sentences")] == [19994, 50000, 142210]
    assert [total("refcocoplus/unc", name) for name in ("images", "refs", "sentences")] == [19992, 49856, 141564]
    assert [total("refcocog/umd", name) for name in ("images", "refs", "sentences")] == [25799, 49822, 95010]
    # the Google partitions share images between splits
    assert total("refcoco/google", "refs") == 50000
    assert total("refcocog/google", "refs") == 49822
    assert total("refcocog/google", "sentences") == 95010


def test_only_finished_datasets_are_counted(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nowhere: no such folder"):
        stats_dataset(tmp_path / "nowhere")
    with pytest.raises(DatasetError, match="the dataset is unfinished"):
        stats_dataset(tmp_path)


@pytest.mark.parametrize("damage", [b"", b"PAR1 but no more PAR1", None])
def test_a_damaged_manifest_is_named(tiny: Any, tmp_path: Path, damage: bytes | None) -> None:
    build_dataset(tiny.options(tmp_path / "out"))
    path = tmp_path / "out" / "val-00000.parquet"
    path.unlink()
    if damage is not None:
        path.write_bytes(damage)

    with pytest.raises(DatasetError, match=r"val-00000\.parquet: found (\d+ bytes|no such file).*`refseg verify`"):
        stats_dataset(tmp_path / "out")


def test_counts_that_differ_and_were_accepted_are_told(
    tiny: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    build_dataset(tiny.options(out))
    source = SplitCounts(images=3, refs=4, sentences=5)  # one ref more than there are rows
    descriptor = replace(load_descriptor(out), source_counts={"val": source}, counts_accepted=True)
    (out / "refseg.json").write_text(descriptor.to_json())

    val = stats_dataset(out).splits[0]
    assert (val.counts.refs, val.source, val.differing) == (3, source, ("images", "refs", "sentences"))
    assert main(["stats", str(out)]) == 0
    assert "val    refs               3         4      3,811  differs, accepted\n" in capsys.readouterr().out


def test_a_mix_is_counted_by_its_members(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for folder in ("refcoco", "refcoco+"):
        # Images 7 and 8 to train on in both; image 9 is in RefCOCO's val, and RefCOCO+ has it in train.
        tiny = TinyRefer(root=tmp_path / f"data-{folder}", folder=folder)
        for image_id in (7, 8):
            tiny.add_image(image_id, ("train", "train"))
        tiny.add_image(9, ("val",) if folder == "refcoco" else ("train",))
        build_dataset(tiny.options(tmp_path / folder))
    members = (tmp_path / "refcoco", tmp_path / "refcoco+")
    mix_datasets(MixOptions(members=members, out=tmp_path / "mix", weights=(1.0, 2.0)))

    stats = stats_dataset(f"file://{tmp_path}/mix")

    (train,) = stats.splits
    # An image of two members is two images, as the loader has it.
    assert (train.counts, train.num_pool_images) == (SplitCounts(images=4, refs=8, sentences=8), 4)
    first, second = stats.members
    assert (first.dataset, first.weight, first.counts) == (
        "refcoco/unc",
        1.0,
        SplitCounts(images=2, refs=4, sentences=4),
    )
    assert (second.weight, second.dropped_refs, second.dropped_images) == (2.0, 1, 1)
    assert second.counts == first.counts
    assert stats.pools == {"refcoco/unc": "../refcoco", "refcocoplus/unc": "../refcoco+"}
    assert main(["stats", str(tmp_path / "mix")]) == 0
    assert "refcocoplus/unc, weight 2: 2 images, 4 refs, 4 sentences; 1 ref of 1 image dropped, 0 leaked" in (
        capsys.readouterr().out
    )


def test_areas_and_lengths_equal_a_plain_count(tiny: Any, tmp_path: Path) -> None:
    for ref, number in zip(tiny.refs, (1, 30, 2), strict=False):
        ref["sentences"] = [
            {"sent_id": 100 * ref["ref_id"] + i, "sent": " ".join(["red"] * (i + 1))} for i in range(number)
        ]
    build_dataset(tiny.options(tmp_path / "out"))

    val = stats_dataset(tmp_path / "out").splits[0]

    lengths = sorted([1, *range(1, 31), 1, 2])
    assert (val.words.mean, val.words.longest) == (pytest.approx(sum(lengths) / 33), 30)
    assert val.words.p95 == lengths[31]  # 0.95 * 33 = 31.35: at least 32 sentences are no longer
    assert val.tokens.longest == 32
    assert val.longer_than == {17: 15, 20: 12, 22: 10}  # 18 to 32 ids
