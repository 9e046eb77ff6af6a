import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipelines.masks import draw_parts, read_segmentation
from pipelines.records import make_records
from pipelines.rejects import REASONS, Reject
from pipelines.shapes import find_other_shape
from pipelines.sources.raw import RawRef, RawShard
from refseg.dataset.schema import Annotation, RefRecord, Rle, find_dataset
from refseg.errors import AnnotationError
from refseg.tokenizer import encode

UNC = find_dataset("refcoco/unc")


def records_of(tiny: Any, rule: str = "union") -> tuple[list[RefRecord], list[Reject]]:
    by_id = {name: {record["id"]: record for record in getattr(tiny, name)} for name in ("images", "annotations")}
    raw = RawShard(
        spec=UNC,
        refs=[RawRef(position=position, ref=ref) for position, ref in enumerate(tiny.refs)],
        categories={record["id"]: record["name"] for record in tiny.categories},
        **by_id,
    )
    records, rejects = make_records(raw, mask_rule=rule)
    return [record for _, record in records], [reject for _, reject in rejects]


def test_a_ref_becomes_a_record_with_mask_and_tokens(tiny: Any) -> None:
    records, rejects = records_of(tiny)

    assert not rejects
    record = records[0]
    assert (record.dataset, record.split_by, record.split, record.ref_id, record.image_id) == (
        "refcoco",
        "unc",
        "val",
        70,
        7,
    )
    assert (record.file_name, record.height, record.width) == ("COCO_train2014_000000000007.jpg", 10, 20)
    assert (record.category, record.box_xywh, record.area) == ("person", (0.0, 2.0, 4.0, 4.0), 16)
    # rows 2 to 5 of columns 0 to 3; columns are 10 pixels high
    assert record.mask == Rle(size=(10, 20), counts=(2, 4, 6, 4, 6, 4, 6, 4, 164))
    (sentence,) = record.sentences
    assert (sentence.sent_id, sentence.raw, sentence.sent) == (70, "The Square", "the square")
    assert sentence.words == ("the", "square")
    assert sentence.token_ids == encode("the square")


def test_raw_and_tokens_default_to_the_sentence_and_sent_ids_stand_in(tiny: Any) -> None:
    tiny.refs[0]["sentences"] = [{"sent": "the square"}]
    tiny.refs[0]["sent_ids"] = [5]

    sentence = records_of(tiny)[0][0].sentences[0]

    assert (sentence.sent_id, sentence.raw, sentence.words) == (5, "the square", ("the", "square"))


@pytest.mark.parametrize("ann_id", [-1, [-1], None])
def test_a_ref_to_nothing_has_an_empty_mask(tiny: Any, ann_id: object) -> None:
    tiny.refs[0]["ann_id"] = ann_id

    record = records_of(tiny)[0][0]

    assert record.no_target
    assert (record.annotations, record.area, record.category) == ((), 0, "")
    assert (record.mask.counts, record.box_xywh) == ((200,), (0.0, 0.0, 0.0, 0.0))


def test_a_ref_to_several_annotations_joins_their_boxes_and_names(tiny: Any) -> None:
    tiny.categories.append({"id": 2, "name": "dog"})
    second = {**tiny.annotations[0], "id": 71, "category_id": 2, "bbox": [10, 1, 4, 4]}
    tiny.annotations.append({**second, "segmentation": [[10, 1, 14, 1, 14, 5, 10, 5]]})
    tiny.refs[0]["ann_id"] = [70, 71]

    record = records_of(tiny)[0][0]

    assert [annotation.ann_id for annotation in record.annotations] == [70, 71]
    assert (record.category, record.area) == ("person, dog", 32)
    assert record.box_xywh == (0.0, 1.0, 14.0, 5.0)


def _sentence(tiny: Any, **changes: object) -> None:
    tiny.refs[0]["sentences"][0].update(changes)


def _ref(tiny: Any, **changes: object) -> None:
    tiny.refs[0].update(changes)


def _image(tiny: Any, **changes: object) -> None:
    tiny.images[0].update(changes)


def _annotation(tiny: Any, **changes: object) -> None:
    tiny.annotations[0].update(changes)


@pytest.mark.parametrize("sent", ["?", "🦒", "左", "é", "&amp;", "...", "<3"])
def test_a_sentence_that_shows_something_is_kept(sent: str, tiny: Any) -> None:
    tiny.refs[0]["sentences"][0]["sent"] = sent

    assert records_of(tiny)[0][0].sentences[0].sent == sent


