"""Mixes without leaks: small ones computed by hand, then the real evaluation lists and the rules of other projects."""

import dataclasses
import hashlib
import json
import pickle
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.core import url_to_fs

from pipelines.build import BuildOptions, build_dataset
from pipelines.mix import MixOptions, mix_datasets
from pipelines.verify import verify_dataset
from refseg.cli import main
from refseg.data.index import ManifestIndex
from refseg.dataset.descriptor import DESCRIPTOR_NAME, Descriptor, ShardEntry, load_descriptor
from refseg.dataset.manifest_writer import write_table
from refseg.dataset.same_images import find_same_images
from refseg.dataset.schema import MANIFEST_SCHEMA
from refseg.errors import BuildError, DatasetError, UsageError
from refseg.storage import LocalFolder

from .conftest import TinyRefer

Build = Callable[..., Path]


@pytest.fixture
def build(tmp_path: Path) -> Build:
    """Build a member from `{image_id: splits}`; in `shards/<dataset id with a dash>` unless told otherwise."""

    def build(dataset: str, images: dict[int, tuple[str, ...]], out: Path | None = None, **changes: Any) -> Path:
        name, split_by = dataset.split("/")
        out = out or tmp_path / "shards" / f"{name}-{split_by}"
        source = TinyRefer(root=tmp_path / "source" / out.name, folder=name.replace("plus", "+"), split_by=split_by)
        for image_id, splits in images.items():
            source.add_image(image_id, splits)
        build_dataset(source.options(out, **changes))
        return out

    return build


@pytest.fixture
def members(build: Build) -> list[Path]:
    """`refcoco/unc` trains on 1 2 3 4 5 and evaluates on 21 22; `refcocog/umd` trains on 4 5 6 21 and on 2, 3 not."""
    return [
        build("refcoco/unc", {1: ("train",), 2: ("train", "train"), 3: ("train",), 4: ("train",), 5: ("train",)}
              | {21: ("val",), 22: ("testA",)}),
        build("refcocog/umd", {4: ("train",), 5: ("train",), 6: ("train",), 21: ("train",), 2: ("val",), 3: ("test",)}),
    ]  # fmt: skip


def mix(members: Iterable[str | Path], out: str | Path, **changes: Any) -> Descriptor:
    return mix_datasets(MixOptions(members=tuple(members), out=out, **changes)).descriptor


def rows_of(folder: Path) -> list[dict[str, Any]]:
    descriptor = load_descriptor(folder)
    return [row for entry in descriptor.shards for row in pq.read_table(folder / f"{entry.name}.parquet").to_pylist()]


def trained_on(folder: Path) -> list[tuple[str, int]]:
    return sorted((row["dataset"], row["image_id"]) for row in rows_of(folder))


def test_no_image_is_trained_on_that_any_member_evaluates_on(members: list[Path], tmp_path: Path) -> None:
    # Without a ref: 2 and 3, which refcocog evaluates on, and 21, which refcoco does.
    descriptor = mix(members, tmp_path / "all")

    assert trained_on(tmp_path / "all") == [
        ("refcoco", 1), ("refcoco", 4), ("refcoco", 5), ("refcocog", 4), ("refcocog", 5), ("refcocog", 6),
    ]  # fmt: skip
    assert (descriptor.dataset, descriptor.splits, descriptor.leaks_allowed) == ("mix/all", ("train",), False)
    coco, cocog = descriptor.mix
    assert (coco.dataset, coco.num_refs, coco.dropped_refs, coco.dropped_images) == ("refcoco/unc", 3, 3, 2)
    assert coco.found_in == {"refcocog/umd val": 1, "refcocog/umd test": 1}
    assert (cocog.dataset, cocog.num_refs, cocog.dropped_refs, cocog.dropped_images) == ("refcocog/umd", 3, 1, 1)
    assert cocog.found_in == {"refcoco/unc val": 1}
    assert (coco.leaked_images, cocog.leaked_images, descriptor.leaks) == (0, 0, {})


def test_a_leak_that_is_allowed_is_counted_and_recorded(members: list[Path], tmp_path: Path) -> None:
    descriptor = mix(members, tmp_path / "all", allow_leak=True)

    assert len(trained_on(tmp_path / "all")) == 6 + 4
    assert descriptor.leaks_allowed
    assert [(m.dropped_refs, m.dropped_images, m.leaked_images) for m in descriptor.mix] == [(0, 0, 2), (0, 0, 1)]
    assert load_descriptor(tmp_path / "all").leaks == {
        "refcoco/unc": {"refcocog/umd val": 1, "refcocog/umd test": 1},
        "refcocog/umd": {"refcoco/unc val": 1},
    }


