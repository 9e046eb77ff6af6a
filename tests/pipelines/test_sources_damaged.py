"""Damaged annotation files of every family give a plan or an error that names the file."""

import csv
import io
import json
import pickle
import random
import tempfile
from collections.abc import Callable
from contextlib import suppress
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pipelines.options import BuildOptions
from pipelines.planning import make_plan
from pipelines.sources import read_source
from refseg.dataset.schema import find_dataset
from refseg.errors import RefsegError

Write = Callable[[Any], bytes]

IMAGES = [
    {"id": key, "file_name": f"COCO_train2014_{key:012d}.jpg", "height": 10, "width": 20, "license": 4}
    for key in (7, 8)
]
ANNOTATIONS = [
    {"id": 10 * key, "image_id": key, "category_id": 1, "iscrowd": 0, "area": 16.5, "bbox": [1, 2, 4, 4],
     "segmentation": [[1, 2, 5, 2, 5, 6, 1, 6]]}
    for key in (7, 8)
]  # fmt: skip
ANNOTATIONS.append(
    {**ANNOTATIONS[0], "id": 71, "iscrowd": 1, "segmentation": {"size": [10, 20], "counts": [2, 4, 194]}}
)
INSTANCES = {
    "info": {"year": 2014}, "images": IMAGES, "annotations": ANNOTATIONS,
    "categories": [{"id": 1, "name": "person"}], "licenses": [{"id": 4, "name": "CC", "url": "http://cc"}],
}  # fmt: skip
REFS = [
    {"ref_id": key, "ann_id": ann_id, "image_id": key, "split": "val", "category_id": 1, "sent_ids": [key],
     "sentences": [{"sent_id": key, "sent": "the square", "raw": "The Square", "tokens": ["the", "square"]}]}
    for key, ann_id in ((7, 70), (8, [80]))
]  # fmt: skip
GREFS = [
    *REFS,
    {
        **REFS[0],
        "ref_id": 9,
        "ann_id": [70, 71],
        "no_target": False,
        "sent_ids": [9],
        "sentences": [{"sent_id": 9, "sent": "all"}],
    },
]
MDETR = {
    "images": [
        {**image, "id": number, "original_id": image["id"], "caption": "the square"}
        for number, image in enumerate(IMAGES)
    ],
    "annotations": [
        {**ANNOTATIONS[number], "id": number, "image_id": number, "original_id": 10 * key}
        for number, key in enumerate((7, 8))
    ],
    "categories": [{"id": 1, "name": "person"}],
}
ROWS = [
    {
        "image": "a.jpg",
        "sentence": "one",
        "split": "val",
        "box": [1, 2, 3, 4],
        "ref_id": 1,
        "sent_id": 1,
        "category": "dog",
    },
    {
        "image": "b.jpg",
        "sentence": "two",
        "split": "val",
        "rle": {"size": [10, 20], "counts": [2, 4, 194]},
        "ref_id": 2,
        "sent_id": 2,
    },
    {"image": IMAGES[0]["file_name"], "sentence": "three", "split": "testA", "ann_id": [70], "ref_id": 3, "sent_id": 3},
    {
        "image": "a.jpg",
        "sentence": "four",
        "split": "val",
        "no_target": True,
        "height": 10,
        "width": 20,
        "ref_id": 4,
        "sent_id": 4,
    },
]


def as_json(value: Any) -> bytes:
    return json.dumps(value).encode()


def as_old_pickle(value: Any) -> bytes:
    return pickle.dumps(value, protocol=2)


def as_lines(value: Any) -> bytes:
    return b"".join(as_json(row) + b"\n" for row in (value if isinstance(value, list) else [value]))


def as_csv(value: Any) -> bytes:
    text = io.StringIO()
    rows = [row for row in value if isinstance(row, dict)] if isinstance(value, list) else []
    names = list(dict.fromkeys(str(name) for row in rows for name in row))
    writer = csv.DictWriter(text, names, extrasaction="ignore")
    writer.writeheader()
    writer.writerows(
        {str(name): json.dumps(item) if isinstance(item, dict | list) else item for name, item in row.items()}
        for row in rows
    )
    return text.getvalue().encode("utf-8", "surrogatepass")


