"""Defines the evaluation table. It has one row per sentence with the pixel counts of each protocol.

Every score is computed from this table.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, ClassVar, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from refseg.data.index import ManifestIndex
from refseg.dataset.descriptor import MaskRule
from refseg.errors import UsageError
from refseg.evaluation.metrics import Counts
from refseg.evaluation.protocols import Protocol

SentenceOrder = Literal["own", "shuffled"]
"""`own`: each sentence against its ref's target. `shuffled`: the control, against another target of the same image."""

SENTENCE_FIELDS = (
    ("dataset", pa.string()),  # dataset id with its partition: refcoco/unc
    ("split", pa.string()),
    ("ref_id", pa.int64()),  # the ref the sentence was written for
    ("target_ref_id", pa.int64()),  # the ref it was scored against; differs from ref_id only in the shuffled control
    ("sent_id", pa.int64()),
    ("image_id", pa.int64()),
    ("sentence", pa.string()),
    ("height", pa.int32()),  # height of the image in pixels
    ("width", pa.int32()),
    ("num_tokens", pa.int32()),  # number of BPE ids with SOS and EOS before truncation
    ("category", pa.string()),  # category of the target
    ("num_distractors", pa.int32()),  # number of other targets of that category in the image and split
    ("no_target", pa.bool_()),
    ("predicted_none", pa.bool_()),  # output of the model for "no target"; null: it has none, an empty mask decides
)
"""Columns of every table. Rows are in the order of the dataset's rows, then of the ref's sentences."""

COUNTED = ("intersection", "union", "predicted_area", "target_area")
"""Names of the int64 pixel counts, which exist for each protocol: `original_intersection` and so on."""

_FACTS_KEY = b"refseg"


def column_name(protocol: Protocol, counted: str) -> str:
    """Return the name of a protocol's column for one of `COUNTED` or for `predicted_counts`.

    `predicted_counts` is an optional column. It contains COCO's uncompressed run lengths of the predicted mask at the
    protocol's size.
    """
    return f"{protocol.name}_{counted}"


def counts(table: pa.Table, protocol: Protocol, counted: str) -> Counts:
    """Return a protocol's column of pixel counts as an array, shape (N,)."""
    values: Counts = table.column(column_name(protocol, counted)).to_numpy()
    return values


def has_predictions(table: pa.Table, protocol: Protocol) -> bool:
    """Return True if the table contains the predicted masks."""
    return column_name(protocol, "predicted_counts") in table.column_names


@dataclass(frozen=True, slots=True, kw_only=True)
class RowFacts:
    """Information that applies to all rows and is needed to read the scores. It is stored in the table's metadata.

    Attributes:
        protocols: Protocols by which the masks were made. The first one gives the headline scores.
        mask_rule: Rule by which the dataset was built. It is `union` or `legacy` (`refseg.dataset.schema.MASK_RULES`).
        sentence_order: With `own`, each sentence is scored against its own target. With `shuffled`, it is scored
            against another target of the same image.
        num_left_out: Number of sentences without a row. In shuffled order, sentences of images with a single target
            have no row.
        given_masks: True if the masks came from another project (`refseg score`).
        notes: Messages about given masks that were left out or are unusual.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    protocols: Annotated[tuple[Protocol, ...], Field(min_length=1)]
    mask_rule: MaskRule
    sentence_order: SentenceOrder
    num_left_out: int
    given_masks: bool = False
    notes: tuple[str, ...] = ()

    def attach(self, table: pa.Table) -> pa.Table:
        """Return the table with this information in the schema's metadata, which Parquet files preserve."""
        return table.replace_schema_metadata({_FACTS_KEY: json.dumps(asdict(self))})

    @classmethod
    def of(cls, table: pa.Table) -> "RowFacts":
        """Read the information from a table's metadata.

        Raises:
            UsageError: If the metadata are missing, or were written by an earlier release.
        """
        text = (table.schema.metadata or {}).get(_FACTS_KEY)
        if text is None:
            raise UsageError(
                "found rows without the metadata key `refseg`, probably because pandas rewrote the file; use the file "
                "that `refseg evaluate` wrote, or copy its metadata"
            )
        try:
            return _FACTS.validate_json(text, strict=True)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise UsageError(
                f"the facts of the rows' evaluation do not fit this release ({where and f'{where}: '}"
                f"{first['msg']}): an earlier release wrote the rows, or they were changed; run `refseg evaluate` again"
            ) from error


_FACTS = TypeAdapter(RowFacts)