def test_a_partition_of_objects_leaks_within_itself(build: Build, tmp_path: Path) -> None:
    # refcocog/google has refs of one picture in train and val.
    member = build("refcocog/google", {1: ("train",), 2: ("train", "val")})

    descriptor = mix([member], tmp_path / "own")

    assert trained_on(tmp_path / "own") == [("refcocog", 1)]
    assert descriptor.mix[0].found_in == {"refcocog/google val": 1}


def test_a_member_without_a_train_split_only_protects_its_images(members: list[Path], tmp_path: Path) -> None:
    held_out = tmp_path / "held_out"
    source = TinyRefer(root=tmp_path / "source" / "plus", folder="refcoco+")
    for image_id in (1, 6):
        source.add_image(image_id, ("testB",))
    build_dataset(source.options(held_out))

    descriptor = mix([*members, held_out], tmp_path / "all")

    assert {image_id for _, image_id in trained_on(tmp_path / "all")} == {4, 5}
    assert (descriptor.mix[2].dataset, descriptor.mix[2].num_refs) == ("refcocoplus/unc", 0)
    assert descriptor.mix[0].found_in["refcocoplus/unc testB"] == 1
    assert ManifestIndex.open(tmp_path / "all", ["train"]).num_rows == 4


@pytest.mark.parametrize(
    ("is_coco", "other_is_coco", "expected"),
    [(True, True, [True, True, False]), (True, False, [False, True, False]), (False, True, [False, True, False])],
)
def test_ids_are_compared_between_coco_datasets_alone_and_bytes_always(
    is_coco: bool, other_is_coco: bool, expected: list[bool]
) -> None:
    # The first has the id of a protected image and other bytes, the second its bytes and another id.
    rows = pa.table({"image_id": [7, 8, 9], "image_xxh3": ["aa", "bb", "cc"], "is_coco": [is_coco] * 3})
    protected = pa.table({"image_id": [7, 5], "image_xxh3": ["dd", "bb"], "is_coco": [other_is_coco] * 2})

    assert find_same_images(rows, protected).to_pylist() == expected


def test_rows_stay_as_they_were_and_find_their_images_where_they_were(members: list[Path], tmp_path: Path) -> None:
    mix(members, tmp_path / "all")

    before = {(row["dataset"], row["ref_id"]): row for member in members for row in rows_of(member)}
    for row in rows_of(tmp_path / "all"):
        old = before[row["dataset"], row["ref_id"]]
        pool = {"refcoco": "refcoco-unc", "refcocog": "refcocog-umd"}[row["dataset"]]
        assert row == {**old, "shard": f"{pool}/{old['shard']}"}
    index = ManifestIndex.open(tmp_path / "all", ["train"])
    source = {"refcoco/unc": "refcoco-unc", "refcocog/umd": "refcocog-umd"}
    for row in range(index.num_rows):
        image = int(index.row_image[row])
        folder = tmp_path / "source" / source[index.datasets[index.row_dataset[row]]]
        name = f"COCO_train2014_{index.image_id[image]:012d}.jpg"
        assert index.read_image_bytes(image) == (folder / "images" / "train2014" / name).read_bytes()
    assert not list((tmp_path / "all").glob("*.tar"))


def test_only_tars_in_use_are_named_and_by_a_way_that_moves_along(members: list[Path], tmp_path: Path) -> None:
    descriptor = mix(members, tmp_path / "shards" / "all")

    pools = {pool.name: pool for pool in descriptor.image_pools}
    assert {name: pool.path for name, pool in pools.items()} == {
        "refcoco-unc": "../refcoco-unc", "refcocog-umd": "../refcocog-umd",
    }  # fmt: skip
    assert all(tar.name.startswith("train-") for pool in pools.values() for tar in pool.tars)
    (tmp_path / "shards").rename(tmp_path / "moved")
    index = ManifestIndex.open(tmp_path / "moved" / "all", ["train"])
    assert all(index.read_image_bytes(image) for image in range(index.num_images))


