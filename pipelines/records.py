"""Raw annotations to `RefRecord`s, or `Reject`s with their reasons: every ref becomes one or the other."""

import reprlib
from collections.abc import Sequence
from typing import Any

from pipelines.masks import mask_area, read_segmentation, target_mask
from pipelines.rejects import Reject
from pipelines.sources.raw import RawRef, RawShard
from refseg import tokenizer
from refseg.errors import AnnotationError
from refseg.schema import CUSTOM, Annotation, DatasetSpec, RefRecord, Sentence

_INT64 = 2**63
_NO_TARGET = -1
_Box = tuple[float, float, float, float]
_BOX_SLACK = 1.0
"""Pixels that a user's box may reach out of its image: tools round, and some count pixels from 1."""


def make_records(raw: RawShard, *, mask_rule: str) -> tuple[list[tuple[int, RefRecord]], list[tuple[int, Reject]]]:
    """Join, check, rasterise and tokenise raw refs.

    Args:
        raw: Refs, and the images and annotations they speak of.
        mask_rule: `union` or `legacy`.

    Returns:
        Records and rejects, with their places in the source. Refs in = records + rejects.
    """
    records: list[tuple[int, RefRecord]] = []
    rejects: list[tuple[int, Reject]] = []
    for item in raw.refs:
        try:
            records.append((item.position, _make_record(raw, item.ref, mask_rule)))
        except _RefFault as fault:
            rejects.append((item.position, reject_ref(raw.spec, item, fault.reason, fault.message)))
    return records, rejects


def reject_ref(spec: DatasetSpec, item: RawRef, reason: str, message: str) -> Reject:
    """Reject a raw ref; the place is put before the message: of a user's own table the line, else the ref's id."""
    ref_id = find_integer(item.ref, "ref_id")
    place = f"ref {ref_id}" if ref_id is not None else f"refs[{item.position}]"
    if spec.dataset == CUSTOM:
        place = item.ref["where"]
    return Reject(
        ref_id=ref_id,
        image_id=find_integer(item.ref, "image_id"),
        split=find_split(item.ref),
        reason=reason,
        message=f"{spec.dataset_id} {place}: {message}",
    )


def find_split(ref: Any) -> str | None:
    """The split a raw ref names, None where it names none."""
    split = ref.get("split") if isinstance(ref, dict) else None
    return split if isinstance(split, str) and _is_text(split) else None


class _RefFault(Exception):
    """What is wrong with the ref at hand; `reject_ref` adds the place."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message


def _make_record(raw: RawShard, ref: Any, mask_rule: str) -> RefRecord:
    if not isinstance(ref, dict):
        raise _RefFault("malformed_ref", f"found a {type(ref).__name__}, expected a dict")
    ref_id = _integer(ref, "ref_id")
    image_id = _integer(ref, "image_id")
    split = find_split(ref)
    if split not in raw.spec.splits:
        expected = ", ".join(raw.spec.splits)
        raise _RefFault(
            "unknown_split",
            f"found split {_short(ref.get('split'))}, expected one of {expected}; is it the file of another partition?",
        )
    file_name, height, width = _image_facts(raw, image_id)
    size = (height, width)
    ann_ids = _annotation_ids(ref)
    if ref.get("no_target") is True and ann_ids:
        raise _RefFault("malformed_ref", f"says no_target and has ann_id {_short(ref['ann_id'])}, expected one of them")
    if ref.get("no_target") is False and not ann_ids:
        raise _RefFault(
            "malformed_ref", f"says no_target false and has ann_id {_short(ref['ann_id'])}, expected ids of annotations"
        )
    own_target = ref["target"] if raw.spec.dataset == CUSTOM else ""
    annotations = tuple(
        _annotation(raw, ann_id, own_target or f"annotation {ann_id}", image_id, size) for ann_id in ann_ids
    )
    mask = target_mask(annotations, size, mask_rule)
    if annotations and not mask_area(mask):
        target = own_target or f"annotation {', '.join(map(str, ann_ids))}"
        nothing = "no_target" if raw.spec.dataset == CUSTOM else "ann_id -1"
        raise _RefFault(
            "empty_mask",
            f"{target} covers no pixel of the image ({width} x {height} pixels), expected an area or {nothing}",
        )
    return RefRecord(
        dataset=raw.spec.dataset,
        split_by=raw.spec.split_by,
        split=split,
        ref_id=ref_id,
        image_id=image_id,
        file_name=file_name,
        height=height,
        width=width,
        category=_category(raw, annotations),
        box_xywh=_surrounding_box([annotation.box_xywh for annotation in annotations]),
        area=mask_area(mask),
        no_target=not annotations,
        box_only=any(not (annotation.polygons or annotation.rles) for annotation in annotations),
        mask=mask,
        sentences=_sentences(ref, no_target=not annotations),
        annotations=annotations,
    )


def _image_facts(raw: RawShard, image_id: int) -> tuple[str, int, int]:
    """File name, height and width."""
    image = raw.images.get(image_id)
    if image is None:
        raise _RefFault("unknown_image", f"image {image_id} is not in instances.json; take both files from one release")
    file_name, height, width = image.get("file_name"), image.get("height"), image.get("width")
    if image_id < 0:
        raise _RefFault("malformed_image", f"found image id {image_id}, expected 0 or more")
    sides = _side(height), _side(width)
    if None in sides:
        raise _RefFault(
            "malformed_image",
            f"instances.json gives image {image_id} size {_short(height)} x {_short(width)} (height x width), "
            "expected 1 to 65500 pixels",
        )
    if not isinstance(file_name, str) or not _is_text(file_name) or "\0" in file_name:
        raise _RefFault("malformed_image", f"instances.json gives image {image_id} no file_name")
    return file_name, sides[0] or 0, sides[1] or 0


def _side(value: Any) -> int | None:
    """A side in pixels, also as `640.0`, as some writers of JSON have it."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return value if type(value) is int and 0 < value <= 65500 else None  # a JPEG has no longer sides


