"""Masks of other projects are read in every format, refused with their name, and scored like those of a model."""

import json
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from accelerate import Accelerator
from PIL import Image
from pycocotools import mask as coco

from refseg.data.index import ManifestIndex
from refseg.data.transforms import Geometry
from refseg.errors import PredictionError, UsageError
from refseg.evaluation.evaluate import evaluate_model
from refseg.evaluation.predictions import GivenMask, Key, Predictions, read_predictions
from refseg.evaluation.protocols import CRIS, LAVT, LISA, ORIGINAL, PROTOCOLS, RELA
from refseg.evaluation.rows import RowFacts
from refseg.evaluation.score_masks import score_masks
from refseg.evaluation.scores import score
from refseg.mask_png import PngRule
from refseg.run_lengths import draw_runs, encode_runs

from .conftest import annotation

SIZE = (32, 64)
EVERY = list(PROTOCOLS.values())


@pytest.fixture(scope="module")
def folder(write_stripes: Callable[..., Path]) -> Path:
    """Sentences (10, 1000), (10, 1001), (11, 1100) and (12, 1200), of which the last has no target."""
    first, second = ([float(v) for v in (x, 4, x + 20, 4, x + 20, 28, x, 28)] for x in (30, 40))
    overlapping = [annotation(polygons=[first, second])]
    picture = {
        "size": SIZE,
        "stripes": {"red": (0, 16), "blue": (32, 48)},
        "refs": [((0, 16), ["the red", "leftmost red"]), ((0, 0), ["the blue"], overlapping), ((0, 0), ["the green"])],
    }
    return write_stripes(picture)


@pytest.fixture(scope="module")
def index(folder: Path) -> ManifestIndex:
    return ManifestIndex.open(folder, ["val"])


@pytest.fixture
def masks() -> dict[Key, np.ndarray]:
    random = np.random.default_rng(0)
    keys = [Key(10, 1000), Key(10, 1001), Key(11, 1100), Key(12, 1200)]
    return {key: random.random(SIZE) < 0.5 for key in keys[:3]} | {keys[3]: np.zeros(SIZE, bool)}


def given(masks: dict[Key, np.ndarray], *, num_protocols: int = 1, **fields: Any) -> Predictions:
    found = {
        key: GivenMask(size=(mask.shape[0], mask.shape[1]), counts=encode_runs(mask), **fields)
        for key, mask in masks.items()
    }
    return Predictions(masks=[found] * num_protocols)


def records(masks: dict[Key, np.ndarray], *, compressed: bool = False) -> list[dict[str, Any]]:
    found = []
    for key, mask in masks.items():
        rle: dict[str, Any] = {"size": list(mask.shape), "counts": encode_runs(mask).tolist()}
        if compressed:
            rle["counts"] = coco.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"].decode()
        found.append({**key._asdict(), "segmentation": rle})
    return found


def write(path: Path, found: list[dict[str, Any]]) -> Path:
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(found), path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(record) + "\n" for record in found))
    else:
        path.write_text(json.dumps(found))
    return path


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("name", ["masks.parquet", "masks.json", "masks.jsonl"])
def test_masks_are_read_from_every_kind_of_file(
    masks: dict[Key, np.ndarray], tmp_path: Path, name: str, compressed: bool
) -> None:
    flat = [record.pop("segmentation") | record for record in records(masks, compressed=compressed)]
    for number, found in enumerate((records(masks, compressed=compressed), flat)):
        path = write(tmp_path / f"{number}-{name}", found)
        (read,) = read_predictions(path, [ORIGINAL], "val").masks
        assert read.keys() == masks.keys()
        for key, mask in masks.items():
            assert np.array_equal(draw_runs(read[key].counts, read[key].size), mask)
            assert read[key].predicted_none is None


def test_ids_and_sizes_may_be_whole_floats_as_pandas_writes_them(masks: dict[Key, np.ndarray], tmp_path: Path) -> None:
    found = records(masks)
    for record in found:
        record |= {"ref_id": float(record["ref_id"]), "sent_id": float(record["sent_id"])}
        record["segmentation"]["size"] = [float(side) for side in record["segmentation"]["size"]]

    (read,) = read_predictions(write(tmp_path / "masks.parquet", found), [ORIGINAL], "val").masks

    assert read.keys() == masks.keys()
    assert {mask.size for mask in read.values()} == {SIZE}