def test_a_mix_verifies_and_so_does_its_leak(members: list[Path], tmp_path: Path) -> None:
    mix(members, tmp_path / "all", weights=(1.0, 2.5))
    mix(members, tmp_path / "leaky", allow_leak=True)

    assert verify_dataset(tmp_path / "all") == []
    assert verify_dataset(tmp_path / "leaky") == []
    (members[0] / "train-00000.tar").unlink()
    assert any("train-00000.tar" in str(fault) for fault in verify_dataset(tmp_path / "all", fast=True))


def test_a_member_over_another_ones_images_shares_its_pool(build: Build, tmp_path: Path) -> None:
    base = build("refcoco/unc", {1: ("train",), 2: ("train",)})
    images = {1: ("train",), 2: ("train",), 3: ("train",)}
    over = build("refcocoplus/unc", images, tmp_path / "deep" / "er" / "plus", images_from=(base,))

    descriptor = mix([base, over], tmp_path / "all")

    assert {pool.name: pool.path for pool in descriptor.image_pools} == {
        "refcoco-unc": "../shards/refcoco-unc", "refcocoplus-unc": "../deep/er/plus",
    }  # fmt: skip
    places = {(row["dataset"], row["image_id"]): row["shard"] for row in rows_of(tmp_path / "all")}
    assert {key: shard.split("/")[0] for key, shard in places.items()} == {
        ("refcoco", 1): "refcoco-unc", ("refcoco", 2): "refcoco-unc", ("refcocoplus", 1): "refcoco-unc",
        ("refcocoplus", 2): "refcoco-unc", ("refcocoplus", 3): "refcocoplus-unc",
    }  # fmt: skip
    index = ManifestIndex.open(tmp_path / "all", ["train"])
    assert all(index.read_image_bytes(image) for image in range(index.num_images))
    assert verify_dataset(tmp_path / "all") == []


def test_an_image_of_two_members_stays_two_images(build: Build, tmp_path: Path) -> None:
    # Rows of both members refer to the same image in one tar and are adjacent, but each belongs to its member.
    base = build("refcoco/unc", {1: ("train",)})
    over = build("refcocoplus/unc", {1: ("train",)}, images_from=(base,))

    mix([base, over], tmp_path / "all", weights=(1.0, 2.0))

    index = ManifestIndex.open(tmp_path / "all", ["train"])
    assert (index.num_rows, index.num_images) == (2, 2)


def test_pools_of_one_name_are_told_apart(build: Build, tmp_path: Path) -> None:
    base = build("refcoco/unc", {1: ("train",)})
    elsewhere = build("refcoco/unc", {2: ("train",)}, tmp_path / "elsewhere")
    over = build("refcocoplus/unc", {2: ("train",)}, images_from=(elsewhere,))

    descriptor = mix([base, over], tmp_path / "all")

    assert [pool.name for pool in descriptor.image_pools] == ["refcoco-unc", "refcoco-unc-2"]
    index = ManifestIndex.open(tmp_path / "all", ["train"])
    assert index.read_image_bytes(0) != index.read_image_bytes(1)


def test_the_same_members_give_the_same_bytes_and_a_finished_mix_is_left_alone(
    members: list[Path], tmp_path: Path, contents: Callable[[Path], dict[str, bytes]]
) -> None:
    first = mix(members, tmp_path / "a" / "all")
    mix(members, tmp_path / "b" / "all")
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert sorted(contents(tmp_path / "a" / "all"))[0] == "refseg.json"  # and nothing of `.build`

    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "a" / "all").iterdir()}
    again = mix_datasets(MixOptions(members=tuple(members), out=tmp_path / "a" / "all"))

    assert (again.was_complete, again.descriptor) == (True, first)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "a" / "all").iterdir()} == times


@pytest.mark.slow
def test_a_mix_in_a_bucket_has_the_bytes_of_one_on_disk(members: list[Path], tmp_path: Path, bucket: str) -> None:
    mix(members, tmp_path / "shards" / "all")
    files, root = url_to_fs(bucket)
    for member in members:
        files.put(f"{member}/", f"{root}/{member.name}/", recursive=True)
    remote = tuple(f"{bucket}/{member.name}" for member in members)

    mix(remote, f"{bucket}/all")

    ours = {Path(path).name: files.cat_file(path) for path in files.find(f"{root}/all")}
    assert ours == {path.name: path.read_bytes() for path in (tmp_path / "shards" / "all").iterdir()}
    assert mix_datasets(MixOptions(members=remote, out=f"{bucket}/all")).was_complete
    with pytest.raises(UsageError, match="found refcoco/unc, expected a new or empty folder"):
        mix(remote, remote[0])
    with pytest.raises(UsageError, match="found files but no mix, expected a new or empty folder"):
        mix(remote, bucket, name="all")
    # A dataset on disk refers to a pool in a bucket by its whole URL.
    near = mix(remote, tmp_path / "near")
    assert [pool.path for pool in near.image_pools] == list(remote)