def find_annotation_ids(ref: Any) -> tuple[int, ...]:
    """Ids of the annotations a raw ref points to; empty for no target, or where they cannot be told."""
    try:
        return _annotation_ids(ref) if isinstance(ref, dict) else ()
    except _RefFault:
        return ()


def _annotation_ids(ref: dict[Any, Any]) -> tuple[int, ...]:
    """`ann_id` as ids: one or a list; -1, `[-1]` and None say that nothing is referred to."""
    found = ref.get("ann_id", _RefFault)
    if found is _RefFault:
        raise _RefFault("malformed_ref", "found no ann_id; expected an id, a list of ids, or -1 for no target")
    listed = found if isinstance(found, list | tuple) else [_NO_TARGET if found is None else found]
    if not listed or not all(_is_integer(ann_id) for ann_id in listed):
        raise _RefFault("malformed_ref", f"found ann_id {_short(found)}, expected an id, a list of ids, or -1")
    ann_ids = tuple(dict.fromkeys(listed))
    if ann_ids == (_NO_TARGET,):
        return ()
    if _NO_TARGET in ann_ids:
        raise _RefFault("malformed_ref", f"found ann_id {_short(found)}, expected ids or -1 alone")
    return ann_ids


def _annotation(raw: RawShard, ann_id: int, place: str, image_id: int, size: tuple[int, int]) -> Annotation:
    box_targets = raw.box_targets
    record = raw.annotations.get(ann_id)
    if record is None:
        raise _RefFault(
            "unknown_annotation", f"annotation {ann_id} is not in instances.json; take both files from one release"
        )
    if record.get("image_id") != image_id:
        is_custom = raw.spec.dataset == CUSTOM
        remedy = "name the image as instances.json does" if is_custom else "take both files from one release"
        raise _RefFault(
            "other_image",
            f"{place} belongs to image {_short(record.get('image_id'))}, expected {image_id}; {remedy}",
        )
    category_id, area, box = record.get("category_id"), record.get("area"), record.get("bbox")
    if not _is_integer(category_id, 2**31):
        raise _RefFault("malformed_annotation", f"{place} has category_id {_short(category_id)}, expected a number")
    if not _is_number(area):
        raise _RefFault("malformed_annotation", f"{place} has area {_short(area)}, expected a number")
    if not isinstance(box, list | tuple) or len(box) != 4 or not all(map(_is_number, box)):
        raise _RefFault("malformed_annotation", f"{place} has bbox {_short(box)}, expected [left, top, width, height]")
    iscrowd = record.get("iscrowd", 0)
    if iscrowd not in (0, 1):
        raise _RefFault("malformed_annotation", f"{place} has iscrowd {_short(iscrowd)}, expected 0 or 1")
    segmentation = record.get("segmentation")
    try:
        # `None` stands for "nobody drew it" (a source of boxes); an empty list is a fault.
        polygons, rles = ((), ()) if segmentation is None and box_targets else read_segmentation(segmentation, size)
    except AnnotationError as error:
        raise _RefFault("bad_segmentation", f"{place}: {error}") from error
    left, top, box_width, box_height = map(float, box)
    if raw.spec.dataset == CUSTOM and not (polygons or rles):  # published boxes are taken as they are
        left, top, box_width, box_height = _clip_box((left, top, box_width, box_height), place, size)
        area = box_width * box_height
    return Annotation(
        ann_id=ann_id,
        category_id=int(category_id or 0),
        iscrowd=bool(iscrowd),
        area=float(area or 0.0),
        box_xywh=(left, top, box_width, box_height),
        polygons=polygons,
        rles=rles,
    )