def check_table(table: pa.Table) -> None:
    """Check the columns, types and pixel counts of a table that was read from a file.

    Raises:
        UsageError: If a column is missing, has another type or lacks a value. If pixel counts contradict each other. If
            `RowFacts.of` refuses the table.
    """
    counted = [column_name(protocol, name) for protocol in RowFacts.of(table).protocols for name in COUNTED]
    for name, kind in (*SENTENCE_FIELDS, *((name, pa.int64()) for name in counted)):
        position = table.schema.get_field_index(name)
        found = "no such column" if position < 0 else str(table.schema.field(position).type)
        if found != str(kind):
            raise UsageError(f"column {name}: found {found}, expected {kind}")
        if name != "predicted_none" and table.column(position).null_count:
            raise UsageError(f"column {name}: found rows without a value, expected one in each")
    for protocol in RowFacts.of(table).protocols:
        shared, union, *areas = (table.column(column_name(protocol, name)) for name in COUNTED)
        least = pc.min_element_wise(shared, pc.subtract(areas[0], shared), pc.subtract(areas[1], shared))
        joined = pc.subtract(pc.add(areas[0], areas[1]), shared)
        if not pc.all(pc.and_(pc.greater_equal(least, 0), pc.equal(union, joined))).as_py() and len(table):
            raise UsageError(f"the pixel counts of protocol {protocol.name} contradict each other")


@dataclass(frozen=True, slots=True, kw_only=True)
class Counted:
    """The pixel counts of N sentences, in the order of the index.

    Attributes:
        row: Row of each sentence's ref in the index, shape (N,).
        sentence: Position of each sentence within its ref, shape (N,).
        pixels: Intersection, predicted area and target area by protocol, shape (N, protocols, 3).
        predictions: Run lengths of the predicted masks, by protocol and then by sentence. Empty if they were not kept.
        predicted_none: For each sentence, the model's no-target output. None if the model has none.
    """

    row: NDArray[np.int64]
    sentence: NDArray[np.int64]
    pixels: NDArray[np.int64]
    predictions: Sequence[Sequence[NDArray[np.uint32]]] = ()
    predicted_none: Sequence[bool | None] | None = None


def make_table(index: ManifestIndex, targets: NDArray[np.int64], counted: Counted, facts: RowFacts) -> pa.Table:
    """Build the evaluation table from pixel counts and the index.

    Args:
        index: Index of the dataset.
        targets: For each row of the index, the row whose target its sentences were scored against, shape (rows,).
        counted: Pixel counts of the sentences.
        facts: Information to store in the table's metadata.
    """
    row = counted.row
    positions = index.sentence_start[row] + counted.sentence
    target, image = targets[row], index.row_image[row]
    none = counted.predicted_none
    columns = {
        "dataset": pa.array([index.descriptor.dataset] * len(row), pa.string()),
        "split": pa.array([index.splits[split] for split in index.row_split[row]], pa.string()),
        "ref_id": index.ref_id[row],
        "target_ref_id": index.ref_id[target],
        "sent_id": index.sent_id[positions],
        "image_id": index.image_id[image],
        "sentence": index.sent.take(pa.array(positions)),
        "height": index.height[image],
        "width": index.width[image],
        "num_tokens": (index.token_start[positions + 1] - index.token_start[positions]).astype(np.int32),
        "category": index.category.take(pa.array(target)),
        "num_distractors": _num_distractors(index)[target],
        "no_target": pa.array(np.where(target == row, ~index.sentence_exists[positions], index.no_target[target])),
        "predicted_none": pa.nulls(len(row), pa.bool_()) if none is None else pa.array(none, pa.bool_()),
    }
    table = pa.table(columns, schema=pa.schema(SENTENCE_FIELDS))
    for number, protocol in enumerate(facts.protocols):
        intersection, predicted_area, target_area = counted.pixels[:, number].T
        union = predicted_area + target_area - intersection
        for name, values in zip(COUNTED, (intersection, union, predicted_area, target_area), strict=True):
            table = table.append_column(column_name(protocol, name), pa.array(np.ascontiguousarray(values)))
        if counted.predictions:
            runs = pa.array(counted.predictions[number], pa.list_(pa.uint32()))
            table = table.append_column(column_name(protocol, "predicted_counts"), runs)
    return facts.attach(table)


def _num_distractors(index: ManifestIndex) -> NDArray[np.int32]:
    """Count the other targets of the same category in the image, shape (rows,).

    Only objects to which a sentence of the split refers are counted. Refs with equal masks are one target. The count of
    a row without a category is 0.
    """
    found = np.zeros(index.num_rows, np.int32)
    categories = index.category.to_pylist()
    for first, end in zip(index.row_start[:-1].tolist(), index.row_start[1:].tolist(), strict=True):
        masks: dict[str, set[bytes]] = {}
        for row in range(first, end):
            if categories[row]:
                masks.setdefault(categories[row], set()).add(index.counts(row).tobytes())
        for row in range(first, end):
            found[row] = max(0, len(masks.get(categories[row], ())) - 1)
    return found
