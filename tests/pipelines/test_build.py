import errno
import fcntl
import json
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipelines import build, build_plan
from pipelines.build import build_dataset
from pipelines.verify import verify_dataset
from refseg.dataset.descriptor import load_descriptor
from refseg.errors import AnnotationError, BuildError, DatasetError, ImageError, RefsegError, UsageError

from .conftest import read_manifest

Contents = Callable[[Path], dict[str, bytes]]


def test_building_twice_gives_the_same_bytes(tiny: Any, tmp_path: Path, contents: Contents) -> None:
    for name in ("once", "twice"):
        build_dataset(tiny.options(tmp_path / name))

    once = contents(tmp_path / "once")
    assert once == contents(tmp_path / "twice")
    assert sorted(once) == [
        "refseg.json",
        "testA-00000.parquet", "testA-00000.tar", "testA.index.safetensors",
        "val-00000.parquet", "val-00000.tar",
        "val-00001.parquet", "val-00001.tar", "val.index.safetensors",
    ]  # fmt: skip


def test_where_sources_lie_does_not_change_the_bytes(tiny: Any, tmp_path: Path, contents: Contents) -> None:
    build_dataset(tiny.options(tmp_path / "a"))
    moved = tmp_path / "elsewhere" / "mscoco" / "train2014"
    moved.parent.mkdir(parents=True)
    tiny.image_folder.rename(moved)
    build_dataset(tiny.options(tmp_path / "b", images=moved))

    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_the_seed_changes_the_order_and_nothing_else(tiny: Any, tmp_path: Path) -> None:
    orders = set()
    for seed in range(4):
        out = tmp_path / str(seed)
        build_dataset(tiny.options(out, seed=seed, images_per_shard=8))
        orders.add(tuple(row.record.image_id for row in read_manifest(out / "val-00000.parquet")))
        assert verify_dataset(out) == []

    assert len(orders) > 1
    assert {tuple(sorted(order)) for order in orders} == {(7, 8, 9)}


def test_an_image_in_two_splits_gets_two_keys(tiny: Any, tmp_path: Path) -> None:
    tiny.folder, tiny.split_by = "refcocog", "google"
    tiny.refs, tiny.images, tiny.annotations = [], [], []
    tiny.add_image(7, ("train", "val"))
    tiny.add_image(8, ("val",))

    build_dataset(tiny.options(tmp_path / "out"))

    descriptor = load_descriptor(tmp_path / "out")
    assert [(shard.name, shard.num_images, shard.num_refs) for shard in descriptor.shards] == [
        ("train-00000", 1, 1),
        ("val-00000", 2, 2),
    ]
    assert b"000000000007.jpg" in (tmp_path / "out/train-00000.tar").read_bytes()
    val = (tmp_path / "out/val-00000.tar").read_bytes()
    assert b"000000000007_1.jpg" in val
    assert b"000000000008.jpg" in val
    assert verify_dataset(tmp_path / "out") == []


def test_only_the_splits_asked_for_are_built(tiny: Any, tmp_path: Path) -> None:
    build_dataset(tiny.options(tmp_path / "out", splits=("testA",)))

    assert load_descriptor(tmp_path / "out").splits == ("testA",)
    with pytest.raises(UsageError, match=r"--splits train: .* has no refs of it, expected val, testA"):
        build_dataset(tiny.options(tmp_path / "other", splits=("train",)))


def test_the_descriptor_names_rule_sources_and_licences(tiny: Any, tmp_path: Path) -> None:
    build_dataset(tiny.options(tmp_path / "out", mask_rule="legacy"))

    descriptor = load_descriptor(tmp_path / "out")
    assert descriptor.mask_rule == "legacy"
    assert [source.name for source in descriptor.sources] == ["refcoco/refs(unc).p", "refcoco/instances.json"]
    assert descriptor.licences == ("images: Attribution License http://creativecommons.org/licenses/by/2.0/",)
    assert descriptor.plan_keys["seed"] == "0"


def test_a_finished_build_is_checked_and_left_alone(tiny: Any, tmp_path: Path, contents: Contents) -> None:
    out = tmp_path / "out"
    assert not build_dataset(tiny.options(out)).was_complete
    before = contents(out)
    times = {path.name: path.stat().st_mtime_ns for path in out.iterdir()}

    assert build_dataset(tiny.options(out)).was_complete

    assert contents(out) == before
    assert {path.name: path.stat().st_mtime_ns for path in out.iterdir()} == times


