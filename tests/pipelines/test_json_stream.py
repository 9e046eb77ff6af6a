import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from pipelines.sources import json_stream
from pipelines.sources.json_stream import JsonList, JsonTables
from refseg.errors import AnnotationError

RECORD = {"id": 12345, "text": 'é 🦒 " \\ ] } ,', "list": [1, -2.5e-3, []], "none": None}
ITEMS = [RECORD, 17, "a", [], {}, True, 0.25, [[1]], 99]


@pytest.fixture(params=[1, 2, 3, 7, 1 << 20])
def chunk(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Number of bytes per read: chunks end within values, letters and numbers."""
    monkeypatch.setattr(json_stream, "_CHUNK", request.param)
    return request.param


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("options", [{}, {"indent": 2}, {"ensure_ascii": False, "separators": (",", ":")}])
def test_a_list_is_read_item_by_item(options: dict[str, Any], chunk: int, tmp_path: Path) -> None:
    items = JsonList(write(tmp_path / "a.json", json.dumps(ITEMS, **options) + " \n"))

    assert list(items) == ITEMS
    assert list(items) == ITEMS  # the file is read anew


def test_lists_are_read_wherever_they_stand_and_the_rest_is_passed_over(chunk: int, tmp_path: Path) -> None:
    file = {"info": {"images": [1]}, "annotations": [{"id": 1}, {"id": 2}], "other": [3], "images": [{"id": 4}], "n": 5}
    path = write(tmp_path / "a.json", json.dumps(file))

    found = list(JsonTables(path, required=("images", "annotations"), optional=("categories",)))

    assert found == [("annotations", {"id": 1}), ("annotations", {"id": 2}), ("images", {"id": 4})]


@pytest.mark.parametrize("text", ['{"images": [], "annotations": [1]}', '{"annotations": [1]}', "{}"])
def test_a_required_list_must_hold_something(text: str, tmp_path: Path) -> None:
    tables = JsonTables(write(tmp_path / "a.json", text), required=("annotations", "images"), optional=())

    with pytest.raises(AnnotationError, match=r"a\.json: found no list '(images|annotations)', expected COCO's"):
        list(tables)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{}", "found an object, expected a list of refs"),
        ("7", "found a number, expected a list of refs"),
        ('"a"', "found a string, expected a list of refs"),
        (
            '{"info": {}, "refs": [1, 2]}',
            "found an object in which 'refs' is a list, expected a list of refs; if that is",
        ),
    ],
)
def test_a_file_that_is_not_a_list_is_named(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(AnnotationError, match=f"a.json: {message}"):
        list(JsonList(write(tmp_path / "a.json", text)))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1]", "found a list, expected an object with COCO's lists"),
        ("null", "found null, expected an object"),
        ('{"images": {"1": {}}}', "found an object as 'images', expected a list of records"),
        ('{"categories": "none"}', "found a string as 'categories', expected a list of records"),
    ],
)
def test_tables_of_another_form_are_named(text: str, message: str, tmp_path: Path) -> None:
    tables = JsonTables(write(tmp_path / "a.json", text), required=("images",), optional=("categories",))

    with pytest.raises(AnnotationError, match=f"a.json: {message}"):
        list(tables)


def test_a_byte_order_mark_and_gzip_change_nothing(chunk: int, tmp_path: Path) -> None:
    text = "\ufeff" + json.dumps(ITEMS)
    (tmp_path / "a.json.gz").write_bytes(gzip.compress(text.encode()))

    assert list(JsonList(write(tmp_path / "a.json", text))) == ITEMS
    assert list(JsonList(tmp_path / "a.json.gz")) == ITEMS


def test_gzip_that_ends_too_early_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.json.gz").write_bytes(gzip.compress(json.dumps(ITEMS * 100).encode())[:-20])

    with pytest.raises(AnnotationError, match=r"a\.json\.gz: cannot be unpacked with gzip .*; fetch the file again"):
        list(JsonList(tmp_path / "a.json.gz"))


def test_numbers_that_are_none_are_left_to_the_check_of_the_records(chunk: int, tmp_path: Path) -> None:
    found = list(JsonList(write(tmp_path / "a.json", '[{"box": [NaN, Infinity, -Infinity]}]')))

    assert repr(found) == "[{'box': [nan, inf, -inf]}]"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1, 2", "found 'the end', expected ']' at character 5"),
        ("[1, 2,]", "Expecting value at character 6"),
        ("[1 2]", "found '2', expected ']' at character 3"),
        ("[1] 2", "more than one value, at character 4"),
        ('["abc', "Unterminated string starting at at character 1"),
        ("[1" + "0" * 5000 + "]", "a number has too many digits in the value at character 1"),
        ("[1, tru]", "Expecting value at character 4"),
        ("[" * 100_000, "brackets are nested too deep in the value at character"),
    ],
)
def test_a_file_that_is_no_json_is_named(text: str, message: str, chunk: int, tmp_path: Path) -> None:
    with pytest.raises(AnnotationError, match=r"a\.json: cannot be read as JSON \(.*\); fetch the file again") as error:
        list(JsonList(write(tmp_path / "a.json", text)))
    assert message in str(error.value)


def test_bytes_that_are_no_text_are_named(chunk: int, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(b'["\xff"]')
    with pytest.raises(AnnotationError, match=r"is not UTF-8 .*; save it as UTF-8"):
        list(JsonList(tmp_path / "a.json"))
