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
    """Bytes read at once: values are cut anywhere, letters and numbers too."""
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


@pytest.mark.parametrize("text", ['{"images": [], "annotations": [1]}', '{"annotations": [1]}', "[1]", "{}", "7"])
def test_a_required_list_must_hold_something(text: str, tmp_path: Path) -> None:
    tables = JsonTables(write(tmp_path / "a.json", text), required=("annotations", "images"), optional=())

    with pytest.raises(AnnotationError, match=r"a\.json: found no list '(images|annotations)', expected COCO's"):
        list(tables)


@pytest.mark.parametrize("text", ["{}", "7", '"a"', '{"a": [1, 2]}'])
def test_a_file_that_is_no_list_has_no_items(text: str, tmp_path: Path) -> None:
    assert list(JsonList(write(tmp_path / "a.json", text))) == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "Expecting value at character 0"),
        ("[1, 2", "found 'the end', expected ']' at character 5"),
        ("[1, 2,]", "Expecting value at character 6"),
        ("[1 2]", "found '2', expected ']' at character 3"),
        ("[1] 2", "more than one value, at character 4"),
        ('["abc', "Unterminated string starting at at character 1"),
        ("[NaN]", "NaN is no JSON"),
        ("[1, tru]", "Expecting value at character 4"),
        ("[" * 100_000, "recursion"),
    ],
)
def test_a_file_that_is_no_json_is_named(text: str, message: str, chunk: int, tmp_path: Path) -> None:
    with pytest.raises(AnnotationError, match=r"a\.json: cannot be read as JSON \(.*\); fetch the file again") as error:
        list(JsonList(write(tmp_path / "a.json", text)))
    assert message in str(error.value)


def test_bytes_that_are_no_text_are_named(chunk: int, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(b'["\xff"]')
    with pytest.raises(AnnotationError, match="cannot be read as JSON"):
        list(JsonList(tmp_path / "a.json"))