@pytest.mark.slow
@pytest.mark.parametrize("stop", [1, 3, 5])
def test_a_mix_that_was_stopped_is_no_dataset_and_the_next_call_ends_it(
    members: list[Path], tmp_path: Path, contents: Callable[[Path], dict[str, bytes]], stop: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    # Published are: the plan, four manifests, the descriptor.
    mix(members, tmp_path / "whole" / "all")
    published = []
    publish = LocalFolder.publish

    def stop_at(folder: LocalFolder, temporary: Path, name: str) -> None:
        if len(published) == stop:
            raise KeyboardInterrupt
        published.append(name)
        publish(folder, temporary, name)

    monkeypatch.setattr(LocalFolder, "publish", stop_at)
    out = tmp_path / "stopped" / "all"
    with pytest.raises(KeyboardInterrupt):
        mix(members, out)
    monkeypatch.undo()
    assert published[0] == ".build/mix.json"
    with pytest.raises(DatasetError, match=r"found no refseg\.json"):
        load_descriptor(out)
    with pytest.raises(BuildError, match=r"started with other inputs \(weight of refcoco/unc: 1\.0, now 2\.0\)"):
        mix(members, out, weights=(2.0, 1.0))

    mix(members, out)

    assert contents(out) == contents(tmp_path / "whole" / "all")


def test_another_mix_is_not_written_over_a_finished_one(members: list[Path], tmp_path: Path) -> None:
    mix(members, tmp_path / "all")

    for changes, key in (
        ({"weights": (1.0, 0.5)}, "weight of refcocog/umd"),
        ({"allow_leak": True}, "rule"),
        ({"name": "other"}, "dataset"),
    ):
        with pytest.raises(BuildError, match=f"other inputs .{key}.*another --out, or delete the folder"):
            mix(members, tmp_path / "all", **changes)
    with pytest.raises(UsageError, match=r"found refcoco/unc, expected a new or empty folder"):
        mix(members, members[0])


def test_another_weight_is_another_digest(members: list[Path], tmp_path: Path) -> None:
    # A run must not be resumed with another order of samples.
    once = mix(members, tmp_path / "a" / "all")
    twice = mix(members, tmp_path / "b" / "all", weights=(1.0, 2.0))

    assert [entry.rows_sha256 for entry in once.shards] == [entry.rows_sha256 for entry in twice.shards]
    assert once.digest != twice.digest


def test_a_folder_that_holds_something_else_is_refused(members: list[Path], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"found refcoco.*-u.* but no mix, expected a new or empty folder"):
        mix(members, members[0].parent)
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="is a file, expected a folder"):
        mix(members, tmp_path / "file")
    (tmp_path / "deep" / ".build").mkdir(parents=True)
    (tmp_path / "deep" / ".build" / "mix.json").write_text("[" * 100_000)
    with pytest.raises(UsageError, match=r"found \.build/mix\.json but no mix"):
        mix(members, tmp_path / "deep")


def test_a_damaged_mix_or_member_is_named(members: list[Path], tmp_path: Path) -> None:
    mix(members, tmp_path / "all")
    manifest = tmp_path / "all" / "train-00000.parquet"
    manifest.write_bytes(manifest.read_bytes()[:-1])
    with pytest.raises(
        DatasetError,
        match=r"all/train-00000\.parquet: found \d+ bytes, expected \d+ bytes; the dataset was changed",
    ):
        mix(members, tmp_path / "all")
    (members[1] / "val-00000.parquet").unlink()
    with pytest.raises(DatasetError, match=r"refcocog-umd/val-00000\.parquet: found no such file"):
        mix(members, tmp_path / "other")
    (members[1] / "refseg.json").unlink()
    with pytest.raises(DatasetError, match=r"refcocog-umd: found no refseg\.json, so the dataset is unfinished"):
        mix(members, tmp_path / "third")


