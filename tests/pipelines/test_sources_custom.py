"""Users' tables: all kinds of targets and files; an error lists all mistakes."""

import csv
import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipelines.sources import ReadOptions, read_source
from pipelines.sources.raw import RawSource
from refseg.dataset.schema import find_dataset
from refseg.errors import AnnotationError, UsageError
from refseg.mask_png import DEFAULT_RULE, PngRule

MINE = find_dataset("custom/mine")
SIZE = {"height": 10, "width": 20}
Rows = list[dict[str, Any]]
Read = Callable[..., RawSource]


@pytest.fixture
def read(tmp_path: Path) -> Read:
    """Writes rows as JSON lines and reads them back."""

    def read_rows(rows: Rows, png_rule: PngRule = DEFAULT_RULE) -> RawSource:
        (tmp_path / "sentences.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return read_source(MINE, tmp_path, ReadOptions(png_rule=png_rule))

    return read_rows


def row(**changes: Any) -> dict[str, Any]:
    return {"image": "a.jpg", "sentence": "the square", "split": "train", "box": [1, 2, 4, 4], **SIZE, **changes}


def by_section(raw: RawSource, name: str) -> list[Any]:
    return [record for section, record in raw.tables if section == name]


def write_instances(folder: Path) -> dict[str, Any]:
    square = [[1, 2, 5, 2, 5, 6, 1, 6]]
    annotation = {"image_id": 7, "category_id": 3, "iscrowd": 0, "area": 16.5, "bbox": [1, 2, 4, 4]}
    instances = {
        "images": [{"id": 7, "file_name": "a.jpg", **SIZE}, {"id": 9, "file_name": "unused.jpg", **SIZE}],
        "annotations": [{"id": ann_id, "segmentation": square, **annotation} for ann_id in (70, 71)],
        "categories": [{"id": 3, "name": "person"}],
    }
    (folder / "instances.json").write_text(json.dumps(instances))
    return instances


def test_rows_become_refs_images_and_annotations(read: Read) -> None:
    raw = read([row(category="square"), row(image="b.jpg", split="val", box=None, no_target=True, sentence="A bull")])

    assert list(raw.refs) == [
        {
            "ref_id": 0, "image_id": 1, "ann_id": 1, "split": "train",
            "sentences": [{"sent_id": 0, "sent": "the square", "tokens": ["the", "square"]}],
            "where": "sentences.jsonl line 1", "target": "box 1 2 4 4",
        },
        {
            "ref_id": 1, "image_id": 2, "ann_id": -1, "split": "val",
            "sentences": [{"sent_id": 1, "sent": "A bull", "tokens": ["A", "bull"]}],
            "where": "sentences.jsonl line 2", "target": "",
        },
    ]  # fmt: skip
    assert list(raw.tables) == [
        ("categories", {"id": 1, "name": "square"}),
        ("images", {"id": 1, "file_name": "a.jpg", **SIZE, "size_from": "sentences.jsonl line 1"}),
        ("images", {"id": 2, "file_name": "b.jpg", **SIZE, "size_from": "sentences.jsonl line 2"}),
        (
            "annotations",
            {"id": 1, "image_id": 1, "category_id": 1, "iscrowd": 0, "bbox": [1, 2, 4, 4], "area": 16},
        ),
    ]
    assert raw.box_targets
    assert raw.spec.splits == ("train", "val")


def test_an_image_whose_size_no_row_tells_has_none_and_one_row_is_enough(read: Read) -> None:
    bare = row(height=None, width=None)

    assert by_section(read([bare]), "images") == [{"id": 1, "file_name": "a.jpg"}]
    assert by_section(read([bare, row(sentence="it", box=[1, 1, 1, 1])]), "images") == [
        {"id": 1, "file_name": "a.jpg", **SIZE, "size_from": "sentences.jsonl line 2"}
    ]


def test_the_same_table_says_the_same_every_time(read: Read) -> None:
    raw = read([row(), row(sentence="left square"), row(image="b.jpg")])

    assert list(raw.refs) == list(raw.refs)
    assert list(raw.tables) == list(raw.tables)
    assert list(read([row(), row(sentence="left square"), row(image="b.jpg")]).refs) == list(raw.refs)


def test_rows_of_one_image_target_and_split_are_one_ref_wherever_they_stand(read: Read) -> None:
    rows = [row(sentence="one"), row(image="b.jpg"), row(sentence="two"), row(split="val"), row(box=[1, 2, 4, 5])]

    refs = list(read(rows).refs)

    assert [[sentence["sent"] for sentence in ref["sentences"]] for ref in refs] == [
        ["one", "two"], ["the square"], ["the square"], ["the square"]
    ]  # fmt: skip
    assert [sentence["sent_id"] for ref in refs for sentence in ref["sentences"]] == [0, 2, 1, 3, 4]


@pytest.mark.parametrize("form", ["coco", "flat", "corners", "text"])
def test_polygons_are_read_in_each_of_their_forms(form: str, read: Read) -> None:
    square = [1, 2, 5, 2, 5, 6, 1, 6]
    pairs = [[1, 2], [5, 2], [5, 6], [1, 6]]
    value = {"coco": [square], "flat": square, "corners": pairs, "text": json.dumps([pairs])}[form]

    (annotation,) = by_section(read([row(box=None, polygons=value)]), "annotations")

    assert annotation["segmentation"] == [square]
    assert (annotation["bbox"], annotation["area"]) == ([1, 2, 4, 4], 16)


def test_run_lengths_of_several_parts_are_their_union(read: Read) -> None:
    parts = [{"size": [10, 20], "counts": [0, 10, 190]}, {"size": [10, 20], "counts": [5, 10, 185]}]

    (annotation,) = by_section(read([row(box=None, rle=parts)]), "annotations")

    assert annotation["segmentation"] == parts
    assert (annotation["bbox"], annotation["area"]) == ([0, 0, 2, 10], 15)  # 10 pixels and 10, of which 5 are both's


def test_regions_to_ignore_are_refused_until_they_are_said_to_be_background(
    read: Read, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [row(), row(sentence="it", ignore=[[0, 0, 3, 0, 3, 3]])]
    with pytest.raises(AnnotationError, match=r"found 1 row with regions to ignore, the first at line 2; training and"):
        read(rows)

    assert read_source(MINE, tmp_path, ReadOptions(ignored_regions="background")).spec.splits == ("train",)
    assert "regions to ignore of 1 row count as background, the first at line 2" in caplog.text


def test_ids_of_the_table_are_kept(read: Read) -> None:
    rows = [row(ref_id=5, sent_id=50), row(ref_id=3, sent_id=30), row(ref_id=5, sent_id=51)]

    refs = list(read(rows).refs)

    assert [(ref["ref_id"], [s["sent_id"] for s in ref["sentences"]]) for ref in refs] == [(5, [50, 51]), (3, [30])]


def test_annotations_of_instances_json_serve_beside_targets_of_the_table(tmp_path: Path, read: Read) -> None:
    instances = write_instances(tmp_path)
    rle = {"size": [10, 20], "counts": [0, 10, 190]}
    bare = {"image": "a.jpg", "sentence": "words", "split": "test"}

    raw = read([
        {**bare, "ann_id": 70}, {**bare, "image": 7, "ann_id": [70, 71]}, {**bare, "rle": rle, "category": "person"},
        {**bare, "image": "new.jpg", "rle": rle, "category": "dog"},
    ])  # fmt: skip

    # New ids follow the largest of instances.json: annotation 71, image 9, category 3.
    assert [(ref["image_id"], ref["ann_id"]) for ref in raw.refs] == [(7, [70]), (7, [70, 71]), (7, 74), (11, 75)]
    assert by_section(raw, "images") == [
        *instances["images"],
        {
            "id": 11,
            "file_name": "new.jpg",
            **SIZE,
            "size_from": "sentences.jsonl line 4 (rle)",
            "size_by_target": True,
        },
    ]
    assert by_section(raw, "categories") == [{"id": 3, "name": "person"}, {"id": 4, "name": "dog"}]
    assert by_section(raw, "annotations")[:2] == instances["annotations"]
    assert [record["category_id"] for record in by_section(raw, "annotations")[2:]] == [3, 4]
    assert [source.name for source in raw.sources] == ["mine/sentences.jsonl", "mine/instances.json"]


def test_an_image_may_be_named_by_its_id(read: Read) -> None:
    raw = read([row(image=180239), row(image="b.jpg")])

    assert by_section(raw, "images") == [
        {"id": 180239, "file_name": "000000180239.jpg", **SIZE, "size_from": "sentences.jsonl line 1"},
        # after the largest, so that no two can meet
        {"id": 180241, "file_name": "b.jpg", **SIZE, "size_from": "sentences.jsonl line 2"},
    ]


@pytest.mark.parametrize("counts", [[50, 10, 140], "b1:\\4"])
def test_run_lengths_keep_their_form_and_get_box_and_area(counts: Any, read: Read) -> None:
    raw = read([row(box=None, rle={"size": [10, 20], "counts": counts}, height=None, width=None)])

    (annotation,) = by_section(raw, "annotations")
    # 10 pixels after 50: the whole sixth column of 20
    assert annotation["bbox"] == [5, 0, 1, 10]
    assert annotation["area"] == 10
    assert annotation["segmentation"] == {"size": [10, 20], "counts": counts}
    (image,) = by_section(raw, "images")
    told = {"size_from": "sentences.jsonl line 1 (rle)", "size_by_target": True}
    assert image == {"id": 1, "file_name": "a.jpg", **SIZE, **told}


def test_run_lengths_that_do_not_fit_are_left_to_their_ref(read: Read) -> None:
    raw = read([row(box=None, rle={"size": [10, 20], "counts": [1, 2]}), row(image="b.jpg")])

    assert by_section(raw, "annotations")[0]["segmentation"] == {"size": [10, 20], "counts": [1, 2]}
    assert len(list(raw.refs)) == 2


def test_a_mask_is_what_was_drawn(tmp_path: Path, read: Read) -> None:
    drawn = np.zeros((10, 20), bool)
    drawn[3:5, 7:10] = True
    Image.fromarray(drawn.astype(np.uint8) * 255).save(tmp_path / "m.png")

    raw = read([row(box=None, mask="m.png", height=None, width=None), row(box=None, mask="m.png", sentence="again")])

    (annotation,) = by_section(raw, "annotations")
    assert (annotation["bbox"], annotation["area"]) == ([7, 3, 3, 2], 6)
    pixels = np.repeat(np.arange(7) % 2, annotation["segmentation"]["counts"]).reshape(20, 10).T
    assert (pixels == drawn).all()
    assert raw.sources[-1].name == "mine/1 mask files"


def test_spellings_of_one_mask_are_one_target(tmp_path: Path, read: Read) -> None:
    Image.new("L", (20, 10), 1).save(tmp_path / "m.png")

    raw = read([row(box=None, mask=name, sentence=name) for name in ("m.png", "./m.png", ".//m.png")])

    assert [len(ref["sentences"]) for ref in raw.refs] == [3]
    assert raw.sources[-1].name == "mine/1 mask files"


def test_a_mask_that_may_mean_several_things_is_refused_until_a_rule_says_which(tmp_path: Path, read: Read) -> None:
    values = np.zeros((10, 20), np.uint8)
    values[5, 4:8] = 3, 128, 255, 255
    Image.fromarray(values).save(tmp_path / "m.png")

    with pytest.raises(AnnotationError, match=r"line 1: mask m.png holds 4 values \(0, 3, 128, 255\), expected 0 and"):
        read([row(box=None, mask="m.png")])
    (annotation,) = by_section(read([row(box=None, mask="m.png")], PngRule(threshold=128)), "annotations")

    assert (annotation["bbox"], annotation["area"]) == ([5, 5, 3, 1], 3)


def test_a_mask_file_that_changes_changes_the_sources(tmp_path: Path, read: Read) -> None:
    found = []
    for value in (1, 2):
        Image.new("L", (20, 10), value).save(tmp_path / "m.png")
        found.append(read([row(box=None, mask="m.png")]).sources[-1].sha256)

    assert found[0] != found[1]


TEXT_ROWS = [
    ["image", "sentence", "split", "ann_id", "rle", "box", "no_target", "ref_id"],
    ["a.jpg", "one, two", "train", "70", "", "", "", "1"],
    ["a.jpg", "three", "train", "70 71", "", "", "false", "2"],
    ["a.jpg", "four", "testB", "", '{"size": [10, 20], "counts": [0, 200]}', "", "", "3.0"],
    ["a.jpg", "five", "zoo2", "", "", "1,2 4;4.5", "", "4"],
    ["a.jpg", "six", "testB", "", "", "", "TRUE", "5"],
]


def typed_rows() -> list[dict[str, Any]]:
    rle = {"size": [10, 20], "counts": [0, 200]}
    targets: list[dict[str, Any]] = [
        {"ann_id": [70]}, {"ann_id": [70, 71]}, {"rle": rle}, {"box": [1, 2, 4, 4.5]}, {"no_target": True}
    ]  # fmt: skip
    return [
        {"image": "a.jpg", "sentence": line[1], "split": line[2], "ref_id": number, **target}
        for number, (line, target) in enumerate(zip(TEXT_ROWS[1:], targets, strict=True), start=1)
    ]


def write_table(path: Path) -> Path:
    if path.suffix == ".csv":
        with path.open("w", encoding="utf-8-sig", newline="") as file:
            csv.writer(file).writerows(TEXT_ROWS)
    elif path.suffix == ".jsonl":
        path.write_text("\n\n".join(json.dumps(values) for values in typed_rows()))
    else:
        rows = typed_rows()
        columns = dict.fromkeys(name for values in rows for name in values)
        pq.write_table(pa.table({name: [values.get(name) for values in rows] for name in columns}), path)
    return path


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_a_table_says_the_same_in_every_form(suffix: str, tmp_path: Path) -> None:
    write_instances(tmp_path)
    raw = read_source(MINE, write_table(tmp_path / f"any{suffix}"))

    assert [(ref["ref_id"], ref["ann_id"], ref["split"]) for ref in raw.refs] == [
        (1, [70], "train"), (2, [70, 71], "train"), (3, 74, "testB"), (4, 75, "zoo2"), (5, -1, "testB")
    ]  # fmt: skip
    assert next(iter(raw.refs))["sentences"][0]["sent"] == "one, two"
    assert by_section(raw, "annotations")[2]["segmentation"] == {"size": [10, 20], "counts": [0, 200]}
    assert by_section(raw, "annotations")[3]["bbox"] == [1, 2, 4, 4.5]
    assert raw.spec.splits == ("train", "testB", "zoo2")


def test_numbers_with_gaps_are_read_as_pandas_writes_them(tmp_path: Path) -> None:
    write_instances(tmp_path)
    columns = {
        "image": ["a.jpg", "a.jpg"], "sentence": ["one", "two"], "split": ["val", "val"],
        "ann_id": [70.0, float("nan")], "no_target": [None, True],
    }  # fmt: skip
    pq.write_table(pa.table(columns), tmp_path / "sentences.parquet")

    assert [ref["ann_id"] for ref in read_source(MINE, tmp_path).refs] == [[70], -1]


def test_compressed_run_lengths_may_be_bytes(tmp_path: Path) -> None:
    values = {"image": "a.jpg", "sentence": "one", "split": "val", "rle": {"size": [10, 20], "counts": b"b1:\\4"}}
    pq.write_table(pa.Table.from_pylist([values]), tmp_path / "sentences.parquet")

    (annotation,) = by_section(read_source(MINE, tmp_path), "annotations")

    assert annotation["area"] == 10


def test_whole_numbers_may_be_written_as_floats(read: Read) -> None:
    sized = row(box=None, rle={"size": [10.0, 20], "counts": [50.0, 10, 140]}, height=10.0, width=20.0)

    raw = read([sized])

    assert by_section(raw, "annotations")[0]["segmentation"] == {"size": [10, 20], "counts": [50, 10, 140]}
    assert (by_section(raw, "images")[0]["height"], by_section(raw, "images")[0]["width"]) == (10, 20)
    for wrong in ({"size": [10.5, 20], "counts": [200]}, {"size": [10, 20], "counts": [50, 10.5, 139.5]}):
        with pytest.raises(AnnotationError, match="expected COCO's run lengths"):
            read([row(box=None, rle=wrong)])


MISTAKES = [
    (row(split="1st"), "found split '1st', expected a letter, then letters and digits"),
    (row(sentence=None), "found no sentence"),
    (row(sentence="  "), "found sentence '  ', expected text"),
    (row(image=None), "found no image"),
    (row(image=["a"]), "found image ['a'], expected text"),
    (row(box=None), "found no target, expected one of ann_id, rle, polygons, mask, box, no_target"),
    (row(no_target=True), "found box and no_target, expected one of"),
    (row(box=None, no_target="maybe"), "found no_target 'maybe', expected true or false"),
    (row(box=[1, 2, 3]), "found box [1, 2, 3], expected left, top, width, height"),
    (row(split="Train"), "line 2: found split 'Train', expected 'train'"),
    (row(split=" testa"), "line 2: found split 'testa', expected 'testA'"),
    (row(box=[1, 2, 0, 3]), "found box [1, 2, 0, 3], expected"),
    (row(box="1 2 3 inf"), "found box '1 2 3 inf', expected"),
    (row(box=None, ann_id="x"), "found ann_id 'x', expected an annotation id or several"),
    (row(box=None, ann_id=1), "found ann_id, but no instances.json beside the table"),
    (row(box=None, rle="{"), "found rle '{', expected COCO's run lengths"),
    (row(box=None, rle={"size": [10, 20]}), "expected COCO's run lengths"),
    (row(box=None, rle={"size": [0, 20], "counts": "1"}), "expected COCO's run lengths"),
    (row(box=None, rle={"size": [20, 10], "counts": "1"}), "its rle is for size [20, 10], expected [10, 20]"),
    (row(box=None, rle=[{"size": [10, 20], "counts": "1"}, {"size": [9, 20], "counts": "1"}]), "expected COCO's run"),
    (row(box=None, polygons="[[1, 2"), "found polygons '[[1, 2', expected polygons of at least three corners"),
    (row(box=None, polygons=[]), "found polygons [], expected polygons of at least three corners"),
    (row(box=None, polygons=[[1, 2, "3", 4, 5, 6]]), "expected polygons of at least three corners: [[x, y, x, y, ..."),
    (row(box=None, mask="no.png"), "mask no.png cannot be read (No such file or directory)"),
    (row(box=None, mask="jpeg.png"), "mask jpeg.png starts with ff d8 ff e0, expected a PNG; it is a JPEG:"),
    (row(box=None, mask="cut.png"), "mask cut.png cannot be read as a PNG"),
    (row(box=None, mask="wide.png"), "mask wide.png is 10 x 21 pixels (height x width), but image 'a.jpg' is 10 x 20"),
    (row(height=None), "found height None and width 20, expected 1 to 65500 pixels"),
    (row(height=0), "found height 0 and width 20, expected 1 to 65500 pixels"),
    (row(ref_id="first"), "found ref_id 'first', expected a whole number"),
    (row(sent_id=1.5), "found sent_id 1.5, expected a whole number"),
    (row(category=5), "found category 5, expected text"),
    (row(ignore="a.png"), "found ignore 'a.png', expected COCO's run lengths or polygons"),
    (row(colour="red"), "found unknown 'colour', expected image, sentence, split, ann_id"),
]  # fmt: skip


@pytest.mark.parametrize(("wrong", "message"), MISTAKES, ids=[message[:30] for _, message in MISTAKES])
def test_a_mistake_is_named_with_file_and_line(wrong: dict[str, Any], message: str, tmp_path: Path, read: Read) -> None:
    Image.new("L", (20, 10)).save(tmp_path / "jpeg.png", format="JPEG")
    Image.new("L", (21, 10), 1).save(tmp_path / "wide.png")
    data = (tmp_path / "wide.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(data[:-30])

    with pytest.raises(AnnotationError) as caught:
        read([row(), wrong])

    assert str(caught.value).startswith(f"{tmp_path / 'sentences.jsonl'}: found 1 mistake\n  line 2: ")
    assert message in str(caught.value)


def test_all_mistakes_are_named_at_once_and_many_are_counted(read: Read) -> None:
    with pytest.raises(AnnotationError) as caught:
        read([row(split=None, box=None), row(), *[row(split="1")] * 30])

    lines = str(caught.value).splitlines()
    assert lines[0].endswith("sentences.jsonl: found 31 mistakes")
    assert lines[1].startswith("  line 1: found no split; found no target, expected one of ann_id, rle, polygons")
    assert lines[2].startswith("  line 3: found split '1'")
    assert lines[-1] == "  and 11 more"
    assert len(lines) == 22


WHOLE = [
    ([row(ref_id=1), row()], "ref_id is given in some rows and not in others"),
    ([row(sent_id=1), row(sent_id=1)], "sent_id 1 occurs more than once in train"),
    ([row(ref_id=1), row(ref_id=1, box=[1, 2, 4, 5])], "line 2: ref_id 1 has another image, split or target than in"),
    ([], "is empty, expected data"),
]


@pytest.mark.parametrize(("rows", "message"), WHOLE)
def test_a_table_that_contradicts_itself_is_refused(rows: Rows, message: str, read: Read) -> None:
    with pytest.raises(AnnotationError) as caught:
        read(rows)

    assert message in str(caught.value)


def test_whole_floats_of_instances_json_are_sizes(tmp_path: Path, read: Read) -> None:
    write_instances(tmp_path)
    (tmp_path / "instances.json").write_text((tmp_path / "instances.json").read_text().replace(": 20", ": 20.0"))

    raw = read([row(height=None, width=None)])

    assert [ref["image_id"] for ref in raw.refs] == [7]
    with pytest.raises(AnnotationError, match=r"is 20 x 10 pixels .* in this row, but 10 x 20 in instances.json"):
        read([row(height=20, width=10)])


def test_a_size_other_than_in_instances_json_is_refused(tmp_path: Path, read: Read) -> None:
    write_instances(tmp_path)

    with pytest.raises(AnnotationError, match=r"is 20 x 10 pixels .* in this row, but 10 x 20 in instances.json"):
        read([row(height=20, width=10)])


COLUMNS = [
    ("image,split,box", "no column 'sentence'"),
    ("image,sentence,split,boxes", "unknown column 'boxes'"),
    ("image,sentence,split,box,box", "column 'box' twice"),
    ("", "no column 'image', no column 'sentence', no column 'split'"),
]


@pytest.mark.parametrize(("header", "message"), COLUMNS)
def test_wrong_columns_are_named(header: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "sentences.csv").write_text(header + "\na.jpg,x,train,1\n")

    with pytest.raises(AnnotationError, match=message):
        read_source(MINE, tmp_path)


FILES = [
    ("t.csv", b"image,sentence,split,box\na.jpg,\xff,train,1\n", "line 2 is not UTF-8"),
    ("t.csv", b"image,sentence,split,box\r\na.jpg,x,train,1\r\r\na.jpg,\xff,val,1\n", "line 4 is not UTF-8"),
    ("t.csv", b"image,sentence,split,box\ra.jpg,x,train,1\ra.jpg,\xff,val,1", "line 3 is not UTF-8"),
    ("t.csv", b'image,sentence,split,box\na.jpg,"x\ny",val,1\na.jpg,"x,val,1\nb.jpg,y,val,1\n', "CSV from line 4"),
    ("t.csv", b'"image,sentence,split,box\n', "CSV from line 1"),
    (
        "t.csv",
        b"image;sentence;split;box\na.jpg;x;y;val;1\n",
        "line 2: found 5 fields, expected 4; text with ';' in it",
    ),
    ("t.csv", b"image;sentence;split;boxes\na.jpg;x;val;1\n", "unknown column 'boxes'"),
    ("t.csv", "image,sentence,split\n".encode("utf-16"), "is UTF-16, expected UTF-8"),
    ("t.jsonl", "{}".encode("utf-16"), "is UTF-16, expected UTF-8"),
    ("t.csv", b"Image,Sentence,split,box\n", "names are in lower case; write 'image' instead of 'Image'"),
    ("t.jsonl", b'{"image": "a.jpg", "Ref ID": 1}', "names are in lower case; write 'ref_id' instead of 'Ref ID'"),
    ("t.jsonl", b'\n{"image": "a.jpg",\n', r"line 2: cannot be read as JSON \([^:]* at character 19\)"),
    ("t.jsonl", b'{"image": "a.jpg"}\n{"image": "\xff"}\n', "line 2 is not UTF-8"),
    ("t.csv", b"image,sentence,split,box\na.jpg,x, y,train,1\n", "line 2: found 5 fields, expected 4"),
    ("t.jsonl", b"{\n", "line 1: cannot be read as JSON"),
    ("t.jsonl", b"[" * 100_000, "line 1: cannot be read as JSON"),
    ("t.jsonl", b'{"image": ' + b"1" * 5000 + b"}", "line 1: cannot be read as JSON"),
    ("t.jsonl", b"[1]\n", "line 1: found a list, expected an object with image, sentence, split"),
    ("t.jsonl", b'{"image": "a.jpg", "split": "val", "sentence": "\\ud800", "no_target": true}', "half of a surrogate"),
    ("t.parquet", b"PAR1 and no more", "cannot be read as PARQUET"),
]


@pytest.mark.parametrize(("name", "data", "message"), FILES)
def test_a_file_that_cannot_be_read_is_named(name: str, data: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(data)

    with pytest.raises(AnnotationError, match=message) as caught:
        read_source(MINE, tmp_path / name)

    assert str(caught.value).startswith(str(tmp_path / name))


@pytest.mark.parametrize(
    "header", ["image,sentence,split,box", '"image","sentence","split","box"', "box,image,split,sentence"]
)
@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_a_spreadsheet_writes_what_it_separates_columns_with(
    header: str, separator: str, mark: str, tmp_path: Path
) -> None:
    names = header.replace('"', "").split(",")
    cells = {"image": "a.jpg", "sentence": '"one, two; three\tfour"', "split": " val ", "box": '"1,2;3 4"'}
    lines = [mark + header.replace(",", separator), separator.join(cells[name] for name in names)]
    # Empty columns and lines, as spreadsheets write them.
    empty = separator * 2
    lines = [line + empty for line in lines] + [separator * 3, "", f" {empty}"]
    (tmp_path / "sentences.csv").write_text("\r\n".join(lines), encoding="utf-8", newline="")

    (ref,) = read_source(MINE, tmp_path).refs

    assert (ref["split"], ref["sentences"][0]["sent"], ref["target"]) == (
        "val",
        "one, two; three\tfour",
        "box 1 2 3 4",
    )
    assert ref["where"] == "sentences.csv line 2"


def test_the_table_is_looked_for_in_its_own_folder_too(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    write_instances(tmp_path / "mine")
    write_table(tmp_path / "mine" / "sentences.csv")

    assert len(list(read_source(MINE, tmp_path).refs)) == 5


def test_one_table_is_expected(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"found no sentences.csv, .jsonl or .parquet, in that folder or in mine/"):
        read_source(MINE, tmp_path)
    for name in ("sentences.csv", "sentences.jsonl", "notes.txt"):
        (tmp_path / name).touch()
    with pytest.raises(UsageError, match=r"found sentences.csv, sentences.jsonl, expected one"):
        read_source(MINE, tmp_path)
    with pytest.raises(UsageError, match=r"notes.txt: expected a table whose name ends in .csv or .jsonl or .parquet"):
        read_source(MINE, tmp_path / "notes.txt")


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_memory_does_not_grow_with_the_table(suffix: str, tmp_path: Path) -> None:
    def peak(num_rows: int) -> int:
        path = tmp_path / f"{num_rows}{suffix}"
        rows = [row(image=f"{number}.jpg", box=f"1 2 3 {number + 1}") for number in range(num_rows)]
        if suffix == ".jsonl":
            path.write_text("\n".join(map(json.dumps, rows)))
        else:
            path.write_text("\n".join(",".join(map(str, values)) for values in [rows[0], *(r.values() for r in rows)]))
        tracemalloc.start()
        try:
            raw = read_source(MINE, path)
            assert sum(1 for _ in raw.refs) == sum(section == "images" for section, _ in raw.tables) == num_rows
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak(10)  # what is loaded but once
    # A row takes over a kilobyte where it is kept; files are read by the megabyte.
    assert peak(4000) < peak(40) + 2**20


@pytest.mark.parametrize("name", ["", "a/b", "a b", "é", "a.b"])
def test_a_custom_dataset_needs_a_plain_name(name: str) -> None:
    with pytest.raises(UsageError, match=r"expected custom/<name>, a name of letters, digits, - and _"):
        find_dataset(f"custom/{name}")
