"""Refs that became no row: why, and the table that keeps them (`rejects.parquet`)."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from refseg.dataset.rejects import REJECTS_SCHEMA
from refseg.dataset.schema import DatasetSpec
from refseg.errors import AnnotationError, ImageError, RefsegError

REASONS = {
    "malformed_ref": "a field of the ref is missing or of another type",
    "duplicate_ref_id": "an earlier ref of the file has the same id",
    "unknown_split": "the partition has no such split",
    "without_sentences": "the ref's list of sentences is empty, as in gRefCOCO's release: left out",
    "no_sentence": "a sentence is empty or shows nothing",
    "duplicate_sent_id": "an earlier sentence of the split has the same id",
    "unknown_image": "the image id is not in instances.json",
    "malformed_image": "the image record has no usable id or size",
    "unknown_annotation": "the annotation id is not in instances.json",
    "malformed_annotation": "a field of the annotation is missing or of another type",
    "unknown_category": "the annotation's category is not in instances.json",
    "malformed_category": "the name of the annotation's category is not a text",
    "other_image": "the annotation belongs to another image",
    "bad_segmentation": "polygons or run lengths cannot be read",
    "not_in_pixels": "a box or polygons are fractions of the image instead of pixels",
    "other_shape": "the segmentation lies elsewhere than the annotation's own box, or is far smaller than its area",
    "empty_mask": "polygons or run lengths cover no pixel",
    "box_outside": "the box of one's own data reaches out of the image",
    "missing_image": "no file for the image",
    "not_a_jpeg": "the image file is no JPEG",
    "truncated_image": "the JPEG ends too early or is damaged",
    "size_mismatch": "the JPEG has another size than annotated",
}
"""Every reason code there is, in words."""

LEFT_OUT = ("without_sentences",)
"""Reasons that are not faults: such refs are in published files, name nothing that could be learnt or scored, and are
passed over by the datasets' authors. They do not end a build."""

_IMAGE_REASONS = ("missing_image", "not_a_jpeg", "truncated_image", "size_mismatch")


@dataclass(frozen=True, slots=True, kw_only=True)
class Reject:
    """A ref that cannot become a row.

    Attributes:
        ref_id: As found; None where it cannot be told.
        image_id: As found; None where it cannot be told.
        split: As found; None where it cannot be told.
        reason: A key of `REASONS`.
        message: Where, what was found, what was expected, what to do.
    """

    ref_id: int | None
    image_id: int | None
    split: str | None
    reason: str
    message: str

    def to_error(self) -> RefsegError:
        """The same as an error, for a build that ends with it."""
        return (ImageError if self.reason in _IMAGE_REASONS else AnnotationError)(self.message)


class RefFault(Exception):
    """What is wrong with the ref at hand: a key of `REASONS`, and a message to which the ref's place is added."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message


def write_rejects(path: Path, rejects: Iterable[Reject], spec: DatasetSpec) -> None:
    """Write `rejects.parquet`, sorted, so that equal rejects give equal bytes."""
    rows = [
        {"dataset": spec.dataset, "split_by": spec.split_by, **asdict(reject)} for reject in sorted(rejects, key=_order)
    ]
    pq.write_table(pa.Table.from_pylist(rows, schema=REJECTS_SCHEMA), path, compression="zstd")


def _order(reject: Reject) -> tuple[str, bool, int, int, str, str]:
    return (
        reject.split or "",
        reject.ref_id is None,
        reject.ref_id or 0,
        reject.image_id or 0,
        reject.reason,
        reject.message,
    )