def test_a_size_may_be_written_as_whole_floats(tiny: Any) -> None:
    _image(tiny, height=10.0, width=20.0)

    records, rejects = records_of(tiny)

    assert not rejects
    assert next((type(record.height), record.height, record.width) for record in records) == (int, 10, 20)


BREAKS: list[tuple[Callable[..., None], dict[str, object], str, str]] = [
    (_ref, {"ref_id": "70"}, "malformed_ref", r"refs\[0\]: found ref_id '70', expected a whole number"),
    (_ref, {"ref_id": 2**63}, "malformed_ref", "expected a whole number"),
    (_ref, {"image_id": None}, "malformed_ref", "found image_id None"),
    (_ref, {"ann_id": [70, -1]}, "malformed_ref", r"found ann_id \[70, -1\], expected either ids or -1"),
    (_ref, {"ann_id": []}, "malformed_ref", r"found ann_id \[\]"),
    (_ref, {"sentences": "the square"}, "malformed_ref", "expected a list of dicts"),
    (_ref, {"no_target": True}, "malformed_ref", "found no_target true and ann_id 70"),
    (_ref, {"no_target": False, "ann_id": [-1]}, "malformed_ref", r"found no_target false and ann_id \[-1\]"),
    (_ref, {"split": "test"}, "unknown_split", "found split 'test', expected one of train, val, testA, testB"),
    (_ref, {"sentences": []}, "without_sentences", "its list of sentences is empty"),
    (_sentence, {"sent": "  "}, "no_sentence", r"sentences\[0\] is empty"),
    *(
        (_sentence, {"sent": sent}, "no_sentence", r"sentences\[0\] is .*, without a visible character, expected words")
        for sent in ("\u200b", "\u00a0\u200b\ufeff", "\x01\x02", "&nbsp;", "&#8203;", "\u0301", "\u3164", "\u2800 ")
    ),
    (_sentence, {"sent": "half \ud83d"}, "malformed_ref", "expected text"),
    (_sentence, {"sent_id": None}, "malformed_ref", "has sent_id None"),
    (_sentence, {"raw": 3}, "malformed_ref", "has raw 3"),
    (_sentence, {"tokens": [1]}, "malformed_ref", r"has tokens \[1\]"),
    (_ref, {"image_id": 77}, "unknown_image", "ref 70: image 77 is not in instances.json"),
    (_image, {"height": 0}, "malformed_image", "size 0 x 20"),
    (_image, {"height": 10.5}, "malformed_image", "size 10.5 x 20"),
    (_image, {"width": float("inf")}, "malformed_image", "size 10 x inf"),
    (_image, {"width": None}, "malformed_image", "size 10 x None"),
    (_image, {"file_name": 7}, "malformed_image", "no file_name"),
    (_ref, {"ann_id": 4471}, "unknown_annotation", "ref 70: annotation 4471 is not in instances.json; take both files"),
    (_ref, {"ann_id": 80}, "other_image", "annotation 80 belongs to image 8, expected 7"),
    (_annotation, {"category_id": 9}, "unknown_category", "category 9 of annotation 70"),
    (_annotation, {"category_id": 1.5}, "malformed_annotation", "has category_id 1.5, expected a whole number"),
    (_ref, {"ann_id": [2.0**60]}, "malformed_ref", "expected an id, a list of ids, or -1"),
    (_annotation, {"category_id": "1"}, "malformed_annotation", "has category_id '1'"),
    (_annotation, {"area": None}, "malformed_annotation", "has area None"),
    (_annotation, {"area": 10**400}, "malformed_annotation", "has area 1000"),
    (_annotation, {"area": float("inf")}, "malformed_annotation", "has area inf"),
    (_annotation, {"bbox": [1, 2, 3]}, "malformed_annotation", r"has bbox \[1, 2, 3\]"),
    (_annotation, {"iscrowd": 2}, "malformed_annotation", "has iscrowd 2"),
    (
        _annotation,
        {"segmentation": [[1, 2, 3, 4]]},
        "bad_segmentation",
        "annotation 70: one of its polygons has 4 numbers",
    ),
    (
        _annotation,
        {"segmentation": [[0.1, 0.2, 0.3, 0.2, 0.3, 1]], "bbox": [0.1, 0.2, 0.2, 0.8], "area": 0.1},
        "not_in_pixels",
        r"annotation 70 has coordinates from 0.1 to 1, which is one pixel .*, expected pixels of the image \(20 x 10\)",
    ),
    (
        _annotation,
        {"segmentation": [[0, 0, 1, 0, 1, 2, 0, 2]]},
        "other_shape",
        r"covers 0 0 1 2 \(left, top, width, height\) and bbox 0 2 4 4, expected the same region in pixels",
    ),
    (
        _annotation,
        {"segmentation": [[9, 4, 10, 4, 10, 5, 9, 5]], "bbox": [9, 4, 10, 5]},
        "other_shape",
        "covers 9 4 1 1 .* and bbox 9 4 10 5, .*; the bbox may be left, top, right, bottom instead",
    ),
    (
        _annotation,  # run lengths in the order of rows, as if they were in that of columns
        {"segmentation": {"size": [10, 20], "counts": [50, 1, 19, 1, 19, 1, 109]}, "bbox": [10, 2, 1, 3]},
        "other_shape",
        "covers 5 0 5 1 .* and bbox 10 2 1 3",
    ),
    (_annotation, {"bbox": [0, 0, 0, 0], "area": 4000}, "other_shape", "covers 16 pixels and area 4000"),
    (_annotation, {"bbox": [float("nan"), 2, 3, 4]}, "malformed_annotation", "has bbox .nan, 2, 3, 4."),
    (_annotation, {"segmentation": [[5, 5, 5, 5, 5, 5]]}, "empty_mask", "annotation 70 covers no pixel"),
]


