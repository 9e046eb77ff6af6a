"""Any content of a user's table gives refs or an error that names the file."""

import csv
import io
import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.sources import read_source
from pipelines.sources.custom_row import COLUMNS
from refseg.dataset.schema import find_dataset
from refseg.errors import AnnotationError

MINE = find_dataset("custom/mine")
NUMBERS = st.one_of(st.integers(), st.floats(), st.integers(-3, 30))
TEXT = st.one_of(
    st.text(max_size=12), st.sampled_from(["a.jpg", "7", "train", "true", "m.png", "1 2 3 4", "[1]", ".."])
)
RLE = st.fixed_dictionaries(
    {"size": st.lists(NUMBERS, max_size=3), "counts": st.one_of(st.text(max_size=9), st.lists(NUMBERS, max_size=4))}
)
ANYTHING: st.SearchStrategy[Any] = st.one_of(
    st.none(), st.booleans(), NUMBERS, TEXT, RLE, RLE.map(json.dumps), st.lists(st.one_of(NUMBERS, TEXT), max_size=5)
)
USUAL: dict[str, st.SearchStrategy[Any]] = {
    "image": st.sampled_from(["a.jpg", "b.jpg", 7, "é/c.jpg"]),
    "sentence": st.sampled_from(["the one", "两个", " x\ty ", '"'])
    , "split": st.sampled_from(["train", "val", "testA"]),
}  # fmt: skip
ROW = st.fixed_dictionaries(
    {name: st.one_of(usual, usual, usual, ANYTHING) for name, usual in USUAL.items()},
    optional=dict.fromkeys(COLUMNS[3:], ANYTHING),
)
GOOD = st.fixed_dictionaries(
    {
        **USUAL,
        "rle": st.one_of(
            st.just({"size": [3, 4], "counts": [2, 4, 6]}),
            st.lists(st.integers(0, 5), max_size=4).map(lambda counts: {"size": [3, 4], "counts": counts}),
            st.text("0123456789:;<=>?@AO`o", max_size=6).map(lambda counts: {"size": [3, 4], "counts": counts}),
        ),
    }
)


def read_whole(path: Path, data: bytes) -> int | None:
    """Read a table and return the number of its sentences; None if it is refused."""
    path.write_bytes(data)
    try:
        raw = read_source(MINE, path)
        refs, tables = list(raw.refs), list(raw.tables)
    except AnnotationError as error:
        if str(error).startswith(str(path)):
            return None
        raise
    ids = {(section, record["id"]) for section, record in tables}
    assert len(ids) == len(tables)
    for ref in refs:
        assert ref["split"] in raw.spec.splits
        assert ("images", ref["image_id"]) in ids
        assert ref["ann_id"] == -1 or ("annotations", ref["ann_id"]) in ids
    assert len({ref["ref_id"] for ref in refs}) == len(refs)
    return sum(len(ref["sentences"]) for ref in refs)


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(st.lists(ROW, max_size=4))
def test_any_json_lines_end_as_refs_or_as_a_named_error(rows: list[dict[str, Any]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        found = read_whole(Path(folder) / "t.jsonl", "".join(json.dumps(row) + "\n" for row in rows).encode())

    assert found in (None, len(rows))


@settings(max_examples=60, deadline=None)
@given(st.lists(GOOD, min_size=1, max_size=5))
def test_rows_of_the_right_form_lose_no_sentence(rows: list[dict[str, Any]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        found = read_whole(Path(folder) / "t.jsonl", "".join(json.dumps(row) + "\n" for row in rows).encode())

    assert found == len(rows)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(TEXT, min_size=4, max_size=4), max_size=4), st.sampled_from(COLUMNS[3:]))
def test_any_csv_ends_as_refs_or_as_a_named_error(rows: list[list[str]], column: str) -> None:
    text = io.StringIO()
    csv.writer(text).writerows([["image", "sentence", "split", column], *rows])
    with tempfile.TemporaryDirectory() as folder:
        found = read_whole(Path(folder) / "t.csv", text.getvalue().encode("utf-8", "surrogatepass"))

    assert found in (None, len(rows))


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=60), st.sampled_from([".csv", ".jsonl"]))
def test_any_bytes_end_as_a_named_error(data: bytes, suffix: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        assert read_whole(Path(folder) / f"t{suffix}", data) is None
