"""Irregular annotation files: compressed, misnamed, LFS pointers, ids as floats, records that no ref uses."""

import gzip
import json
import logging
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipelines.build import build_dataset
from pipelines.options import BuildOptions
from pipelines.sources import read_source
from pipelines.verify import verify_dataset
from refseg.dataset.schema import find_dataset
from refseg.errors import AnnotationError, ImageError, RefsegError, UsageError

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n"
SQUARE = [[1, 2, 5, 2, 5, 6, 1, 6]]


def rows_of(folder: Path) -> list[dict[str, Any]]:
    """The rows of all manifests of a dataset."""
    paths = sorted(path for path in folder.glob("*.parquet") if path.name != "rejects.parquet")
    return [row for path in paths for row in pq.read_table(path).to_pylist()]


def rejects_of(folder: Path) -> list[tuple[int, str]]:
    return [(row["ref_id"], row["reason"]) for row in pq.read_table(folder / "rejects.parquet").to_pylist()]


def as_json(tiny: Any) -> Path:
    """Write the refs as JSON instead of the pickle."""
    folder: Path = tiny.write() / tiny.folder
    (folder / f"refs({tiny.split_by}).p").unlink()
    (folder / f"refs({tiny.split_by}).json").write_text(json.dumps(tiny.refs))
    return folder


def write_custom(folder: Path, **image: Any) -> list[dict[str, Any]]:
    """A table of one annotation in a listed picture of 20 x 10 pixels; `image`: what is known of that picture."""
    annotation = {"id": 100, "image_id": 52, "category_id": 1, "iscrowd": 0, "area": 16, "bbox": [1, 2, 4, 4]}
    instances = {
        "images": [{"id": 52, "file_name": "a.jpg", **image}],
        "annotations": [{**annotation, "segmentation": SQUARE}],
        "categories": [{"id": 1, "name": "square"}],
    }
    (folder / "images").mkdir(parents=True)
    (folder / "instances.json").write_text(json.dumps(instances))
    noise = np.random.default_rng(0).integers(0, 256, (10, 20, 3), dtype=np.uint8)
    Image.fromarray(noise).save(folder / "images" / "a.jpg")
    return [{"image": "a.jpg", "sentence": "the square", "split": "val", "ann_id": 100}]


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def build_custom(folder: Path) -> list[dict[str, Any]]:
    build_dataset(BuildOptions(dataset="custom/mine", annotations=folder, out=folder / "out", workers=1))
    return rows_of(folder / "out")