@pytest.mark.slow
def test_members_that_do_not_fit_are_refused(members: list[Path], build: Build, tmp_path: Path) -> None:
    mix(members, tmp_path / "all")
    with pytest.raises(UsageError, match=r"is itself a mix.*its members instead \(refcoco/unc, refcocog/umd\)"):
        mix([tmp_path / "all"], tmp_path / "new")
    with pytest.raises(UsageError, match=r"holds refcoco/unc, as does .*expected each dataset once"):
        mix([members[0], members[0]], tmp_path / "new")
    legacy = build("refcocoplus/unc", {1: ("train",)}, mask_rule="legacy")
    with pytest.raises(DatasetError, match=r"found mask rule legacy, expected union as in .*refcoco-unc"):
        mix([members[0], legacy], tmp_path / "new")
    with pytest.raises(DatasetError, match="no training ref is left of refcocog/google"):
        mix([build("refcocog/google", {1: ("train", "val")})], tmp_path / "new")
    assert not (tmp_path / "new" / "refseg.json").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weights": (1.0,)}, "--weights: found 1 weights for 2 datasets, expected one for each"),
        ({"weights": (1.0, 0.0)}, r"--weights 0\.0: expected numbers above 0"),
        ({"weights": (1.0, float("nan"))}, "--weights nan: expected numbers above 0"),
        ({"name": "a/b"}, "mix/a/b: is not a valid name, expected letters, digits, - and _; give another with --name"),
        ({"members": ()}, "found no dataset to mix"),
    ],
)
def test_options_that_make_no_sense_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        MixOptions(**{"members": (Path("a"), Path("b")), "out": Path("all"), **changes})


def test_weights_that_end_no_epoch_are_refused_with_the_numbers(members: list[Path], tmp_path: Path) -> None:
    with pytest.raises(
        UsageError,
        match=r"--weights 1e\+09 1: an epoch would have [\d,]+,000,00\d refs of \d+ different ones, expected",
    ):
        mix(members, tmp_path / "all", weights=(1e9, 1.0))
    assert not (tmp_path / "all").exists()
    mix(members, tmp_path / "all", weights=(900.0, 1.0))


