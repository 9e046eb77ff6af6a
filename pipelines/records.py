"""Turns each raw ref into a `RefRecord` or, if it has a fault, into a `Reject` with a reason."""

from collections.abc import Sequence
from typing import Any

from pipelines.masks import draw_parts, join_parts, mask_area, read_segmentation
from pipelines.rejects import RefFault, Reject
from pipelines.sentences import read_sentences
from pipelines.shapes import Box, clip_box, find_fractions, find_other_shape
from pipelines.sources.raw import RawRef, RawShard, find_split
from refseg.dataset.schema import ANY_REFER, CUSTOM, MAX_PIXELS, MAX_SIDE, Annotation, DatasetSpec, RefRecord
from refseg.errors import AnnotationError
from refseg.values import is_text, short, whole_number

_NO_TARGET = -1


def make_records(raw: RawShard, *, mask_rule: str) -> tuple[list[tuple[int, RefRecord]], list[tuple[int, Reject]]]:
    """Join, check, rasterise and tokenise raw refs.

    Args:
        raw: Refs, with the images and annotations that they refer to.
        mask_rule: `union` or `legacy`.

    Returns:
        Records and rejects, each with the ref's position in the source. Each ref becomes exactly one record or reject.
    """
    records: list[tuple[int, RefRecord]] = []
    rejects: list[tuple[int, Reject]] = []
    for item in raw.refs:
        try:
            records.append((item.position, _make_record(raw, item, mask_rule)))
        except RefFault as fault:
            rejects.append((item.position, reject_ref(raw.spec, item, fault.reason, fault.message)))
    return records, rejects


def reject_ref(spec: DatasetSpec, item: RawRef, reason: str, message: str) -> Reject:
    """Reject a raw ref. The message begins with the ref's id or, for a user's own table, with the ref's line."""
    ref_id = find_integer(item.ref, "ref_id")
    where = f"ref {ref_id}" if ref_id is not None else f"refs[{item.position}]"
    if spec.dataset == CUSTOM:
        where = item.ref["where"]
    return Reject(
        ref_id=ref_id,
        image_id=find_integer(item.ref, "image_id"),
        split=find_split(item.ref),
        reason=reason,
        message=f"{spec.dataset_id} {where}: {message}",
    )


def _make_record(raw: RawShard, item: RawRef, mask_rule: str) -> RefRecord:
    ref = item.ref
    if not isinstance(ref, dict):
        raise RefFault("malformed_ref", f"found a {type(ref).__name__}, expected a dict")
    ref_id = _integer(ref, "ref_id")
    image_id = _integer(ref, "image_id")
    split = find_split(ref)
    if split not in raw.spec.splits:
        expected = ", ".join(raw.spec.splits)
        raise RefFault(
            "unknown_split",
            f"found split {short(ref.get('split'))}, expected one of {expected}; check that the file belongs to this "
            "partition",
        )
    if isinstance(sentences := ref.get("sentences"), list | tuple) and not sentences:
        raise RefFault("without_sentences", "its list of sentences is empty, so no sentence names its target")
    file_name, height, width = _image_facts(raw, image_id)
    size = (height, width)
    ann_ids = _annotation_ids(ref)
    if ref.get("no_target") is True and ann_ids:
        raise RefFault("malformed_ref", f"found no_target true and ann_id {short(ref['ann_id'])}, expected one of them")
    if ref.get("no_target") is False and not ann_ids:
        raise RefFault(
            "malformed_ref", f"found no_target false and ann_id {short(ref['ann_id'])}, expected ids of annotations"
        )
    own_target = ref["target"] if raw.spec.dataset == CUSTOM else ""
    annotations = tuple(
        _annotation(raw, ann_id, own_target or f"annotation {ann_id}", image_id, size) for ann_id in ann_ids
    )
    parts = [draw_parts(annotation, size) for annotation in annotations]
    for annotation, drawn in zip(annotations, parts, strict=True):
        if (annotation.polygons or annotation.rles) and (other := find_other_shape(annotation, drawn, size)):
            raise RefFault("other_shape", f"{own_target or f'annotation {annotation.ann_id}'} {other}")
    mask = join_parts([part for drawn in parts for part in drawn], size, mask_rule)
    if annotations and not mask_area(mask):
        target = own_target or f"annotation {', '.join(map(str, ann_ids))}"
        nothing = "no_target" if raw.spec.dataset == CUSTOM else "ann_id -1"
        raise RefFault(
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
        sentences=read_sentences(ref, no_target=not annotations),
        annotations=annotations,
        source_rank=item.position,
    )