def test_refs_with_an_empty_list_of_sentences_are_left_out_and_named(
    tiny: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tiny.refs[0]["sentences"] = []
    tiny.refs[1] |= {"sentences": [], "ann_id": 4471}  # nothing more of such a ref is looked at

    result = build_dataset(tiny.options(tmp_path / "out"))

    assert rejects_of(tmp_path / "out") == [(70, "without_sentences"), (80, "without_sentences")]
    assert (result.descriptor.num_rejects, len(rows_of(tmp_path / "out"))) == (2, 3)
    assert "left out 2 refs whose list of sentences is empty" in caplog.text
    assert verify_dataset(tmp_path / "out") == []


def test_what_is_left_out_is_no_fault_beside_those_that_are(tiny: Any, tmp_path: Path) -> None:
    tiny.refs[0]["sentences"] = []
    tiny.refs[1]["ann_id"] = 4471

    with pytest.raises(AnnotationError, match=r"^refcoco/unc ref 80: annotation 4471 is not in instances\.json[^\n]*$"):
        build_dataset(tiny.options(tmp_path / "out"))
    build_dataset(tiny.options(tmp_path / "out", on_bad_sample="skip", max_bad=1))

    assert len(rejects_of(tmp_path / "out")) == 2


def test_whole_floats_are_ids(tiny: Any, tmp_path: Path) -> None:
    tiny.annotations[0] |= {"id": 900100284400, "iscrowd": 0}
    tiny.refs[0]["ann_id"] = [900100284400]
    build_dataset(tiny.options(tmp_path / "ints"))
    for record in (*tiny.images, *tiny.annotations, *tiny.categories, *tiny.refs):
        for name, value in record.items():
            if name == "ann_id" and isinstance(value, list):
                record[name] = [float(number) for number in value]
            elif name != "iscrowd" and type(value) is int:
                record[name] = float(value)
        for sentence in record.get("sentences", ()):
            sentence["sent_id"] = float(sentence["sent_id"])

    build_dataset(tiny.options(tmp_path / "floats"))

    assert rows_of(tmp_path / "floats") == rows_of(tmp_path / "ints")
    assert len(rows_of(tmp_path / "ints")) == 5


def test_records_that_nothing_uses_do_not_end_a_build(
    tiny: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    nan = float("nan")
    tiny.annotations += [{"id": "x5"}, {"id": 98765, "bbox": [nan, nan, nan, nan]}, 7, {"id": 2.5}]
    tiny.images += [{"id": "photo", "height": float("inf")}, {"id": None}, []]
    tiny.categories += [{"id": "cat", "name": 3}, {"id": 77, "name": None}]

    result = build_dataset(tiny.options(tmp_path / "out"))

    assert result.descriptor.num_rejects == 0
    (said,) = [message for message in caplog.messages if "are ignored" in message]
    for place in ("7 records", "annotations[5]: id 'x5'", "annotations[7]: found 7", "images[6]: id None"):
        assert place in said


@pytest.mark.parametrize("names", [[None], [["a", "b"]], [7], [], ["person", "dog"]])
def test_a_category_without_one_name_is_refused_where_it_is_used(names: list[Any], tiny: Any, tmp_path: Path) -> None:
    tiny.categories = [{"id": 1, "name": name} for name in names] or [{"id": 1}]

    with pytest.raises(AnnotationError, match=r"category 1 of annotation 70 has name .*, expected one string"):
        build_dataset(tiny.options(tmp_path / "out"))


@pytest.mark.parametrize("same_ref", [True, False])
def test_a_sent_id_twice_in_a_split_is_refused(same_ref: bool, tiny: Any, tmp_path: Path) -> None:
    if same_ref:
        tiny.refs[0]["sentences"] *= 2
    else:
        tiny.refs[1]["sentences"][0]["sent_id"] = 70
    tiny.refs[3]["sentences"][0]["sent_id"] = 90  # another split may have it

    with pytest.raises(AnnotationError, match="sent_id 70 occurs more than once in split val, expected it once"):
        build_dataset(tiny.options(tmp_path / "out"))
    build_dataset(tiny.options(tmp_path / "out", on_bad_sample="skip"))

    assert rejects_of(tmp_path / "out") == [(70 if same_ref else 80, "duplicate_sent_id")]
    assert verify_dataset(tmp_path / "out") == []


def test_files_compressed_with_gzip_are_read_as_they_are(tiny: Any, tmp_path: Path) -> None:
    folder = tiny.write() / "refcoco"
    build_dataset(tiny.options(tmp_path / "plain"))
    for name in ("refs(unc).p", "instances.json"):
        (folder / f"{name}.gz").write_bytes(gzip.compress((folder / name).read_bytes()))
        (folder / name).unlink()

    options = BuildOptions(
        dataset="refcoco/unc", annotations=folder, out=tmp_path / "packed", workers=1, accept_counts=True
    )  # the dataset's own folder: pictures are found beside it
    build_dataset(options)

    key = rows_of(tmp_path / "plain")[0].keys() - {"shard", "image_offset"}
    found, expected = (
        [{name: row[name] for name in key} for row in rows_of(tmp_path / at)] for at in ("packed", "plain")
    )
    assert sorted(found, key=str) == sorted(expected, key=str)


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_a_compressed_table_is_read(suffix: str, tmp_path: Path) -> None:
    (row,) = write_custom(tmp_path)
    text = "image,sentence,split,ann_id\na.jpg,the square,val,100\n" if suffix == ".csv" else json.dumps(row)
    (tmp_path / f"sentences{suffix}.gz").write_bytes(gzip.compress(b"\xef\xbb\xbf" + text.encode()))
    (tmp_path / "instances.json.gz").write_bytes(gzip.compress((tmp_path / "instances.json").read_bytes()))
    (tmp_path / "instances.json").unlink()

    (built,) = build_custom(tmp_path)

    assert (built["image_id"], built["area"], built["category"]) == (52, 16, "square")


FAMILIES: dict[str, dict[str, bytes]] = {
    "refcoco/unc": {"refs(unc).p": b"]\x94.", "instances.json": b"{}"},
    "refcoco/google": {"refs(google).json": b"[]", "instances.json": b"{}"},
    "grefcoco/unc": {"finetune_grefcoco_train.json": b"{}", "instances.json": b"{}"},
    "refclef/berkeley": {"referit_query_val.json": b"{}", "referit_bbox.json": b"{}", "referit_imsize.json": b"{}"},
    "custom/csv": {"sentences.csv": b"image,sentence,split,no_target\na.jpg,x,val,1\n", "instances.json": b"{}"},
    "custom/jsonl": {"sentences.jsonl": b'{"image": "a.jpg", "sentence": "x", "split": "val", "no_target": 1}'},
    "custom/parquet": {"sentences.parquet": b"PAR1"},
}
FILES = [(dataset, name) for dataset, names in FAMILIES.items() for name in names]


def read_all(dataset: str, folder: Path, files: dict[str, bytes]) -> None:
    for name, data in files.items():
        (folder / name).write_bytes(data)
    raw = read_source(find_dataset(dataset), folder)
    list(raw.refs)
    list(raw.tables)


@pytest.mark.parametrize(("dataset", "name"), FILES)
@pytest.mark.parametrize(
    ("data", "message"),
    [
        (POINTER, "is a Git LFS pointer, not the file itself; run `git lfs pull` in its repository"),
        (b"<!DOCTYPE html><html>log in</html>", "is a web page or a server's message, not the file itself"),
        ("[{}]".encode("utf-16"), "is UTF-16, expected UTF-8; save it as UTF-8"),
        (b"PK\x03\x04....", "is a ZIP archive; unpack it first"),
        (b"", "is empty, expected data; write or fetch the file again"),
    ],
)
def test_what_stands_in_the_place_of_a_file_is_named(
    dataset: str, name: str, data: bytes, message: str, tmp_path: Path
) -> None:
    with pytest.raises(AnnotationError) as caught:
        read_all(dataset, tmp_path, FAMILIES[dataset] | {name: data})

    assert str(caught.value).startswith(f"{tmp_path / name}: {message}")


@pytest.mark.parametrize(
    ("name", "misspelt", "meant"),
    [
        ("refcoco/refs(unc).json", "refcoco/refs_unc.json", "refs(unc).json"),
        ("refcoco/refs(unc).json", "refcoco/refs(UNC).p", "refs(unc).p"),
        ("refcoco/refs(unc).json", "refcoco/refs(unc).pkl", "refs(unc).p"),
        ("refcoco/refs(unc).json", "refcoco/ref(unc).json", "refs(unc).json"),
        ("refcoco/instances.json", "refcoco/Instances.JSON", "instances.json"),
        ("refcoco", "RefCOCO", "refcoco"),
    ],
)
def test_misspelt_names_are_told(name: str, misspelt: str, meant: str, tiny: Any) -> None:
    root = as_json(tiny).parent
    shutil.move(root / name, root / misspelt)

    with pytest.raises(UsageError) as caught:
        read_source(find_dataset("refcoco/unc"), root)

    assert str(caught.value).endswith(f"; did you mean {Path(misspelt).name}? rename it to {meant}")


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("Sentences.csv", "rename it to sentences.csv"),
        ("sentences.JSONL", "rename it to sentences.jsonl"),
        ("sentence.parquet", "rename it to sentences.parquet"),
        ("sentences.xlsx", "save it as sentences.csv"),
    ],
)
def test_a_misspelt_table_is_told(name: str, remedy: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("x")

    with pytest.raises(UsageError, match=rf"did you mean {re.escape(name)}\? {re.escape(remedy)}$"):
        read_source(find_dataset("custom/mine"), tmp_path)


def test_the_partition_of_another_dataset_is_not_suggested(tiny: Any) -> None:
    with pytest.raises(UsageError) as caught:
        read_source(find_dataset("refcoco/google"), as_json(tiny).parent)

    assert "did you mean" not in str(caught.value)


@pytest.mark.parametrize(
    "image", [{}, {"height": None, "width": None}, {"height": float("nan"), "width": float("nan")}]
)
def test_a_listed_picture_without_a_size_tells_it_itself(image: dict[str, Any], tmp_path: Path) -> None:
    write_rows(tmp_path / "sentences.jsonl", write_custom(tmp_path, **image))

    (row,) = build_custom(tmp_path)

    assert (row["image_id"], row["height"], row["width"], row["area"]) == (52, 10, 20, 16)


def test_the_table_may_tell_the_size_of_a_listed_picture(tmp_path: Path) -> None:
    (row,) = write_custom(tmp_path)
    write_rows(tmp_path / "sentences.jsonl", [{**row, "height": 11, "width": 20}])

    with pytest.raises(RefsegError, match=r"sentences\.jsonl line 1 gives that size"):
        build_custom(tmp_path)


def test_run_lengths_of_another_size_than_a_listed_picture_are_named(tmp_path: Path) -> None:
    (row,) = write_custom(tmp_path)
    rle = {"size": [5, 4], "counts": [2, 18]}
    write_rows(tmp_path / "sentences.jsonl", [{**{n: v for n, v in row.items() if n != "ann_id"}, "rle": rle}])

    with pytest.raises(RefsegError, match=r"rle is 4 x 5 pixels, but a\.jpg is 20 x 10"):
        build_custom(tmp_path)


def test_half_a_size_in_instances_is_a_fault_of_its_own(tmp_path: Path) -> None:
    write_rows(tmp_path / "sentences.jsonl", write_custom(tmp_path, height=10))

    with pytest.raises(AnnotationError, match=r"instances\.json gives image 52 size 10 x None"):
        build_custom(tmp_path)


def test_an_index_that_pandas_marks_is_passed_over_and_an_unmarked_column_is_not(tmp_path: Path) -> None:
    rows = write_custom(tmp_path)
    table = pa.Table.from_pylist([{**row, "__index_level_0__": 4} for row in rows])
    noted = {"pandas": json.dumps({"index_columns": ["__index_level_0__"]})}
    pq.write_table(table.replace_schema_metadata(noted), tmp_path / "sentences.parquet")

    (row,) = build_custom(tmp_path)

    assert row["area"] == 16
    pq.write_table(table, tmp_path / "sentences.parquet")
    with pytest.raises(AnnotationError, match="unknown column '__index_level_0__'"):
        read_source(find_dataset("custom/mine"), tmp_path)


def test_the_index_that_pandas_writes_to_csv_is_passed_over(tmp_path: Path) -> None:
    write_custom(tmp_path)
    (tmp_path / "sentences.csv").write_text(",image,sentence,split,ann_id\n4,a.jpg,the square,val,100\n")

    (row,) = build_custom(tmp_path)

    assert row["area"] == 16


@pytest.mark.parametrize("name", ["x" * 300 + ".jpg", "x" * 300 + "/a.jpg", "x/" * 3000 + "a.jpg"])
def test_a_name_that_no_file_can_have_is_a_picture_that_is_not_there(name: str, tmp_path: Path) -> None:
    rows = write_custom(tmp_path)
    write_rows(tmp_path / "sentences.jsonl", [*rows, {**rows[0], "image": name, "ann_id": None, "no_target": True}])

    with pytest.raises(ImageError, match=r"1 of 2 pictures are not below (.|\n)*line 2: found no file x"):
        build_custom(tmp_path)


def test_ids_of_one_picture_written_in_two_ways_are_one_picture(tmp_path: Path) -> None:
    rows = [
        {"image": name, "sentence": "x", "split": "val", "no_target": True} for name in ("7", "007", "000000000007.jpg")
    ]
    write_rows(tmp_path / "sentences.jsonl", rows)

    raw = read_source(find_dataset("custom/mine"), tmp_path)

    assert [ref["image_id"] for ref in raw.refs] == [7]
    assert list(raw.tables) == [("images", {"id": 7, "file_name": "000000000007.jpg"})]


def test_warnings_name_the_file_that_is_taken(tiny: Any, caplog: pytest.LogCaptureFixture) -> None:
    folder = tiny.write() / "refcoco"
    (folder / "refs(unc).json.gz").write_bytes(gzip.compress(json.dumps(tiny.refs[1:]).encode()))

    with caplog.at_level(logging.WARNING):
        read_source(find_dataset("refcoco/unc"), tiny.root)

    assert "refs(unc).json.gz beside it differs from it at refs[0]" in caplog.text