def test_the_command_tells_what_was_dropped(
    members: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["mix", *map(str, members), "--out", str(tmp_path / "all")]
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert "mixed: mix/all, 6 refs, 6 sentences" in printed
    assert "2 dropped: refcocog/umd val 1, refcocog/umd test 1" in printed
    assert "LEAKS" not in printed

    assert main([*command, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["was_complete"], facts["leaks_allowed"], facts["refs"]) == (True, False, 6)
    assert [member["dropped_images"] for member in facts["members"]] == [2, 1]

    assert main(["mix", *map(str, members), "--out", str(tmp_path / "leaky"), "--allow-leak"]) == 0
    printed = capsys.readouterr().out
    assert "LEAKS ALLOWED: refcoco/unc has 1 training image in refcocog/umd val, 1 in refcocog/umd test" in printed


def write_listed(folder: Path, dataset: str, splits: dict[str, set[int]]) -> Path:
    """Write what a mix reads of a dataset with these images: manifests and a descriptor, and tars of nothing."""
    name, split_by = dataset.split("/")
    folder.mkdir(parents=True)
    entries = []
    for split, image_ids in splits.items():
        entry = ShardEntry(
            name=f"{split}-00000", split=split, num_images=len(image_ids), num_samples=len(image_ids),
            num_refs=len(image_ids), num_sentences=len(image_ids), tar_bytes=2048 * len(image_ids), tar_sha256="0" * 64,
            parquet_bytes=0, parquet_sha256="", rows_sha256="",
        )  # fmt: skip
        sentence = {"raw": "it", "sent": "it", "words": ["it"], "token_ids": [49406, 49407], "exists": True}
        same = {
            "dataset": name, "split_by": split_by, "split": split, "file_name": "", "height": 1, "width": 1,
            "category": "", "box_xywh": [0.0, 0.0, 1.0, 1.0], "area": 1, "no_target": False, "box_only": False,
            "mask": {"size": [1, 1], "counts": [0, 1]}, "annotations": [],
            "shard": f"{entry.name}.tar", "image_bytes": 1, "sample_bytes": 2048, "sample_xxh3": "0" * 16,
            "image_kind": "jpg",
        }  # fmt: skip
        # Each dataset has other bytes for the same pictures, so only the ids identify them.
        rows = [
            {
                **same,
                "ref_id": image_id,
                "image_id": image_id,
                "image_offset": 512 + 2048 * number,
                "source_rank": number,
                "image_xxh3": hashlib.sha256(f"{dataset} {image_id}".encode()).hexdigest()[:16],
                "sentences": [{**sentence, "sent_id": image_id}],
            }
            for number, image_id in enumerate(sorted(image_ids))
        ]
        path = folder / f"{entry.name}.parquet"
        digest = write_table(path, pa.Table.from_pylist(rows, schema=MANIFEST_SCHEMA))
        sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
        found = {"parquet_bytes": path.stat().st_size, "parquet_sha256": sha256, "rows_sha256": digest}
        entries.append(dataclasses.replace(entry, **found))
        with (folder / f"{entry.name}.tar").open("wb") as tar:
            tar.truncate(entry.tar_bytes)
    descriptor = Descriptor(
        dataset=dataset, refseg_version="0", plan_fingerprint="0" * 64, mask_rule="union", tokenizer={}, num_rejects=0,
        shards=tuple(entries), sources=(), licences=(),
    )  # fmt: skip
    (folder / DESCRIPTOR_NAME).write_text(descriptor.to_json())
    return folder


@pytest.mark.slow
def test_the_real_evaluation_lists_are_kept_out_as_others_keep_them_out(shared_data: Path, tmp_path: Path) -> None:
    lists = shared_data / "refcoco-eval-json"

    def image_ids(name: str) -> set[int]:
        return {int(item["img_id"].split("_")[2]) for item in json.loads((lists / f"{name}.json").read_text())}

    evaluated = {
        "refcoco/unc": {"val": image_ids("refcoco_val"), "testA": image_ids("refcoco_testA")},
        "refcocoplus/unc": {"val": image_ids("refcoco+_val"), "testA": image_ids("refcoco+_testA")},
        "refcocog/umd": {"test": image_ids("refcocog_test")},
    }
    polyformer = {int(text) for text in pickle.loads((lists / "val_test_files.p").read_bytes())}
    protected = {image_id for splits in evaluated.values() for ids in splits.values() for image_id in ids}
    # PolyFormer's list of pictures not to train on has them all; the lists at hand are not all of its sources.
    assert len(protected) == 1500 + 750 + 2600 - 170  # val, testA and test, which has 170 of the others
    assert protected < polyformer

    # Each trains on 1,500 of PolyFormer's pictures that it does not itself evaluate on, and 500 others.
    rng = np.random.default_rng(0)
    folders, train = [], {}
    for dataset, splits in evaluated.items():
        others = sorted(polyformer - set().union(*splits.values()))
        train[dataset] = {int(i) for i in rng.choice(others, 1500, replace=False)} | set(range(600_000, 600_500))
        folder = tmp_path / "shards" / dataset.replace("/", "-")
        folders.append(write_listed(folder, dataset, {"train": train[dataset], **splits}))

    descriptor = mix(folders, tmp_path / "all")

    # big_vision's refcocox_combined, in sets of ids.
    expected = [(dataset.split("/")[0], image_id) for dataset in train for image_id in train[dataset] - protected]
    assert trained_on(tmp_path / "all") == sorted(expected)
    for member in descriptor.mix:
        assert member.dropped_images == len(train[member.dataset] & protected) > 300
        assert member.found_in == {
            f"{dataset} {split}": number
            for dataset, splits in evaluated.items()
            for split, ids in splits.items()
            if (number := len(train[member.dataset] & ids))
        }


def test_the_real_pictures_of_an_evaluation_split_leave_the_training_split(
    shared_data: Path, build: Build, tmp_path: Path
) -> None:
    # refer-mini's refcoco/unc has five evaluation images; the train split beside it has two of their ids.
    real = tmp_path / "shards" / "refcoco-unc"
    build_dataset(
        BuildOptions(
            dataset="refcoco/unc", annotations=shared_data / "refer-mini", out=real, workers=1, accept_counts=True
        )
    )
    evaluated = sorted({row["image_id"] for row in rows_of(real)})
    train = build("refcocog/umd", dict.fromkeys((*evaluated[:2], 1, 2), ("train",)))

    descriptor = mix([real, train], tmp_path / "all")

    assert trained_on(tmp_path / "all") == [("refcocog", 1), ("refcocog", 2)]
    assert (descriptor.mix[1].dropped_images, sum(descriptor.mix[1].found_in.values())) == (2, 2)
    assert descriptor.counts_accepted
    assert verify_dataset(tmp_path / "all") == []