def _image_facts(raw: RawShard, image_id: int) -> tuple[str, int, int]:
    """Return file name, height and width of an image."""
    image = raw.images.get(image_id)
    if image is None:
        raise RefFault("unknown_image", f"image {image_id} is not in instances.json; take both files from one release")
    file_name, height, width = image.get("file_name"), image.get("height"), image.get("width")
    if image_id < 0:
        raise RefFault("malformed_image", f"found image id {image_id}, expected 0 or more")
    sides = _side(height), _side(width)
    if None in sides or (sides[0] or 0) * (sides[1] or 0) > MAX_PIXELS:
        raise RefFault(
            "malformed_image",
            f"instances.json gives image {image_id} size {short(height)} x {short(width)} (height x width), "
            f"expected 1 to {MAX_SIDE} pixels a side and at most {MAX_PIXELS} pixels",
        )
    if not is_text(file_name) or "\0" in file_name:
        raise RefFault("malformed_image", f"image {image_id} has no file_name in instances.json, expected one")
    return file_name, sides[0] or 0, sides[1] or 0


def _side(value: Any) -> int | None:
    side = whole_number(value)
    return side if side is not None and 0 < side <= MAX_SIDE else None  # the limit of JPEG files


def find_annotation_ids(ref: Any) -> tuple[int, ...]:
    """Return the ids of a raw ref's annotations; empty if there is no target or the field is malformed."""
    try:
        return _annotation_ids(ref) if isinstance(ref, dict) else ()
    except RefFault:
        return ()


def _annotation_ids(ref: dict[Any, Any]) -> tuple[int, ...]:
    """Return the ids in `ann_id`, which is an id or a list. -1, `[-1]` and None mean that there is no target."""
    found = ref.get("ann_id", RefFault)
    if found is RefFault:
        raise RefFault("malformed_ref", "found no ann_id; expected an id, a list of ids, or -1 for no target")
    listed = found if isinstance(found, list | tuple) else [_NO_TARGET if found is None else found]
    numbers = dict.fromkeys(whole_number(ann_id) for ann_id in listed)
    ann_ids = tuple(ann_id for ann_id in numbers if ann_id is not None)
    if not listed or len(ann_ids) < len(numbers):
        raise RefFault("malformed_ref", f"found ann_id {short(found)}, expected an id, a list of ids, or -1")
    if ann_ids == (_NO_TARGET,):
        return ()
    if _NO_TARGET in ann_ids:
        raise RefFault("malformed_ref", f"found ann_id {short(found)}, expected either ids or -1")
    return ann_ids