def as_parquet(value: Any) -> bytes:
    rows = [row for row in value if isinstance(row, dict)] if isinstance(value, list) else []
    names = list(dict.fromkeys(name for row in rows for name in row))
    texts = [{name: None if row.get(name) is None else json.dumps(row[name]) for name in names} for row in rows]
    for row in texts:  # JSON's text of a text has quotes
        row |= {
            name: json.loads(row[name]) for name in ("image", "sentence", "split") if (row.get(name) or "")[:1] == '"'
        }
    file = io.BytesIO()
    with suppress(UnicodeEncodeError):  # half of a surrogate pair: Arrow has no such text
        pq.write_table(pa.Table.from_pylist(texts), file)
    return file.getvalue()


FAMILIES: dict[str, dict[str, tuple[Any, Write]]] = {
    "refcoco/unc": {"refs(unc).p": (REFS, as_old_pickle), "instances.json": (INSTANCES, as_json)},
    "refcoco/google": {"refs(google).json": (REFS, as_json), "instances.json": (INSTANCES, as_json)},
    "grefcoco/unc": {"grefs(unc).json": (GREFS, as_json), "instances.json": (INSTANCES, as_json)},
    "refzom/final": {
        "refs(final).p": ([{**REFS[0], "source": "zero", "ref_id": np.int64(7)}], pickle.dumps),
        "instances.json": (INSTANCES, as_json),
    },
    "refcocoplus/unc": {"finetune_refcoco+_val.json": (MDETR, as_json)},
    "refclef/berkeley": {
        "referit_query_val.json": ({"7_1": ["the sand", "sand"], "8_1": ["sky"]}, as_json),
        "referit_bbox.json": ({"7_1": [1, 2, 5, 6], "8_1": [1, 2, 5, 6]}, as_json),
        "referit_imsize.json": ({"7.jpg": [20, 10], "8.jpg": [20, 10]}, as_json),
    },
    "custom/csv": {"sentences.csv": (ROWS, as_csv), "instances.json": (INSTANCES, as_json)},
    "custom/jsonl": {"sentences.jsonl": (ROWS, as_lines), "instances.json": (INSTANCES, as_json)},
    "custom/parquet": {"sentences.parquet": (ROWS, as_parquet), "instances.json": (INSTANCES, as_json)},
}  # fmt: skip
FILES = [(dataset, name) for dataset, files in FAMILIES.items() for name in files]

DEEP: list[Any] = []
for _ in range(150):
    DEEP = [DEEP]
ODD: list[Any] = [
    None, True, False, 0, -1, 1, 7, 70, 7.0, 0.5, 1e308, float("nan"), float("inf"), 2**53, 2**63, 2**70, 10**400, "",
    " ", "7", "\ud800", "\0", "a/../b", "/etc/passwd", "x" * 3000, "\u200b", [], [[]], {}, [None], [7, "7"], {"id": 7},
    [float("nan")] * 6, [1e300] * 6, [[0, 0, 1e300, 0, 1e300, 1e300]], {"size": [10, 20], "counts": "~~"}, DEEP,
    {"size": [10**6, 10**6], "counts": [10**12]}, [{"size": [10, 20], "counts": [200]}],
]  # fmt: skip
SPECIAL = [
    b"NaN", b"-Infinity", b"1e999", b"9" * 5000, b"[" * 3000, b"[" * 900 + b"]" * 900, b'{"a":' * 2000, b'"',
    b"\xff\xfe", b"\xef\xbb\xbf", b"\0" * 30, b"\r\n", b",", b"]", b"}", b'"\\ud800"', b"cos\nsystem\n", b"R", b"b",
]  # fmt: skip


