"""Defines rejects (refs that cannot become rows) and their reasons, and writes them to `rejects.parquet`."""

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
    "without_sentences": "the ref's list of sentences is empty, as in some refs of gRefCOCO's release; it is left out",
    "without_mask": "the ref's annotation has no segmentation, in a `refer/<name>` dataset; it is left out",
    "no_sentence": "a sentence is empty or has no visible character",
    "duplicate_sent_id": "an earlier sentence of the split has the same id",
    "unknown_image": "the image id is not in instances.json",
    "malformed_image": "the image record has no usable id or size",
    "unknown_annotation": "the annotation id is not in instances.json",
    "malformed_annotation": "a field of the annotation is missing or of another type",
    "unknown_category": "the annotation's category is not in instances.json",
    "malformed_category": "the name of the annotation's category is not a string",
    "other_image": "the annotation belongs to another image",
    "bad_segmentation": "polygons or run lengths cannot be read",
    "not_in_pixels": "a box or polygons are fractions of the image instead of pixels",
    "other_shape": "the segmentation is far from the annotation's own box, or far smaller than its area",
    "empty_mask": "polygons or run lengths cover no pixel",
    "box_outside": "the box of a user's table extends beyond the image",
    "missing_image": "the image file was not found",
    "not_a_jpeg": "the image file is not a JPEG",
    "truncated_image": "the JPEG ends too early or is damaged",
    "size_mismatch": "the JPEG has another size than annotated",
}
"""All reason codes with their descriptions."""

LEFT_OUT = {
    "without_sentences": "refs whose list of sentences is empty",
    "without_mask": "refs whose annotation has no segmentation",
}
"""Reasons that are not faults and do not end a build, each with a description of the refs. Published files contain
these refs, which have nothing to learn or score. The datasets' authors ignore them, too.
"""

_IMAGE_REASONS = ("missing_image", "not_a_jpeg", "truncated_image", "size_mismatch")


@dataclass(frozen=True, slots=True, kw_only=True)
class Reject:
    """A ref that cannot become a row.

    Attributes:
        ref_id: Id of the ref; None if it is missing or malformed.
        image_id: Id of the image; None if it is missing or malformed.
        split: Name of the split; None if it is missing or malformed.
        reason: A key of `REASONS`.
        message: Where the fault is, what was found, what was expected, and what to do.
    """

    ref_id: int | None
    image_id: int | None
    split: str | None
    reason: str
    message: str

    def to_error(self) -> RefsegError:
        """Return the reject as an error, for a build that ends with it."""
        return (ImageError if self.reason in _IMAGE_REASONS else AnnotationError)(self.message)


class RefFault(Exception):
    """A fault of the ref that is being checked. `reject_ref` adds the ref's id to the message.

    Args:
        reason: A key of `REASONS`.
        message: What was found, what was expected, and what to do.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message


def write_rejects(path: Path, rejects: Iterable[Reject], spec: DatasetSpec) -> None:
    """Write `rejects.parquet`. Rows are sorted, so that the same rejects give the same bytes."""
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