def _annotation(raw: RawShard, ann_id: int, name: str, image_id: int, size: tuple[int, int]) -> Annotation:
    """Check an annotation. Messages call it `name`."""
    box_targets = raw.box_targets
    record = raw.annotations.get(ann_id)
    if record is None:
        raise RefFault(
            "unknown_annotation", f"annotation {ann_id} is not in instances.json; take both files from one release"
        )
    if whole_number(record.get("image_id")) != image_id:
        is_custom = raw.spec.dataset == CUSTOM
        remedy = "use the image's name or id in instances.json" if is_custom else "take both files from one release"
        raise RefFault(
            "other_image",
            f"{name} belongs to image {short(record.get('image_id'))}, expected {image_id}; {remedy}",
        )
    category_id, area, box = whole_number(record.get("category_id"), 2**31), record.get("area"), record.get("bbox")
    if category_id is None:
        found = short(record.get("category_id"))
        raise RefFault("malformed_annotation", f"{name} has category_id {found}, expected a whole number")
    if not _is_number(area):
        raise RefFault("malformed_annotation", f"{name} has area {short(area)}, expected a number")
    if not isinstance(box, list | tuple) or len(box) != 4 or not all(map(_is_number, box)):
        raise RefFault("malformed_annotation", f"{name} has bbox {short(box)}, expected [left, top, width, height]")
    iscrowd = record.get("iscrowd", 0)
    if iscrowd not in (0, 1):
        raise RefFault("malformed_annotation", f"{name} has iscrowd {short(iscrowd)}, expected 0 or 1")
    segmentation = record.get("segmentation")
    if raw.spec.dataset == ANY_REFER and not segmentation:
        raise RefFault("without_mask", f"{name} has no segmentation, so that there is no mask of what is named")
    try:
        # In a source of boxes, None means that there is no shape; an empty list is always a fault.
        polygons, rles = ((), ()) if segmentation is None and box_targets else read_segmentation(segmentation, size)
    except AnnotationError as error:
        raise RefFault("bad_segmentation", f"{name}: {error}") from error
    left, top, box_width, box_height = map(float, box)
    box_xywh: Box = (left, top, box_width, box_height)
    if not rles and (fractions := find_fractions(polygons or (box_xywh,), size)):
        raise RefFault("not_in_pixels", f"{name} {fractions}")
    if raw.spec.dataset == CUSTOM and not (polygons or rles):  # boxes of published datasets are used unchanged
        box_xywh, outside = clip_box(box_xywh, size)
        if outside:
            raise RefFault("box_outside", f"{name} {outside}")
        area = box_xywh[2] * box_xywh[3]
    return Annotation(
        ann_id=ann_id,
        category_id=category_id,
        iscrowd=bool(iscrowd),
        area=float(area or 0.0),
        box_xywh=box_xywh,
        polygons=polygons,
        rles=rles,
    )


def _category(raw: RawShard, annotations: Sequence[Annotation]) -> str:
    """Return the name of the target's category.

    If there are several, all names are joined in the annotations' order.
    """
    names = []
    for annotation in annotations:
        category = f"category {annotation.category_id} of annotation {annotation.ann_id}"
        if annotation.category_id not in raw.categories:
            raise RefFault("unknown_category", f"{category} is not in instances.json")
        name = raw.categories[annotation.category_id]
        if not is_text(name):
            raise RefFault(
                "malformed_category", f"{category} has name {short(name)} in instances.json, expected one string"
            )
        names.append(name)
    return ", ".join(dict.fromkeys(names))


def _surrounding_box(boxes: Sequence[Box]) -> Box:
    """Return the smallest box around all boxes; zeros if there are no boxes."""
    if len(boxes) < 2:
        return boxes[0] if boxes else (0.0, 0.0, 0.0, 0.0)
    left, top = min(box[0] for box in boxes), min(box[1] for box in boxes)
    right, bottom = max(box[0] + box[2] for box in boxes), max(box[1] + box[3] for box in boxes)
    return left, top, right - left, bottom - top


def _integer(ref: dict[Any, Any], name: str) -> int:
    value = find_integer(ref, name)
    if value is None:
        raise RefFault("malformed_ref", f"found {name} {short(ref.get(name))}, expected a whole number")
    return value


def find_integer(ref: Any, name: str) -> int | None:
    """Return a field of a raw ref; None if it is not a 64-bit integer."""
    return whole_number(ref.get(name)) if isinstance(ref, dict) else None


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < 2**53  # False for infinity and NaN
