"""ReferIt's boxes in text_objseg's format: by hand, and from the released files."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from pipelines.sources import read_source
from refseg.dataset.schema import find_dataset
from refseg.errors import AnnotationError, UsageError

BERKELEY = find_dataset("refclef/berkeley")


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Any]:
    """Contents by name; `write` puts them into `refclef/`."""
    return {
        "referit_query_train.json": {"112_3": ["the sand", "sand  below"], "112_1": ["sky"]},
        "referit_query_test.json": {"40_39": ["any tree"]},
        "referit_bbox.json": {"112_1": [0, 0, 479, 132], "112_3": [10, 133, 10, 359], "40_39": [5, 5, 9, 6]},
        "referit_imsize.json": {"112.jpg": [480, 360], "40.jpg": [360, 480]},
    }


def write(root: Path, files: dict[str, Any]) -> Path:
    (root / "refclef").mkdir(exist_ok=True)
    for name, content in files.items():
        (root / "refclef" / name).write_text(json.dumps(content))
    return root


def test_regions_become_refs_with_boxes(tmp_path: Path, files: dict[str, Any]) -> None:
    raw = read_source(BERKELEY, write(tmp_path, files))

    first, second, third = raw.refs
    assert first == {
        "ref_id": 112_003, "ann_id": 112_003, "image_id": 112, "split": "train",
        "sentences": [
            {"sent": "the sand", "sent_id": 112_003_000, "tokens": ["the", "sand"]},
            {"sent": "sand  below", "sent_id": 112_003_001, "tokens": ["sand", "below"]},
        ],
    }  # fmt: skip
    assert (second["ref_id"], third["ref_id"], third["split"]) == (112_001, 40_039, "test")
    assert [record for section, record in raw.tables if section == "images"] == [
        {"id": 112, "file_name": "112.jpg", "height": 360, "width": 480},
        {"id": 40, "file_name": "40.jpg", "height": 480, "width": 360},
    ]
    # Both corners are pixels of the box: 0 to 479 is the whole width of 480.
    assert {record["id"]: (record["bbox"], record["area"]) for section, record in raw.tables if "bbox" in record} == {
        112_001: ([0, 0, 480, 133], 480 * 133),
        112_003: ([10, 133, 1, 227], 227),
        40_039: ([5, 5, 5, 2], 10),
    }
    assert raw.box_targets
    assert not any("segmentation" in record for _, record in raw.tables)


def test_ids_do_not_hang_on_which_splits_are_there(tmp_path: Path, files: dict[str, Any]) -> None:
    whole = {ref["ref_id"]: ref for ref in read_source(BERKELEY, write(tmp_path, files)).refs}
    (tmp_path / "refclef" / "referit_query_train.json").unlink()

    (left,) = read_source(BERKELEY, tmp_path / "refclef").refs

    assert left == whole[40_039]


def test_what_is_out_of_form_is_left_for_its_ref_to_be_rejected(tmp_path: Path, files: dict[str, Any]) -> None:
    files["referit_query_train.json"] = {"112-3": ["x"], "112_1": "sky", "112_3": [None]}
    files["referit_bbox.json"] |= {"112_1": [3, 0, 1, 9], "112_3": [1, 2], "odd": [0, 0, 1, 1]}
    files["referit_imsize.json"] = {"112.jpg": [480], "40.jpg": [360, 480], "x.jpg": [1, 1]}

    raw = read_source(BERKELEY, write(tmp_path, files))

    unnamed, bare, odd, _ = raw.refs
    assert (unnamed["ref_id"], unnamed["image_id"], unnamed["sentences"][0]["sent_id"]) == (None, None, None)
    assert bare["sentences"] == "sky"
    assert odd["sentences"] == [{"sent": None, "sent_id": 112_003_000}]
    boxes = {record["id"]: record["bbox"] for _, record in raw.tables if "bbox" in record}
    assert boxes == {112_001: None, 112_003: [1, 2], 40_039: [5, 5, 5, 2]}
    images = [record for section, record in raw.tables if section == "images"]
    assert [(image["id"], image["height"]) for image in images] == [(112, None), (40, 480)]


def test_refers_own_release_is_preferred(tmp_path: Path, files: dict[str, Any]) -> None:
    write(tmp_path, files)
    (tmp_path / "refclef" / "refs(berkeley).p").write_bytes(b"damaged")
    (tmp_path / "refclef" / "instances.json").write_text("{}")

    with pytest.raises(AnnotationError, match=r"refs\(berkeley\).p"):
        list(read_source(BERKELEY, tmp_path).refs)


@pytest.mark.parametrize("name", ["referit_bbox.json", "referit_imsize.json"])
def test_all_files_are_needed(name: str, tmp_path: Path, files: dict[str, Any]) -> None:
    del files[name]

    with pytest.raises(
        UsageError, match=f"found no {name}; take it from the same release as referit_query_train.json, "
    ):
        read_source(BERKELEY, write(tmp_path, files))


@pytest.mark.parametrize(("content", "message"), [("[1]", "found a list, expected"), ("{", "cannot be read as JSON")])
def test_a_damaged_file_is_named(content: str, message: str, tmp_path: Path, files: dict[str, Any]) -> None:
    write(tmp_path, files)
    (tmp_path / "refclef" / "referit_bbox.json").write_text(content)

    with pytest.raises(AnnotationError, match=f"referit_bbox.json: {message}"):
        read_source(BERKELEY, tmp_path)


@pytest.mark.slow
def test_the_released_files_hold_what_they_say(shared_data: Path) -> None:
    raw = read_source(BERKELEY, shared_data / "referit-berkeley")

    refs: Counter[str] = Counter()
    sentences: Counter[str] = Counter()
    images: dict[str, set[int]] = {}
    ref_ids, sent_ids = set(), set()
    for ref in raw.refs:
        refs[ref["split"]] += 1
        sentences[ref["split"]] += len(ref["sentences"])
        images.setdefault(ref["split"], set()).add(ref["image_id"])
        ref_ids.add(ref["ref_id"])
        sent_ids |= {sentence["sent_id"] for sentence in ref["sentences"]}
    assert refs == {"train": 44_649, "val": 4_866}
    assert sentences == {"train": 54_134, "val": 5_842}
    assert {split: len(found) for split, found in images.items()} == {"train": 8_995, "val": 1_000}
    assert (len(ref_ids), len(sent_ids)) == (44_649 + 4_866, 54_134 + 5_842)
    assert images["train"].isdisjoint(images["val"])
    assert not any(sentence["sent"] == "" for ref in raw.refs for sentence in ref["sentences"])


@pytest.mark.slow
def test_every_released_box_lies_in_its_image(shared_data: Path) -> None:
    raw = read_source(BERKELEY, shared_data / "referit-berkeley")
    sizes = {record["id"]: record for section, record in raw.tables if section == "images"}
    assert len(sizes) == 20_000
    with Image.open(shared_data / "referit-berkeley" / "38100.jpg") as picture:
        assert picture.size == (sizes[38100]["width"], sizes[38100]["height"])

    num_boxes = 0
    for section, record in raw.tables:
        if section == "annotations":
            left, top, width, height = record["bbox"]
            image = sizes[record["image_id"]]
            assert 0 <= left < left + width <= image["width"]
            assert 0 <= top < top + height <= image["height"]
            num_boxes += 1
    assert num_boxes == 99_610