def test_a_finished_build_outlives_an_upgrade_but_a_begun_one_does_not(
    tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Another Parquet writer gives other bytes, and a folder must not contain files of both.
    build_dataset(tiny.options(tmp_path / "finished"))
    _interrupt_build(tiny, tmp_path / "begun")
    monkeypatch.setattr(build_plan.pa, "__version__", "0.1")

    assert build_dataset(tiny.options(tmp_path / "finished")).was_complete
    with pytest.raises(BuildError, match=r"inputs \(pyarrow: .*, now 0\.1\)"):
        build_dataset(tiny.options(tmp_path / "begun"))


def test_a_finished_build_that_lost_a_file_is_named(tiny: Any, tmp_path: Path) -> None:
    build_dataset(tiny.options(tmp_path / "out"))
    (tmp_path / "out/val-00000.tar").unlink()

    with pytest.raises(BuildError, match=r"the finished dataset is damaged: val-00000\.tar: found no such file"):
        build_dataset(tiny.options(tmp_path / "out"))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"seed": 3}, "seed: 0, now 3"),
        ({"mask_rule": "legacy"}, "mask_rule: union, now legacy"),
        ({"images_per_shard": 1}, "images_per_shard: 2, now 1"),
        ({"splits": ("val",)}, "splits: val testA, now val"),
    ],
)
def test_another_build_in_a_finished_or_begun_folder_is_refused_by_name(
    tiny: Any, tmp_path: Path, contents: Contents, changes: dict[str, object], named: str
) -> None:
    finished, begun = tmp_path / "finished", tmp_path / "begun"
    build_dataset(tiny.options(finished))
    _interrupt_build(tiny, begun)

    for out in (finished, begun):
        before = contents(out)
        with pytest.raises(
            BuildError, match=rf"was built or started with other inputs \({named}.*\); give the same inputs"
        ):
            build_dataset(tiny.options(out, **changes))
        assert contents(out) == before


def test_changed_annotations_and_images_are_other_inputs(tiny: Any, tmp_path: Path) -> None:
    build_dataset(tiny.options(tmp_path / "out"))
    tiny.refs[0]["sentences"][0]["sent"] = "a square"
    with pytest.raises(BuildError, match=r"source refcoco/refs\(unc\)\.p: [0-9a-f]{12}, now [0-9a-f]{12}\)"):
        build_dataset(tiny.options(tmp_path / "out"))
    tiny.refs[0]["sentences"][0]["sent"] = "the square"
    with tiny.image_path(7).open("ab") as file:
        file.write(b"\0")
    with pytest.raises(BuildError, match=r"image names and sizes: "):
        build_dataset(tiny.options(tmp_path / "out"))


def _interrupt_build(tiny: Any, out: Path) -> None:
    """Raise KeyboardInterrupt after the first shard."""

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_dataset(tiny.options(out), progress=stop)


def test_an_interrupted_build_goes_on_to_the_same_bytes(
    tiny: Any, tmp_path: Path, contents: Contents, monkeypatch: pytest.MonkeyPatch
) -> None:
    build_dataset(tiny.options(tmp_path / "whole"))
    out = tmp_path / "out"
    _interrupt_build(tiny, out)
    assert (out / "val-00000.tar").exists()
    assert not (out / "refseg.json").exists()
    with pytest.raises(DatasetError, match="the dataset is unfinished"):
        load_descriptor(out)
    with pytest.raises(DatasetError, match=r"val-00000\.tar: is not a folder; expected a dataset made by"):
        load_descriptor(out / "val-00000.tar")

    rebuilt = []
    build_shard = build.build_shard
    monkeypatch.setattr(build, "build_shard", lambda task: rebuilt.append(task.shard.name) or build_shard(task))
    build_dataset(tiny.options(out))

    assert rebuilt == ["val-00001", "testA-00000"]
    assert contents(out) == contents(tmp_path / "whole")


def test_a_shard_that_changed_since_its_receipt_is_built_again(tiny: Any, tmp_path: Path, contents: Contents) -> None:
    build_dataset(tiny.options(tmp_path / "whole"))
    out = tmp_path / "out"
    _interrupt_build(tiny, out)
    data = bytearray((out / "val-00000.tar").read_bytes())
    data[600] ^= 1
    (out / "val-00000.tar").write_bytes(data)
    (out / ".build/receipts/val-00001.json").write_text("{")

    build_dataset(tiny.options(out))

    assert contents(out) == contents(tmp_path / "whole")