def _clip_box(box_xywh: _Box, place: str, size: tuple[int, int]) -> _Box:
    """The part of a box that lies in the image, unless more than the slack lies outside."""
    height, width = size
    left, top, third, fourth = box_xywh
    right, bottom = left + third, top + fourth
    if min(left, top) < -_BOX_SLACK or right > width + _BOX_SLACK or bottom > height + _BOX_SLACK:
        is_corners = 0 <= left < third <= width and 0 <= top < fourth <= height
        remedy = "; is it left, top, right, bottom?" if is_corners else ""
        raise _RefFault(
            "box_outside",
            f"{place} reaches out of the image ({width} x {height} pixels), "
            f"expected left, top, width, height in pixels of the image{remedy}",
        )
    left, right, top, bottom = max(left, 0.0), min(right, width), max(top, 0.0), min(bottom, height)
    return left, top, max(right - left, 0.0), max(bottom - top, 0.0)


def _category(raw: RawShard, annotations: Sequence[Annotation]) -> str:
    """Name of the target's category; of several, all names in the order of the annotations."""
    names = []
    for annotation in annotations:
        name = raw.categories.get(annotation.category_id)
        if name is None or not _is_text(name):
            raise _RefFault(
                "unknown_category",
                f"category {annotation.category_id} of annotation {annotation.ann_id} is not in instances.json",
            )
        names.append(name)
    return ", ".join(dict.fromkeys(names))


def _surrounding_box(boxes: Sequence[_Box]) -> _Box:
    """The box around boxes; zeros around none."""
    if len(boxes) < 2:
        return boxes[0] if boxes else (0.0, 0.0, 0.0, 0.0)
    left, top = min(box[0] for box in boxes), min(box[1] for box in boxes)
    right, bottom = max(box[0] + box[2] for box in boxes), max(box[1] + box[3] for box in boxes)
    return left, top, right - left, bottom - top


def _sentences(ref: dict[Any, Any], *, no_target: bool) -> tuple[Sentence, ...]:
    found = ref.get("sentences")
    if not isinstance(found, list | tuple) or not all(isinstance(sentence, dict) for sentence in found):
        raise _RefFault("malformed_ref", f"found sentences {_short(found)}, expected a list of dicts")
    if not found:
        raise _RefFault("no_sentence", "found no sentence, expected at least one")
    sent_ids = ref.get("sent_ids")
    return tuple(_sentence(sentence, position, sent_ids, no_target) for position, sentence in enumerate(found))


def _sentence(record: dict[Any, Any], position: int, sent_ids: Any, no_target: bool) -> Sentence:
    place = f"sentences[{position}]"
    sent = record.get("sent")
    if not isinstance(sent, str) or not _is_text(sent):
        raise _RefFault("malformed_ref", f"{place} has sent {_short(sent)}, expected text")
    if not sent.strip():
        raise _RefFault("no_sentence", f"{place} is empty, expected words")
    sent_id = record.get("sent_id")
    if sent_id is None and isinstance(sent_ids, list | tuple) and position < len(sent_ids):
        sent_id = sent_ids[position]  # kept twice in REFER's records
    if not _is_integer(sent_id):
        raise _RefFault("malformed_ref", f"{place} has sent_id {_short(sent_id)}, expected a whole number")
    raw = record.get("raw", sent)
    words = record.get("tokens", sent.split(" "))
    if not isinstance(raw, str) or not _is_text(raw):
        raise _RefFault("malformed_ref", f"{place} has raw {_short(raw)}, expected text")
    if not isinstance(words, list | tuple) or not all(isinstance(word, str) and _is_text(word) for word in words):
        raise _RefFault("malformed_ref", f"{place} has tokens {_short(words)}, expected a list of words")
    exist = record.get("exist", True)  # R-RefCOCO's name
    if exist not in (True, False):
        raise _RefFault("malformed_ref", f"{place} has exist {_short(exist)}, expected true or false")
    return Sentence(
        sent_id=int(sent_id or 0),
        raw=raw,
        sent=sent,
        words=tuple(words),
        token_ids=tokenizer.encode(sent),
        exists=bool(exist) and not no_target,
    )


def _integer(ref: dict[Any, Any], name: str) -> int:
    value = find_integer(ref, name)
    if value is None:
        raise _RefFault("malformed_ref", f"found {name} {_short(ref.get(name))}, expected a whole number")
    return value


def find_integer(ref: Any, name: str) -> int | None:
    """A field of a raw ref, None where it is no whole number of 64 bits."""
    value = ref.get(name) if isinstance(ref, dict) else None
    return int(value) if _is_integer(value) else None  # type: ignore[arg-type]


def _is_integer(value: Any, bound: int = _INT64) -> bool:
    return type(value) is int and -bound <= value < bound


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < 2**53  # neither infinity nor nan is


def _is_text(value: str) -> bool:
    """False for halves of surrogate pairs, which no file can hold as UTF-8."""
    return not any("\ud800" <= letter <= "\udfff" for letter in value) if not value.isascii() else True


def _short(value: Any) -> str:
    """A value as found, short and on one line."""
    return reprlib.repr(value).replace("\n", " ")
