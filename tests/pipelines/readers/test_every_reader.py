"""What holds for every reader of the registry, new ones too: examples, compression, marks, floats, damaged files."""

import copy
import gzip
import importlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from pipelines.sources import FAMILIES, READERS, ReadOptions, read_source
from refseg.dataset.schema import find_dataset
from refseg.errors import AnnotationError, RefsegError, UsageError

from .example import Example, meanings, read, to_bytes

LAYOUTS = [name for name in READERS if READERS[name] not in FAMILIES]
MARK = "\ufeff".encode()
ODD = (None, "x", [], -1)
MOST_CHANGES = int(os.environ.get("REFSEG_TEST_CHANGES", "16"))


def example_of(reader: str) -> Example:
    """The `EXAMPLE` of a reader's own test."""
    module = importlib.import_module(f"tests.pipelines.readers.test_{reader.replace('-', '_')}")
    example: Example = module.EXAMPLE
    assert example.reader == reader
    return example


def check(example: Example, folder: Path) -> None:
    found = meanings(read(folder, example.reader))
    assert found.keys() == example.means.keys()
    for meaning, mask in example.means.items():
        assert (found[meaning] == mask).all(), meaning


@pytest.mark.parametrize("reader", LAYOUTS)
def test_its_example_means_what_was_worked_out_by_hand(
    reader: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    example = example_of(reader)

    check(example, example.write(tmp_path))

    for words in example.leaves_out:
        assert words in caplog.text
    assert bool(example.leaves_out) == bool(caplog.messages)


@pytest.mark.parametrize("reader", LAYOUTS)
def test_compressed_files_and_byte_order_marks_change_nothing(reader: str, tmp_path: Path) -> None:
    example = example_of(reader)
    for name, content in example.files.items():
        mark = b"" if isinstance(content, pa.Table) else MARK
        path = tmp_path / f"{name}.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(gzip.compress(mark + to_bytes(content)))

    check(example, tmp_path)


@pytest.mark.parametrize("reader", LAYOUTS)
def test_whole_numbers_may_be_floats(reader: str, tmp_path: Path) -> None:
    def floated(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: floated(part) if name not in ("rle", "counts") else part for name, part in value.items()}
        if isinstance(value, list):
            return [floated(part) for part in value]
        return float(value) if type(value) is int else value

    example = example_of(reader)
    check(example, example.write(tmp_path, {name: floated(content) for name, content in example.files.items()}))


@pytest.mark.parametrize("reader", LAYOUTS)
def test_a_file_of_something_else_is_named(reader: str, tmp_path: Path) -> None:
    example = example_of(reader)
    name, content = next(iter(example.files.items()))
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    data = to_bytes(content)
    for wrong in (b"", b"{", b"[]", b"{}", b"[1]", b"null", b"<html></html>", data[: len(data) // 2], b"\xff\xfe"):
        path.write_bytes(wrong)
        with pytest.raises(AnnotationError) as caught:
            read(tmp_path, reader)
        assert str(path) in str(caught.value) or f"{name} " in str(caught.value) or str(tmp_path) in str(caught.value)


@pytest.mark.parametrize("reader", LAYOUTS)
def test_odd_values_end_as_refs_or_as_a_message_with_the_place(reader: str, tmp_path: Path) -> None:
    example = example_of(reader)
    for name, content in example.files.items():
        if isinstance(content, str | pa.Table):
            continue
        for changed in changes(content):
            example.write(tmp_path, {name: changed})
            said = ""
            try:
                meanings(read(tmp_path, reader))
            except RefsegError as error:  # of a shape alone, whose ref the build names
                said = str(error)
            assert not said or any(words in said for words in (str(tmp_path), "polygon", "run lengths")), changed
        example.write(tmp_path)


def changes(content: Any) -> Iterator[Any]:
    """The content with one of its values replaced, at places spread over it."""

    def places(value: Any, way: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
        parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        for key, part in parts:
            yield (*way, key)
            if key not in ("rle", "counts"):
                yield from places(part, (*way, key))

    ways = list(places(content))
    for number, way in enumerate(ways[:: len(ways) // MOST_CHANGES + 1]):
        changed = copy.deepcopy(content)
        holder = changed
        for key in way[:-1]:
            holder = holder[key]
        holder[way[-1]] = ODD[number % len(ODD)]
        yield changed


@pytest.mark.parametrize("reader", LAYOUTS)
def test_a_reader_that_is_not_named_is_not_used(reader: str, tmp_path: Path) -> None:
    example = example_of(reader)
    example.write(tmp_path)

    with pytest.raises(UsageError, match=r"found no sentences\.csv, \.jsonl or \.parquet"):
        read_source(find_dataset("custom/mine"), tmp_path)
    with pytest.raises(UsageError, match=r"which refcoco/unc does not have; expected one of mdetr, "):
        read_source(find_dataset("refcoco/unc"), tmp_path, reader=reader)


def test_a_wrong_name_of_a_reader_is_answered_with_all(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--reader label_studio: expected one of table, .*did you mean label-studio"):
        read_source(find_dataset("custom/mine"), tmp_path, reader="label_studio")


def test_a_split_comes_from_the_file_the_folder_or_the_user(tmp_path: Path) -> None:
    record = {"image": "a.jpg", "mask": [[[1, 2, 5, 2, 5, 6]]], "text": ["the one"]}
    folder = tmp_path / "mine"  # the name of pytest's own folder might name a split
    for name in ("my_train.json", "valid/labels.json", "testA/x.json"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps([record]))
    spec = find_dataset("custom/mine")

    assert read_source(spec, folder, reader="sa2va").spec.splits == ("train", "val", "testA")
    assert read_source(spec, folder, ReadOptions(as_split="extra"), reader="sa2va").spec.splits == ("extra",)
    (folder / "train_val.json").write_text(json.dumps([record]))
    with pytest.raises(UsageError, match=r"train_val.json: its name says no split, .*or give --as-split NAME"):
        read_source(spec, folder, reader="sa2va")


def test_a_picture_beside_its_file_is_that_picture(tmp_path: Path) -> None:
    record = {"image": "a.jpg", "mask": [[[1, 2, 5, 2, 5, 6]]], "text": ["the one"]}
    for folder in ("train", "val"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "list.json").write_text(json.dumps([record]))
    (tmp_path / "val" / "a.jpg").touch()

    raw = read_source(find_dataset("custom/mine"), tmp_path, reader="sa2va")

    names = {record["id"]: record["file_name"] for section, record in raw.tables if section == "images"}
    assert {ref["split"]: names[ref["image_id"]] for ref in raw.refs} == {"train": "a.jpg", "val": "val/a.jpg"}


def test_many_files_are_one_entry_of_the_descriptor(tmp_path: Path) -> None:
    record = {"image": "a.jpg", "mask": [[[1, 2, 5, 2, 5, 6]]], "text": ["the one"]}
    for number in range(21):
        (tmp_path / f"train_{number}.json").write_text(json.dumps([record | {"image": f"{number}.jpg"}]))

    first = read_source(find_dataset("custom/mine"), tmp_path, reader="sa2va").sources
    (tmp_path / "train_7.json").write_text(json.dumps([record | {"image": "other.jpg"}]))
    second = read_source(find_dataset("custom/mine"), tmp_path, reader="sa2va").sources

    assert [source.name for source in first] == [source.name for source in second] == ["mine/21 files"]
    assert first[0].sha256 != second[0].sha256
