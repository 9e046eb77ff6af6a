"""The evaluation table: one row per sentence with each protocol's pixel counts, from which every score is computed."""

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
    ("dataset", pa.string()),  # with its partition: refcoco/unc
    ("split", pa.string()),
    ("ref_id", pa.int64()),  # the ref the sentence was written for
    ("target_ref_id", pa.int64()),  # the ref it was scored against: another one only where sentences are shuffled
    ("sent_id", pa.int64()),
    ("image_id", pa.int64()),
    ("sentence", pa.string()),
    ("height", pa.int32()),  # of the image, pixels
    ("width", pa.int32()),
    ("num_tokens", pa.int32()),  # BPE ids with SOS and EOS before any cut
    ("category", pa.string()),  # of the target
    ("num_distractors", pa.int32()),  # other targets of that category in the image, as far as the split knows them
    ("no_target", pa.bool_()),
    ("predicted_none", pa.bool_()),  # what a model's own output says; null: it has none, and an empty mask says so
)
"""What every row has. Rows are in the order of the dataset's rows, then of the ref's sentences."""

COUNTED = ("intersection", "union", "predicted_area", "target_area")
"""Pixels, int64, once for each protocol: `original_intersection` and so on."""

_FACTS_KEY = b"refseg"


def column_name(protocol: Protocol, counted: str) -> str:
    """Name of a protocol's column: one of `COUNTED`, or `predicted_counts`.

    The latter holds, where asked for, COCO's uncompressed run lengths of the predicted mask at the protocol's size.
    """
    return f"{protocol.name}_{counted}"


def counts(table: pa.Table, protocol: Protocol, counted: str) -> Counts:
    """A protocol's column of pixel counts as an array, shape (N,)."""
    values: Counts = table.column(column_name(protocol, counted)).to_numpy()
    return values


def has_predictions(table: pa.Table, protocol: Protocol) -> bool:
    """Whether the predicted masks were kept."""
    return column_name(protocol, "predicted_counts") in table.column_names


@dataclass(frozen=True, slots=True, kw_only=True)
class RowFacts:
    """What the rows cannot say about themselves and no score may be read without; travels with the table.

    Attributes:
        protocols: The rules the masks were made by, the headline's first.
        mask_rule: Rule the dataset was built by: `union` or `legacy` (`refseg.dataset.schema.MASK_RULES`).
        sentence_order: `own`: each sentence against its ref. `shuffled`: against another target of its image.
        num_left_out: Sentences without a row: in shuffled order those of images with a single target.
        given_masks: The masks were not made here: `refseg score`.
        notes: What of the given masks was left out or looked odd, a line each.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    protocols: Annotated[tuple[Protocol, ...], Field(min_length=1)]
    mask_rule: MaskRule
    sentence_order: SentenceOrder
    num_left_out: int
    given_masks: bool = False
    notes: tuple[str, ...] = ()

    def attach(self, table: pa.Table) -> pa.Table:
        """The table with these facts in its schema's metadata, which Parquet keeps."""
        return table.replace_schema_metadata({_FACTS_KEY: json.dumps(asdict(self))})

    @classmethod
    def of(cls, table: pa.Table) -> "RowFacts":
        """The facts a table carries.

        Raises:
            UsageError: If it carries none, or those of an earlier release.
        """
        text = (table.schema.metadata or {}).get(_FACTS_KEY)
        if text is None:
            raise UsageError(
                "the rows have lost the facts of their evaluation (`refseg` in the schema's metadata), as where pandas "
                "wrote them again; take the file that `refseg evaluate` wrote, or give a copy that file's metadata"
            )
        try:
            return _FACTS.validate_json(text, strict=True)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise UsageError(
                f"the facts of the rows' evaluation are not those of this release ({where and f'{where}: '}"
                f"{first['msg']}): the rows were written by an earlier release, or changed; run `refseg evaluate` again"
            ) from error


_FACTS = TypeAdapter(RowFacts)


def check_table(table: pa.Table) -> None:
    """Check that a table that was read has what every row must have, so that scores are computed of nothing else.

    Raises:
        UsageError: If a column is missing, of another type, has no value somewhere, or its pixel counts contradict
            each other; or as of `RowFacts.of`.
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
    """What was counted of some sentences, in the order of the index.

    Attributes:
        row: Position of each sentence's ref in the index, shape (N,).
        sentence: Position within the ref, shape (N,).
        pixels: Intersection, predicted area and target area by protocol, shape (N, protocols, 3).
        predictions: Run lengths by protocol, then by sentence; empty: not kept.
        predicted_none: What the model's own output says; None: it has none.
    """

    row: NDArray[np.int64]
    sentence: NDArray[np.int64]
    pixels: NDArray[np.int64]
    predictions: Sequence[Sequence[NDArray[np.uint32]]] = ()
    predicted_none: Sequence[bool | None] | None = None


def make_table(index: ManifestIndex, targets: NDArray[np.int64], counted: Counted, facts: RowFacts) -> pa.Table:
    """Join counts with what the index knows of each sentence.

    Args:
        index: Of the dataset.
        targets: The row whose target each row's sentences were scored against, shape (rows,).
        counted: What was counted.
        facts: Travel with the table.
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
    """Other targets of the same category in the image, shape (rows,); refs with the same mask are one target.

    Only objects that some sentence of the split names are known; 0 where there is no category.
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
