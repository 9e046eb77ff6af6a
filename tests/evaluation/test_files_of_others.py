"""Files of other programs that are damaged in any way are read, or refused by an error of this project."""

import io
import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from refseg.apps.demo_pictures import KINDS, Limits
from refseg.apps.predict import decode_picture
from refseg.errors import ImageError, PredictionError
from refseg.evaluation.predictions import read_predictions
from refseg.evaluation.protocols import ORIGINAL

RECORDS: list[dict[str, Any]] = [
    {"ref_id": 1, "sent_id": 2, "segmentation": {"size": [4, 5], "counts": [0, 20]}, "no_target": True, "split": "val"},
    {"ref_id": 2, "sent_id": 3, "segmentation": {"size": [4, 5], "counts": [3, 17]}, "no_target": None, "split": None},
]
VALUES = st.one_of(
    st.none(), st.booleans(), st.sampled_from([2**31, 2**64, -1, 1e300, float("nan")]), st.integers(), st.floats(),
    st.text(max_size=9), st.just([]), st.just({}), st.lists(st.integers(-1, 2**33), max_size=4), st.just([[1]]),
)  # fmt: skip
QUICK = settings(
    max_examples=60,
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
"""A second or two each; longer runs are started by hand."""


def damaged(data: bytes, places: list[tuple[float, int]], end: float) -> bytes:
    """The bytes with some of them replaced, and cut short."""
    changed = bytearray(data[: round(len(data) * end)])
    for place, value in places:
        if changed:
            changed[int(place * len(changed))] = value
    return bytes(changed)


DAMAGE = st.tuples(
    st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=3),
    st.one_of(st.just(1.0), st.floats(0, 1)),
)


@pytest.mark.parametrize("key", ["ref_id", "sent_id", "segmentation", "size", "counts", "no_target", "split", "score"])
def test_a_record_with_any_value_is_read_or_refused(tmp_path: Path, key: str) -> None:
    @QUICK
    @given(VALUES, st.sampled_from([".json", ".jsonl"]))
    def read(value: Any, suffix: str) -> None:
        records = json.loads(json.dumps(RECORDS))
        (records[0]["segmentation"] if key in ("size", "counts") else records[0])[key] = value
        lines = [json.dumps(record) for record in records]
        path = tmp_path / f"masks{suffix}"
        path.write_text("\n".join(lines) if suffix == ".jsonl" else f"[{','.join(lines)}]", encoding="utf-8")
        with suppress(PredictionError):
            read_predictions(path, [ORIGINAL], "val")

    read()


def _parquet() -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(RECORDS), file)
    return file.getvalue()


@pytest.mark.parametrize(
    ("suffix", "whole"),
    [
        (".json", lambda: json.dumps(RECORDS).encode()),
        (".jsonl", lambda: "\n".join(map(json.dumps, RECORDS)).encode()),
        (".parquet", _parquet),
    ],
    ids=[".json", ".jsonl", ".parquet"],
)
def test_a_damaged_file_of_masks_is_read_or_refused(tmp_path: Path, suffix: str, whole: Callable[[], bytes]) -> None:
    data, path = whole(), tmp_path / f"masks{suffix}"
    path.write_bytes(data)
    assert len(read_predictions(path, [ORIGINAL], "val").masks[0]) == 2

    @QUICK
    @given(DAMAGE)
    def read(damage: tuple[list[tuple[float, int]], float]) -> None:
        path.write_bytes(damaged(data, *damage))
        with suppress(PredictionError):
            read_predictions(path, [ORIGINAL], "val")

    read()


@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_picture_is_decoded_or_refused(kind: str) -> None:
    file = io.BytesIO()
    Image.linear_gradient("L").resize((40, 30)).convert("RGB").save(file, kind)

    @QUICK
    @given(DAMAGE)
    def decode(damage: tuple[list[tuple[float, int]], float]) -> None:
        with suppress(ImageError):
            pixels = decode_picture(damaged(file.getvalue(), *damage), name="a", kinds=KINDS, largest=Limits().picture)
            assert pixels.shape[2] == 3

    decode()