@pytest.mark.parametrize("kind", ["0/255", "0/1", "bit", "palette"])
def test_masks_are_read_from_a_folder_of_pngs(masks: dict[Key, np.ndarray], tmp_path: Path, kind: str) -> None:
    for key, mask in masks.items():
        picture = Image.fromarray(mask.astype(np.uint8) * (255 if kind == "0/255" else 1))
        if kind == "bit":
            picture = Image.fromarray(mask)
        if kind == "palette":
            picture.putpalette([0, 0, 0, 255, 255, 255])
        picture.save(tmp_path / f"{key.ref_id}_{key.sent_id}.png")
    (read,) = read_predictions(tmp_path, [ORIGINAL], "val").masks

    assert all(np.array_equal(draw_runs(read[key].counts, read[key].size), mask) for key, mask in masks.items())


@pytest.mark.parametrize("name", ["masks.parquet", "masks.json", "masks.jsonl"])
def test_a_file_of_several_splits_gives_those_of_the_one_asked_for_and_counts_the_others(
    masks: dict[Key, np.ndarray], tmp_path: Path, name: str
) -> None:
    splits = [("val", True), ("testA", None), (None, None), ("vall", None)]
    of_splits = [
        {**record, "split": split, "no_target": none}
        for record, (split, none) in zip(records(masks), splits, strict=True)
    ]
    path = write(tmp_path / name, of_splits)

    predictions = read_predictions(path, [ORIGINAL, LAVT], "val")

    for read in predictions.masks:
        assert list(read) == [Key(10, 1000), Key(11, 1100)]  # a split that is null is one that is not named
        assert [mask.predicted_none for mask in read.values()] == [True, None]
    assert predictions.notes == (f"{path}: records that name another split were left out: 1 of testA, 1 of vall",)


def test_a_file_without_a_mask_of_the_split_says_what_it_has(masks: dict[Key, np.ndarray], tmp_path: Path) -> None:
    others = [{**record, "split": "testA"} for record in records(masks)]
    with pytest.raises(PredictionError, match=r"others\.json: found no mask of split val, but 4 of testA; expected"):
        read_predictions(write(tmp_path / "others.json", others), [ORIGINAL], "val")
    for name, content in (("b.jsonl", "\n\n"), ("c.json", "[]")):
        (tmp_path / name).write_text(content)
        with pytest.raises(PredictionError, match=f"{name}: found no mask of split val; expected at least one"):
            read_predictions(tmp_path / name, [ORIGINAL], "val")
    empty = pa.table({"ref_id": pa.array([], pa.int64()), "sent_id": pa.array([], pa.int64())})
    pq.write_table(empty, tmp_path / "d.parquet")
    with pytest.raises(PredictionError, match=r"d\.parquet: found no mask of split val; expected at least one"):
        read_predictions(tmp_path / "d.parquet", [ORIGINAL], "val")
    (tmp_path / "e.json").write_text("")
    with pytest.raises(PredictionError, match=r"e\.json: is empty"):
        read_predictions(tmp_path / "e.json", [ORIGINAL], "val")


@pytest.mark.parametrize("name", ["masks.parquet", "masks.json", "masks.jsonl"])
def test_keys_that_are_not_read_are_named_once_a_likely_misspelling_first(
    masks: dict[Key, np.ndarray], tmp_path: Path, name: str
) -> None:
    found: list[dict[str, Any]] = [{**record, "image_id": 7, "no_targt": True} for record in records(masks)]
    found[0] |= {"score": 0.5, "nothing": None}
    found[1]["segmentation"]["no_target"] = False

    notes = read_predictions(write(tmp_path / name, found), [ORIGINAL, LAVT], "val").notes

    (note,) = notes
    said, _, named = note.partition("left out: ")
    assert said == f"{tmp_path / name}: keys that are not read were "
    misspelt = {"'no_targt' (did you mean no_target?)", "'segmentation.no_target' (did you mean no_target?)"}
    assert set(named.split(", ")[:2]) == misspelt
    assert sorted(named.split(", ")[2:]) == ["'image_id'", "'score'"]


