from pathlib import Path
from typing import Any

import pytest

from pipelines.build import build_dataset
from pipelines.published import SplitCounts, published_counts
from pipelines.stats import stats_dataset
from refseg.errors import DatasetError, UsageError
from refseg.schema import DATASETS


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
    with pytest.raises(DatasetError, match="no finished dataset"):
        stats_dataset(tmp_path)


@pytest.mark.parametrize("damage", [b"", b"PAR1 but no more PAR1", None])
def test_a_damaged_manifest_is_named(tiny: Any, tmp_path: Path, damage: bytes | None) -> None:
    build_dataset(tiny.options(tmp_path / "out"))
    path = tmp_path / "out" / "val-00000.parquet"
    path.unlink()
    if damage is not None:
        path.write_bytes(damage)

    with pytest.raises(DatasetError, match=r"val-00000\.parquet: cannot be read as Parquet .*; see `refseg verify`"):
        stats_dataset(tmp_path / "out")