def test_two_builds_in_one_folder_do_not_mix(tiny: Any, tmp_path: Path) -> None:
    out = tmp_path / "out"
    _interrupt_build(tiny, out)
    with (out / ".build/lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(BuildError, match="another build uses this folder"):
            build_dataset(tiny.options(out))
    build_dataset(tiny.options(out))


def test_a_folder_that_is_not_ours_is_refused_and_left_alone(tiny: Any, tmp_path: Path, contents: Contents) -> None:
    out = tmp_path / "photos"
    out.mkdir()
    (out / "holiday.jpg").write_bytes(b"mine")
    with pytest.raises(UsageError, match=r"--out .*photos: found holiday\.jpg and no unfinished build"):
        build_dataset(tiny.options(out))
    assert contents(out) == {"holiday.jpg": b"mine"}
    with pytest.raises(UsageError, match="is a file, expected a folder"):
        build_dataset(tiny.options(out / "holiday.jpg"))


def _truncate(tiny: Any) -> None:
    data = tiny.image_path(12).read_bytes()
    tiny.image_path(12).write_bytes(data[:-100])


def _behead(tiny: Any) -> None:
    tiny.image_path(12).write_bytes(tiny.image_path(12).read_bytes()[:100])


def _resize(tiny: Any) -> None:
    Image.new("RGB", (8, 8)).save(tiny.image_path(12))


def _to_png(tiny: Any) -> None:
    Image.new("RGB", (20, 10)).save(tiny.image_path(12), format="png")


BAD_INPUTS: list[tuple[Callable[[Any], object], type[RefsegError], str]] = [
    (
        lambda tiny: tiny.image_path(12).unlink(),
        ImageError,
        r"found no file COCO_train2014_000000000012\.jpg, or one with",
    ),
    (_truncate, ImageError, r"image 12: COCO_train2014_000000000012\.jpg cannot be decoded completely"),
    (_behead, ImageError, "ends or is damaged within its first 100 bytes"),
    (_resize, ImageError, "is 8 x 8 pixels, expected 20 x 10 as annotated"),
    (_to_png, ImageError, "starts with 89 50 4e 47, expected a JPEG"),
    (lambda tiny: tiny.image_path(12).write_bytes(b""), ImageError, "is empty, expected a JPEG"),
    (
        lambda tiny: tiny.refs[4].update(ann_id=4471),
        AnnotationError,
        "ref 120: annotation 4471 is not in instances.json",
    ),
]


@pytest.mark.parametrize(
    ("spoil", "error", "message", "workers"), [*((*bad, 1) for bad in BAD_INPUTS), (*BAD_INPUTS[1], 2)]
)
def test_the_first_fault_ends_the_build_and_leaves_nothing(
    tiny: Any, tmp_path: Path, spoil: Callable[[Any], object], error: type[RefsegError], message: str, workers: int
) -> None:
    spoil(tiny)

    with pytest.raises(error, match=message) as caught:
        build_dataset(tiny.options(tmp_path / "new" / "out", workers=workers))

    assert "\n" not in str(caught.value)
    assert "refcoco/unc" in str(caught.value)
    assert not (tmp_path / "new").exists()


def test_an_empty_folder_given_as_out_is_kept_empty_after_a_fault(tiny: Any, tmp_path: Path) -> None:
    _truncate(tiny)
    (tmp_path / "out").mkdir()

    with pytest.raises(ImageError):
        build_dataset(tiny.options(tmp_path / "out"))

    assert list((tmp_path / "out").iterdir()) == []


def test_skipped_refs_are_kept_with_their_reasons(tiny: Any, tmp_path: Path, contents: Contents) -> None:
    _truncate(tiny)
    tiny.image_path(11).unlink()
    tiny.refs[0]["ann_id"] = 4471

    result = build_dataset(tiny.options(tmp_path / "out", on_bad_sample="skip"))

    rows = pq.read_table(tmp_path / "out/rejects.parquet").to_pylist()
    assert [(row["split"], row["ref_id"], row["reason"]) for row in rows] == [
        ("testA", 110, "missing_image"),
        ("testA", 120, "truncated_image"),
        ("val", 70, "unknown_annotation"),
    ]
    assert result.descriptor.num_rejects == 3
    assert sum(shard.num_refs for shard in result.descriptor.shards) + 3 == 5
    assert result.descriptor.splits == ("val",)  # no image of testA is left
    assert verify_dataset(tmp_path / "out") == []
    build_dataset(tiny.options(tmp_path / "again", on_bad_sample="skip", workers=2))
    assert contents(tmp_path / "again") == contents(tmp_path / "out")


def test_a_ref_with_the_id_of_an_earlier_one_is_rejected_wherever_its_image_lies(tiny: Any, tmp_path: Path) -> None:
    tiny.refs[1]["ref_id"] = tiny.refs[4]["ref_id"] = tiny.refs[0]["ref_id"]

    with pytest.raises(AnnotationError, match=r"ref 70: an earlier ref has the same id.* \(2 refs have faults\)"):
        build_dataset(tiny.options(tmp_path / "out"))
    result = build_dataset(tiny.options(tmp_path / "out", on_bad_sample="skip", images_per_shard=1))

    rows = pq.read_table(tmp_path / "out/rejects.parquet").to_pylist()
    assert [(row["image_id"], row["reason"]) for row in rows] == [(12, "duplicate_ref_id"), (8, "duplicate_ref_id")]
    # Shards without a sample leave no gap in the numbers.
    assert [shard.name for shard in result.descriptor.shards] == ["val-00000", "val-00001", "testA-00000"]


def test_refs_to_an_id_with_two_contents_are_rejected(tiny: Any, tmp_path: Path) -> None:
    tiny.images.append({**tiny.images[0], "width": 1})
    tiny.annotations.append({**tiny.annotations[1], "area": 17})

    with pytest.raises(AnnotationError) as caught:
        build_dataset(tiny.options(tmp_path / "out"))
    build_dataset(tiny.options(tmp_path / "out", on_bad_sample="skip"))

    assert str(caught.value).splitlines() == [
        "refcoco/unc ref 70: image 7 is in instances.json twice with different contents; fetch the file again "
        "(2 refs have faults)",
        "  refcoco/unc ref 80: annotation 80 is in instances.json twice with different contents; fetch the file again",
    ]
    rows = pq.read_table(tmp_path / "out/rejects.parquet").to_pylist()
    assert [(row["ref_id"], row["reason"]) for row in rows] == [(70, "malformed_image"), (80, "malformed_annotation")]


def test_refs_of_unknown_splits_are_rejected_and_those_of_other_splits_left_out(tiny: Any, tmp_path: Path) -> None:
    tiny.refs[0]["split"] = "test"

    result = build_dataset(tiny.options(tmp_path / "out", splits=("testA",), on_bad_sample="skip"))

    rows = pq.read_table(tmp_path / "out/rejects.parquet").to_pylist()
    assert [(row["split"], row["reason"]) for row in rows] == [("test", "unknown_split")]
    assert result.descriptor.splits == ("testA",)


def test_more_faults_than_allowed_end_the_build(tiny: Any, tmp_path: Path) -> None:
    _truncate(tiny)
    tiny.refs[0]["ann_id"] = 4471

    with pytest.raises(BuildError, match=r"found 2 refs with faults, more than --max-bad 1; the first: .* 4471 is not"):
        build_dataset(tiny.options(tmp_path / "out", on_bad_sample="skip", max_bad=1))
    assert not (tmp_path / "out").exists()
    assert build_dataset(tiny.options(tmp_path / "out", on_bad_sample="skip", max_bad=2)).descriptor.num_rejects == 2


def test_a_dataset_of_faults_alone_is_none(tiny: Any, tmp_path: Path) -> None:
    for ref in tiny.refs:
        ref["ann_id"] = 4471

    with pytest.raises(BuildError, match=r"all 5 refs have faults"):
        build_dataset(tiny.options(tmp_path / "out", on_bad_sample="skip"))
    assert not (tmp_path / "out").exists()


def test_images_that_are_nowhere_are_a_wrong_path(tiny: Any, tmp_path: Path) -> None:
    shutil.rmtree(tiny.image_folder)
    with pytest.raises(UsageError, match=r"found none of the images \(COCO_train2014_000000000007\.jpg, \.\.\.\)"):
        build_dataset(tiny.options(tmp_path / "out"))
    with pytest.raises(UsageError, match=r"--images .*nowhere: no such folder"):
        build_dataset(tiny.options(tmp_path / "out", images=tmp_path / "nowhere"))
    with pytest.raises(UsageError, match="unknown dataset 'refcoco'; expected one of refcoco/unc, refcoco/google"):
        build_dataset(tiny.options(tmp_path / "out", dataset="refcoco"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mask_rule": "sum"}, "--mask-rule sum: expected union or legacy"),
        ({"workers": 0}, "--workers 0: expected 1 or more"),
        ({"images_per_shard": 0}, "--images-per-shard 0"),
        ({"max_bad": 3}, "--max-bad needs --on-bad-sample skip"),
    ],
)
def test_wrong_options_are_named(tiny: Any, tmp_path: Path, changes: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        tiny.options(tmp_path / "out", **changes)


def test_an_image_that_changes_while_building_ends_the_build(tiny: Any, tmp_path: Path) -> None:
    options = tiny.options(tmp_path / "out")

    def spoil(done: int, total: int) -> None:
        with tiny.image_path(12).open("ab") as file:
            file.write(b"more")

    with pytest.raises(BuildError, match=r"000012\.jpg: found \d+ bytes, expected \d+ as at the start of the build"):
        build_dataset(options, progress=spoil)
    assert not (tmp_path / "out").exists()


def test_grey_and_cmyk_jpegs_are_fine(tiny: Any, tmp_path: Path) -> None:
    Image.new("L", (20, 10)).save(tiny.image_path(7))
    Image.new("CMYK", (20, 10)).save(tiny.image_path(8))

    build_dataset(tiny.options(tmp_path / "out"))

    assert verify_dataset(tmp_path / "out") == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_leaves_a_build_that_goes_on(
    tiny: Any, tmp_path: Path, contents: Contents, monkeypatch: pytest.MonkeyPatch
) -> None:
    build_dataset(tiny.options(tmp_path / "whole"))
    out = tmp_path / "out"
    build_shard = build.build_shard

    def fill_up(task: Any) -> Any:
        if task.shard.name == "val-00001":
            with Path("/dev/full").open("wb") as file:
                file.write(bytes(1 << 20))
        return build_shard(task)

    with monkeypatch.context() as patch:
        patch.setattr(build, "build_shard", fill_up)
        with pytest.raises(
            BuildError, match=r"cannot be written .*No space left on device.* run the same command to resume"
        ):
            build_dataset(tiny.options(out))
    assert not (out / "refseg.json").exists()

    build_dataset(tiny.options(out))
    assert contents(out) == contents(tmp_path / "whole")


def test_shards_are_logged_where_nobody_shows_progress(
    tiny: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="pipelines"):
        build_dataset(tiny.options(tmp_path / "out"))

    assert "val-00001: 2 images, 2 refs, 0.0 MB (2 of 3 shards)" in caplog.text
    steps: list[tuple[int, int]] = []
    build_dataset(tiny.options(tmp_path / "shown"), progress=lambda done, total: steps.append((done, total)))
    assert steps == [(1, 5), (3, 5), (5, 5)]


def test_the_plan_is_on_disk_while_shards_are_built(tiny: Any, tmp_path: Path) -> None:
    _interrupt_build(tiny, tmp_path / "out")

    written = json.loads((tmp_path / "out/.build/plan.json").read_text())

    assert [(shard["name"], shard["num_samples"]) for shard in written["shards"]] == [
        ("val-00000", 1),
        ("val-00001", 2),
        ("testA-00000", 2),
    ]


def test_a_finished_dataset_on_a_read_only_file_system_is_finished(
    tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "out"
    build_dataset(tiny.options(out))

    def refuse(path: Path | str, *_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system", str(path))

    for stage in ("all", "finalize"):
        options = tiny.options(out, stage=stage)
        with monkeypatch.context() as patch:
            for owner, name in ((Path, "unlink"), (Path, "mkdir"), (shutil, "rmtree"), (os, "unlink"), (os, "rename")):
                patch.setattr(owner, name, refuse)
            assert build_dataset(options).was_complete
        assert "cannot be removed" not in caplog.text

    (out / ".build").mkdir()  # left by a kill after the commit
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", refuse)
        assert build_dataset(tiny.options(out)).was_complete
    assert ".build cannot be removed" in caplog.text


def test_a_picture_that_cannot_be_looked_at_is_not_called_unwritable(
    tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_file = Path.is_file

    def deny(path: Path) -> bool:
        if path.suffix == ".jpg":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return is_file(path)

    monkeypatch.setattr(Path, "is_file", deny)
    with pytest.raises(BuildError, match=r"\.jpg: cannot be read \(Permission denied\); check its permissions"):
        build_dataset(tiny.options(tmp_path / "out"))


def test_a_file_of_nearly_the_name_of_a_missing_picture_is_named(tiny: Any, tmp_path: Path) -> None:
    tiny.image_path(7).rename(tiny.image_path(7).with_suffix(".JPG"))
    with pytest.raises(ImageError, match=r"found no file .*7\.jpg, or one with COCO's name for it; there is .*7\.JPG"):
        build_dataset(tiny.options(tmp_path / "out"))

    for image_id in (8, 9, 11, 12):
        tiny.image_path(image_id).unlink()
    with pytest.raises(UsageError, match=r"found none of the images \(.*7\.jpg, \.\.\.\), .*; there is .*7\.JPG"):
        build_dataset(tiny.options(tmp_path / "out"))