def test_many_keys_that_are_not_read_are_counted(masks: dict[Key, np.ndarray], tmp_path: Path) -> None:
    more = {f"column_{number}": number for number in range(12)}
    path = write(tmp_path / "masks.jsonl", [{**more, **record, "Split": "val"} for record in records(masks)])

    (note,) = read_predictions(path, [ORIGINAL], "val").notes

    assert "left out: 'Split' (did you mean split?), 'column_0', 'column_1'," in note
    assert note.endswith("'column_8' and 3 more")


@pytest.mark.parametrize("name", ["masks.json", "masks.jsonl"])
def test_a_mark_of_the_byte_order_is_no_part_of_the_records(
    masks: dict[Key, np.ndarray], tmp_path: Path, name: str
) -> None:
    path = write(tmp_path / name, records(masks))
    path.write_text(path.read_text(), encoding="utf-8-sig")

    assert read_predictions(path, [ORIGINAL], "val").masks[0].keys() == masks.keys()


@pytest.mark.parametrize("name", ["masks.json", "masks.jsonl"])
def test_an_object_that_names_a_thing_twice_is_refused(tmp_path: Path, name: str) -> None:
    record = '{"ref_id": 1, "sent_id": 2, "sent_id": 3, "size": [1, 1], "counts": [1]}'
    (tmp_path / name).write_text(f"[{record}]" if name.endswith(".json") else record)

    with pytest.raises(PredictionError, match="an object has 'sent_id' twice"):
        read_predictions(tmp_path / name, [ORIGINAL], "val")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ref_id": "10"}, r"record 1: found ref_id '10' and sent_id 1000, expected two whole numbers"),
        ({"sent_id": None}, "found ref_id 10 and sent_id None"),
        ({"segmentation": None}, "record 1, ref 10 sentence 1000: found no mask, expected segmentation"),
        ({"segmentation": {"size": [32], "counts": [1]}}, r"found size \[32\], expected \[height, width\]"),
        ({"segmentation": {"size": [2, 2], "counts": [3]}}, "run lengths sum to 3, expected 2 x 2 pixels = 4"),
        ({"segmentation": {"size": [2, 2], "counts": [5, -1]}}, "counts are not run lengths"),
        ({"segmentation": {"size": [2, 2], "counts": [2.0, 2.0]}}, "counts are not run lengths"),
        ({"segmentation": {"size": [2, 2], "counts": "é"}}, "compressed run lengths are damaged"),
        ({"segmentation": {"size": [2, 2], "counts": [float("nan"), 2]}}, "counts are not run lengths"),
        ({"segmentation": {"size": [2, 2], "counts": [True, 3]}}, "counts are not run lengths"),
        ({"size": [2, 2], "counts": [4]}, "found segmentation and counts beside it, expected one mask"),
        ({"no_target": 1}, "found no_target 1, expected true or false"),
        ({"no_target": float("nan")}, "found no_target nan, expected true or false"),
        ({"ref_id": True}, "found ref_id True and sent_id 1000, expected two whole numbers"),
        ({"sent_id": float("nan")}, "sent_id nan, expected two whole numbers"),
        ({"split": 3}, "found split 3, expected a name"),
    ],
)
def test_a_record_that_is_no_mask_is_refused_with_its_place(
    masks: dict[Key, np.ndarray], tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    first, *others = records(masks)

    with pytest.raises(PredictionError, match=message):
        read_predictions(write(tmp_path / "masks.json", [{**first, **change}, *others]), [ORIGINAL], "val")


def test_files_that_are_no_predictions_are_refused(masks: dict[Key, np.ndarray], tmp_path: Path) -> None:
    with pytest.raises(PredictionError, match="ref 10 sentence 1000 is predicted twice"):
        read_predictions(write(tmp_path / "twice.jsonl", records(masks) + records(masks)[:1]), [ORIGINAL], "val")
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n"
    for name, text, said in (
        ("a.json", "{}", "found dict, expected a list of records"),
        ("b.json", "[", "cannot be read"),
        ("c.jsonl", "3", "found 3, expected an object"),
        ("d.parquet", "PAR", "cannot be read"),
        ("e.parquet", pointer, "is a Git LFS pointer, not the file itself"),
        ("f.json", pointer, "is a Git LFS pointer, not the file itself"),
    ):
        (tmp_path / name).write_text(text)
        with pytest.raises(PredictionError, match=f"{name}.* ?{said}"):
            read_predictions(tmp_path / name, [ORIGINAL], "val")
    with pytest.raises(UsageError, match=r"masks\.csv: expected a folder of PNGs or a file that ends in \.parquet"):
        read_predictions(tmp_path / "masks.csv", [ORIGINAL], "val")


def test_pngs_that_are_no_masks_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "12_34.png"

    def refuse(message: str, picture: Image.Image | None = None) -> None:
        if picture is not None:
            picture.save(path)
        with pytest.raises(PredictionError, match=message):
            read_predictions(tmp_path, [ORIGINAL], "val")

    refuse("found no .png, expected masks named REF_SENT.png")
    path.write_bytes(b"PNG")
    refuse("12_34.png: starts with 50 4e 47, expected a PNG")
    mask = Image.fromarray(np.eye(4, dtype=bool))
    refuse("12_34.png: holds 2 values .* expected 0 and another one", Image.fromarray(np.eye(4, dtype=np.uint8) + 1))
    refuse("12_34.png: holds 3 values", Image.fromarray(np.array([[0, 1, 65535]], np.uint16)))
    for name in ("mask-12.png", "12_34.PNG", "._12_34.png"):
        path.rename(tmp_path / name)
        refuse(f"{name}: expected a name like REF_SENT.png")
        (tmp_path / name).rename(path)
    (tmp_path / "012_34.png").write_bytes(path.read_bytes())
    mask.save(path)
    mask.save(tmp_path / "012_34.png")
    refuse("ref 12 sentence 34 is predicted twice")


def test_a_rule_for_pngs_is_followed_and_noted(masks: dict[Key, np.ndarray], tmp_path: Path) -> None:
    edges = np.array([[0, 3, 128, 255]], np.uint8)
    Image.fromarray(edges).save(tmp_path / "12_34.png")

    predictions = read_predictions(tmp_path, [ORIGINAL], "val", PngRule(threshold=128))

    (mask,) = predictions.masks[0].values()
    assert draw_runs(mask.counts, mask.size).tolist() == [[False, False, True, True]]
    assert predictions.notes == (f"{tmp_path}: masks were not read by the default rule, but by: object >= 128",)
    with pytest.raises(UsageError, match="is not a folder of PNGs, and the options --mask"):
        read_predictions(tmp_path / "masks.json", [ORIGINAL], "val", PngRule(threshold=128))


def test_what_else_lies_in_a_folder_and_objects_of_several_values_are_noted(tmp_path: Path) -> None:
    for number, value in enumerate((0, 1, 1, 255, 65535)):
        mask = (value * np.eye(4)).astype(np.uint16 if value > 255 else np.uint8)
        Image.fromarray(mask).save(tmp_path / f"1_{number}.png")
    assert "1 in 2, 255 in 1, 65535 in 1" in read_predictions(tmp_path, [ORIGINAL], "val").notes[0]
    (tmp_path / "testA").mkdir()
    for name in ("notes.txt", "1_9.jpg", ".DS_Store"):
        (tmp_path / name).touch()

    predictions = read_predictions(tmp_path, [ORIGINAL, LAVT], "val")

    assert predictions.notes == (
        f"{tmp_path}: files other than .png were left out: .DS_Store, 1_9.jpg, notes.txt, testA/",
        f"{tmp_path}: the object's value differs between pictures; each of these values was read as the object: "
        "1 in 2, 255 in 1, 65535 in 1",
    )
    expected = [np.zeros((4, 4), bool)] + 4 * [np.eye(4, dtype=bool)]
    for mask, wanted in zip(predictions.masks[0].values(), expected, strict=True):
        assert np.array_equal(draw_runs(mask.counts, mask.size), wanted)


def test_missing_masks_are_named_and_extra_ones_warned_of(
    index: ManifestIndex, masks: dict[Key, np.ndarray], caplog: pytest.LogCaptureFixture
) -> None:
    few = {key: mask for key, mask in masks.items() if key.ref_id == 10}
    with pytest.raises(
        PredictionError,
        match=r"val: 2 of 4 sentences without a mask: ref 11 sentence 1100, ref 12 sentence 1200; predict all",
    ):
        score_masks(index, given(few), [ORIGINAL])

    with caplog.at_level(logging.WARNING):
        more = score_masks(index, given({**masks, Key(7, 8): masks[Key(10, 1000)]}), [ORIGINAL])
    said = "1 mask without a sentence in the split left out: ref 7 sentence 8"
    assert said in caplog.text
    assert said in score(more).rules()
    assert more.equals(score_masks(index, given(masks), [ORIGINAL]))


def test_what_was_left_out_stands_beside_every_score(index: ManifestIndex, masks: dict[Key, np.ndarray]) -> None:
    predictions = replace(given(masks, num_protocols=2), notes=("masks.jsonl: something was left out",))
    table = score_masks(index, predictions, [ORIGINAL, LAVT])

    for protocol in (ORIGINAL, LAVT):
        assert "masks.jsonl: something was left out" in score(table, protocol).rules()
        assert "masks.jsonl: something was left out" in score(table, protocol).to_json()["rules"]


def test_a_sentence_that_is_there_twice_is_scored_by_no_mask(write_stripes: Callable[..., Path]) -> None:
    """This happens in a mix of two datasets with the same ref ids."""
    picture = {"size": SIZE, "stripes": {}, "refs": [((0, 16), ["one"])]}
    index = ManifestIndex.open(write_stripes(picture, picture), ["val"])
    object.__setattr__(index, "ref_id", np.full_like(index.ref_id, 10))
    object.__setattr__(index, "sent_id", np.full_like(index.sent_id, 1000))

    with pytest.raises(PredictionError, match=r"ref 10 sentence 1000 occurs more than once, .* score the members"):
        score_masks(index, given({Key(10, 1000): np.zeros(SIZE, bool)}), [ORIGINAL])


def test_many_missing_masks_are_counted(write_stripes: Callable[..., Path]) -> None:
    picture = {"size": SIZE, "stripes": {}, "refs": [((0, 16), [f"number {n}" for n in range(14)])]}
    index = ManifestIndex.open(write_stripes(picture), ["val"])

    with pytest.raises(PredictionError, match=r"14 of 14 sentences without a mask: ref 10 .* 1009 and 4 more; predict"):
        score_masks(index, given({}), [ORIGINAL])


@pytest.mark.parametrize(("protocol", "expected"), [(ORIGINAL, "32 x 64"), (LAVT, "32 x 64 or 480 x 480")])
def test_a_mask_of_another_size_is_refused_with_its_key(
    index: ManifestIndex, masks: dict[Key, np.ndarray], protocol, expected: str
) -> None:
    masks[Key(11, 1100)] = masks[Key(11, 1100)].T

    with pytest.raises(PredictionError, match=f"ref 11 sentence 1100: found a mask of 64 x 32 .* expected {expected};"):
        score_masks(index, given(masks), [protocol])


def test_counts_are_those_of_drawn_masks(index: ManifestIndex, masks: dict[Key, np.ndarray]) -> None:
    union = np.zeros(SIZE, bool)
    union[4:28, 30:60] = True
    once = union.copy()
    once[:, 40:50] = False
    table = score_masks(index, given(masks, num_protocols=3), [ORIGINAL, LISA, LAVT])

    row, mask = table.to_pylist()[2], masks[Key(11, 1100)]
    for name, target in (("original", union), ("lisa", once)):
        assert row[f"{name}_target_area"] == target.sum()
        assert row[f"{name}_predicted_area"] == mask.sum()
        assert row[f"{name}_intersection"] == (mask & target).sum()
        assert row[f"{name}_union"] == (mask | target).sum()
    nearest = [np.asarray(Image.fromarray(m).resize((480, 480), Image.Resampling.NEAREST)) for m in (mask, once)]
    assert row["lavt_intersection"] == (nearest[0] & nearest[1]).sum()
    assert row["lavt_union"] == (nearest[0] | nearest[1]).sum()
    assert RowFacts.of(table).given_masks


def test_what_a_model_says_of_its_own_goes_into_the_scores(index: ManifestIndex, masks: dict[Key, np.ndarray]) -> None:
    table = score_masks(index, given(masks, predicted_none=True), [RELA])

    scores = score(table, RELA)
    assert [scores.values[name] for name in ("N-acc", "T-acc", "gIoU")] == [1.0, 0.0, 0.25]
    assert any(rule.endswith("it is predicted by the model's own output") for rule in scores.rules())


def test_where_a_model_speaks_of_some_sentences_alone_the_rules_say_so(
    index: ManifestIndex, masks: dict[Key, np.ndarray]
) -> None:
    silent, says = (given(masks, predicted_none=word).masks[0] for word in (None, True))
    mixed = {**silent, Key(10, 1000): says[Key(10, 1000)]}

    scores = score(score_masks(index, Predictions(masks=[mixed]), [RELA]), RELA)

    assert scores.values["T-acc"] == 2 / 3
    expected = "predicted by the model's own output where there is one (1 sentence), else by an empty mask"
    assert any(rule.endswith(expected) for rule in scores.rules())


@pytest.mark.parametrize("kind", ["letterbox", "stretch"])
def test_saved_predictions_are_scored_as_when_they_were_made(
    index: ManifestIndex, colour_model: Any, tmp_path: Path, kind
) -> None:
    table = evaluate_model(
        colour_model,
        index,
        accelerator=Accelerator(cpu=True),
        geometry=Geometry(kind=kind, size=(96, 96)),
        num_tokens=12,
        images_per_batch=1,
        protocols=EVERY,
        save_predictions=True,
    )
    pq.write_table(table, tmp_path / "rows.parquet")

    predictions = read_predictions(tmp_path / "rows.parquet", EVERY, "val")
    again = score_masks(index, predictions, EVERY)

    assert not predictions.notes
    assert again.equals(table.select(again.column_names))
    for protocol in EVERY:
        assert score(again, protocol).by_name() == score(table, protocol).by_name()


def test_rows_without_a_protocols_masks_are_refused(
    index: ManifestIndex, masks: dict[Key, np.ndarray], tmp_path: Path
) -> None:
    pq.write_table(score_masks(index, given(masks), [CRIS]), tmp_path / "rows.parquet")

    with pytest.raises(PredictionError, match=r"masks of protocol none, .* --protocol cris --save-predictions"):
        read_predictions(tmp_path / "rows.parquet", [CRIS], "val")


def test_rows_of_the_shuffled_control_are_refused(
    index: ManifestIndex, masks: dict[Key, np.ndarray], tmp_path: Path
) -> None:
    table = score_masks(index, given(masks), [CRIS], save_predictions=True)
    facts = replace(RowFacts.of(table), sentence_order="shuffled")
    pq.write_table(facts.attach(table), tmp_path / "rows.parquet")

    with pytest.raises(
        PredictionError, match=r"rows\.parquet: found a file from `refseg evaluate --shuffled-sentences`, which"
    ):
        read_predictions(tmp_path / "rows.parquet", [CRIS], "val")


@pytest.mark.parametrize("metadata", [None, {"pandas": "{}"}])
def test_rows_that_lost_their_facts_are_refused_by_name(
    index: ManifestIndex, masks: dict[Key, np.ndarray], tmp_path: Path, metadata: dict[str, str] | None
) -> None:
    table = score_masks(index, given(masks), [CRIS], save_predictions=True)
    pq.write_table(table.replace_schema_metadata(metadata), tmp_path / "rows.parquet")

    with pytest.raises(
        PredictionError, match=r"rows\.parquet: found rows without the metadata key `refseg`, .* pandas .*; use"
    ):
        read_predictions(tmp_path / "rows.parquet", [CRIS], "val")