def spoil_values(value: Any, rng: random.Random) -> Any:
    """Replace, remove or repeat one value somewhere in a tree of dicts and lists."""
    value = deepcopy(value)
    place, key, node = None, None, value
    while isinstance(node, dict | list) and node and (place is None or rng.random() < 0.8):
        place, key = node, rng.choice(list(node)) if isinstance(node, dict) else rng.randrange(len(node))
        node = place[key]
    if place is None or rng.random() < 0.03:
        return rng.choice(ODD)
    kind = rng.random()
    if kind < 0.15:
        del place[key]
    elif kind < 0.25 and isinstance(place, list):
        place.insert(key, deepcopy(node))
    elif kind < 0.3 and isinstance(place, dict):
        place[rng.choice(["id", "images", "", "\ud800", "x" * 3000, "no_target", "size"])] = place.pop(key)
    else:
        place[key] = rng.choice(ODD)
    return value


def spoil_bytes(data: bytes, rng: random.Random) -> bytes:
    """Remove, change, insert or repeat bytes at one offset."""
    at = rng.randrange(len(data) + 1)
    kind = rng.randrange(5)
    if kind == 0:
        return data[:at]
    if kind == 1:
        return data[:at] + bytes([rng.randrange(256)]) + data[at + 1 :]
    if kind == 2:
        return data[:at] + rng.choice(SPECIAL) + data[at + rng.choice((0, 0, 1, 4)) :]
    if kind == 3:
        return data[:at] + data[at + rng.randrange(1, 40) :]
    return data[:at] + data[max(0, at - rng.randrange(1, 60)) :]


def draw_pictures(folder: Path) -> None:
    for name in (
        "images/a.jpg",
        "images/b.jpg",
        "images/7.jpg",
        "images/8.jpg",
        *(f"images/{image['file_name']}" for image in IMAGES),
    ):
        (folder / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (20, 10)).save(folder / name)


def plan_damaged(root: Path, dataset: str, name: str, seed: int) -> str:
    """Damage one file of a family, read all and plan; the message of the error, empty if there was none."""
    rng = random.Random(seed)
    for file, (value, write) in FAMILIES[dataset].items():
        data = write(value)
        if file == name:
            spoilt = value
            for _ in range(rng.choice((0, 1, 1, 2))):
                spoilt = spoil_values(spoilt, rng)
            data = write(spoilt)
            if spoilt is value or rng.random() < 0.2:
                data = spoil_bytes(data, rng)
        (root / file).write_bytes(data)
    (root / "out" / ".build" / "samples").mkdir(parents=True)
    try:
        options = BuildOptions(
            dataset=dataset, annotations=root, out=root / "out", accept_counts=True,
            on_bad_sample=rng.choice(("skip", "fail")),
        )  # fmt: skip
        make_plan(read_source(find_dataset(dataset), root), options, workers=1)
    except RefsegError as error:
        message = str(error)
        assert all(line.isprintable() for line in message.splitlines())
        assert len(message) < 8000
        return message
    return ""


@pytest.mark.parametrize("dataset", FAMILIES)
def test_the_undamaged_files_of_a_family_are_planned(dataset: str, tmp_path: Path) -> None:
    draw_pictures(tmp_path)
    for name, (value, write) in FAMILIES[dataset].items():
        (tmp_path / name).write_bytes(write(value))
    (tmp_path / "out" / ".build" / "samples").mkdir(parents=True)
    options = BuildOptions(dataset=dataset, annotations=tmp_path, out=tmp_path / "out", accept_counts=True)

    assert make_plan(read_source(find_dataset(dataset), tmp_path), options, workers=1).rejects == ()


@settings(max_examples=40, deadline=None)
@given(file=st.sampled_from(FILES), seed=st.integers(0, 2**32))
def test_damaged_files_end_as_a_plan_or_as_a_named_error(file: tuple[str, str], seed: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        draw_pictures(Path(folder))
        plan_damaged(Path(folder), *file, seed)