@pytest.mark.parametrize(("change", "fields", "reason", "message"), BREAKS)
def test_each_fault_of_a_ref_is_one_reject_with_its_reason(
    tiny: Any, change: Callable[..., None], fields: dict[str, object], reason: str, message: str
) -> None:
    change(tiny, **fields)

    records, rejects = records_of(tiny)

    assert len(records) + len(rejects) == 5
    (reject,) = rejects
    assert reject.reason == reason
    error = reject.to_error()
    assert isinstance(error, AnnotationError)
    assert str(error).startswith("refcoco/unc ref")
    with pytest.raises(AnnotationError, match=message):
        raise error


@pytest.mark.parametrize(
    "changes",
    [
        {"bbox": [0, 0, 0, 0], "area": 0},
        {"bbox": [0, 2, 4, 4], "area": 0.5},
        {"bbox": [1.4, 3.4, 2.2, 2.2]},
        {"segmentation": [[10.2, 5.2, 11, 5.2, 11, 6, 10.2, 6]], "bbox": [10.2, 5.2, 0.8, 0.8], "area": 0.64},
        {"segmentation": [[15, 5, 24, 5, 24, 9, 15, 9]], "bbox": [15, 5, 9, 4], "area": 36},
    ],
    ids=["not given", "area of nothing", "rounded", "one pixel", "cut at the border"],
)
def test_a_box_or_area_that_differs_a_little_or_is_not_given_is_no_fault(tiny: Any, changes: dict[str, object]) -> None:
    _annotation(tiny, **changes)

    assert records_of(tiny)[1] == []


def test_every_real_annotation_agrees_with_its_own_box_and_area(shared_data: Path) -> None:
    num_annotations = 0
    for path in sorted(shared_data.rglob("*instances*.json")):
        tables = json.loads(path.read_text())
        sizes = {image["id"]: (image["height"], image["width"]) for image in tables["images"]}
        for record in tables["annotations"]:
            size = sizes[record["image_id"]]
            polygons, rles = read_segmentation(record["segmentation"], size)
            annotation = Annotation(
                ann_id=record["id"],
                category_id=1,
                iscrowd=bool(record["iscrowd"]),
                area=float(record["area"]),
                box_xywh=tuple(map(float, record["bbox"])),
                polygons=polygons,
                rles=rles,
            )
            assert find_other_shape(annotation, draw_parts(annotation, size), size) == "", (path, record["id"])
            num_annotations += 1
    assert num_annotations > 1500


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
near_values = st.sampled_from(
    [7, 70, -1, [70], [-1], "val", "person", [[0, 0, 4, 0, 4, 4]], {"size": [10, 20], "counts": "0"}]
)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_record_ends_as_a_row_or_a_reject(tiny: Any, data: st.DataObject) -> None:
    ref, image, annotation = dict(tiny.refs[0]), dict(tiny.images[0]), dict(tiny.annotations[0])
    ref["sentences"] = [dict(ref["sentences"][0])]
    for record in (ref, ref["sentences"][0], image, annotation):
        for name in data.draw(st.sets(st.sampled_from(sorted(record)), max_size=1)):
            record[name] = data.draw(near_values | json_values)
    raw = RawShard(
        spec=UNC,
        refs=[RawRef(position=0, ref=ref), RawRef(position=1, ref=data.draw(json_values))],
        images={7: image},
        annotations={70: annotation},
        categories={1: "person"},
    )

    records, rejects = make_records(raw, mask_rule="union")

    assert len(records) + len(rejects) == 2
    assert all(reject.reason in REASONS for _, reject in rejects)
