"""Reads the predicted masks of another project from Parquet, JSON, JSON lines or a folder of PNGs."""

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from refseg.addresses import local_path
from refseg.errors import AnnotationError, PredictionError, UsageError
from refseg.evaluation.protocols import Protocol
from refseg.evaluation.rows import RowFacts, column_name
from refseg.file_kinds import HEAD_BYTES, find_stand_in
from refseg.mask_png import DEFAULT_RULE, PngRule, note_object_values, read_mask_png
from refseg.progress import report_progress
from refseg.run_lengths import encode_runs, expand_counts
from refseg.values import whole_number
from refseg.wording import closest

_PNG = re.compile(r"(\d+)_(\d+)\.png")

_NUM_NAMED = 10
"""Number of files or keys that a note lists; further ones are only counted."""

_KEYS = {"ref_id", "sent_id", "segmentation", "size", "counts", "no_target", "split"}
"""Keys of a record that are read."""

_OPTIONAL_KEYS = ("no_target", "split")
"""Optional keys. If one is misspelt, the record is still valid, but has another meaning."""


class Key(NamedTuple):
    """The ids of a sentence within a split, as in the dataset's annotations."""

    ref_id: int
    sent_id: int

    def __str__(self) -> str:
        return f"ref {self.ref_id} sentence {self.sent_id}"


@dataclass(frozen=True, slots=True, kw_only=True)
class GivenMask:
    """One predicted mask.

    Attributes:
        size: `(height, width)` in pixels.
        counts: COCO's uncompressed run lengths. Their sum is the number of pixels.
        predicted_none: The model's no-target output. None if the model has none.
    """

    size: tuple[int, int]
    counts: NDArray[np.uint32]
    predicted_none: bool | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Predictions:
    """Masks that were read.

    Attributes:
        masks: For each protocol, in the order of the protocols, the masks by sentence.
        notes: Messages about records or files that were left out or are unusual. They are shown with every score.
    """

    masks: Sequence[Mapping[Key, GivenMask]]
    notes: tuple[str, ...] = ()


def read_predictions(
    path: Path, protocols: Sequence[Protocol], split: str, png_rule: PngRule = DEFAULT_RULE
) -> Predictions:
    """Read predicted masks for each protocol.

    A record has `ref_id`, `sent_id` and the mask as COCO's RLE: `size` and `counts` (a list or compressed text), in
    `segmentation` or beside the ids. Optional keys are `split` and `no_target`, a boolean with the model's no-target
    output. A null value counts as absent. All other keys are listed in a note. A JSON file contains a list of records,
    a JSON lines file one record per line, and a Parquet file one record per row. A folder contains files
    `REF_SENT.png`, which `refseg.mask_png` reads. All protocols use the same masks. The exception is rows of `refseg
    evaluate --save-predictions`, which contain separate masks for each protocol.

    Args:
        path: Path of a `.parquet`, `.json` or `.jsonl` file, or of a folder.
        protocols: Protocols under which masks are compared.
        split: Name of the split. Records of other splits are left out and counted in a note.
        png_rule: Rule by which PNGs are read.

    Raises:
        UsageError: If the path is of another kind. If a rule for PNGs is given and the path is not a folder.
        PredictionError: If there are no masks of the split. If a record is not valid. If a sentence is predicted twice.
            If the rows are from the shuffled control or have lost their metadata.
    """
    path = local_path(path)
    if path.is_dir():
        notes: list[str] = []
        return Predictions(masks=[_collect(_read_folder(path, png_rule, notes))] * len(protocols), notes=tuple(notes))
    if png_rule != DEFAULT_RULE:
        raise UsageError(
            f"{path}: is not a folder of PNGs, and the options --mask-... apply only to one; leave them out"
        )
    if path.suffix not in (".parquet", ".json", ".jsonl"):
        raise UsageError(f"{path}: expected a folder of PNGs or a file that ends in .parquet, .json or .jsonl")
    try:
        with path.open("rb") as file:
            if stand_in := find_stand_in(file.read(HEAD_BYTES)):
                raise PredictionError(f"{path}: {stand_in}")
        if path.suffix == ".parquet" and _is_rows(schema := pq.read_schema(path)):
            columns = [_own_columns(path, schema, protocol) for protocol in protocols]
            own = (_own_records(path, *one) for one in zip(protocols, columns, strict=True))
            found = [_of_split(path, split, records) for records in own]
            return Predictions(masks=[masks for masks, _ in found], notes=found[0][1])
        masks, notes_of_file = _of_split(path, split, _records(path))
        return Predictions(masks=[masks] * len(protocols), notes=notes_of_file)
    except (OSError, ValueError, OverflowError, RecursionError, pa.ArrowException) as error:
        raise PredictionError(
            f"{path}: cannot be read ({error}); see `refseg score --help` for what it may hold"
        ) from error


def _collect(found: Iterable[tuple[str, Key, GivenMask]]) -> dict[Key, GivenMask]:
    masks: dict[Key, GivenMask] = {}
    for where, key, mask in found:
        if key in masks:
            raise PredictionError(f"{where}: {key} is predicted twice, expected one mask per sentence; remove one")
        masks[key] = mask
    return masks


def _of_split(path: Path, split: str, records: Iterable[Any]) -> tuple[dict[Key, GivenMask], tuple[str, ...]]:
    """Return the masks of a split, and notes about records of other splits and about unknown keys."""
    others: Counter[str] = Counter()
    unread: dict[str, None] = {}
    masks = _collect(_read_records(path, split, records, others, unread))
    counted = ", ".join(f"{number:,} of {other}" for other, number in others.items())
    if not masks:
        raise PredictionError(
            f"{path}: found no mask of split {split}{counted and f', but {counted}'}; expected at least one"
        )
    notes = [f"{path}: records that name another split were left out: {counted}"] if others else []
    if unread:
        notes.append(f"{path}: keys that are not read were left out: {_name_keys(list(unread))}")
    return masks, tuple(notes)


def _name_keys(names: Sequence[str]) -> str:
    """List keys for a note, beginning with those that seem to be misspelt."""
    close = {name: closest(name.rpartition(".")[2], _OPTIONAL_KEYS, likeness=0.8) for name in names}
    named = [
        f"{name!r:.40}" + (f" (did you mean {close[name]}?)" if close[name] else "")
        for name in sorted(names, key=lambda name: not close[name])
    ]
    more = f" and {len(named) - _NUM_NAMED:,} more" if len(named) > _NUM_NAMED else ""
    return ", ".join(named[:_NUM_NAMED]) + more


def _read_records(
    path: Path, split: str, records: Iterable[Any], others: Counter[str], unread: dict[str, None]
) -> Iterator[tuple[str, Key, GivenMask]]:
    """Yield the masks of a split. Count records of other splits in `others`, and collect unknown keys in `unread`."""
    for number, record in enumerate(records, 1):
        where = f"{path} record {number}"
        if not isinstance(record, dict):
            raise PredictionError(f"{where}: found {record!r:.60}, expected an object with ref_id, sent_id and a mask")
        of_split = record.get("split")
        if of_split is not None and not isinstance(of_split, str):
            raise PredictionError(f"{where}: found split {of_split!r:.40}, expected a name")
        if of_split in (None, split):
            yield where, *_read_record(where, record)
            unread.update(dict.fromkeys(_unread_keys(record)))
        else:
            others[of_split] += 1


def _unread_keys(record: Mapping[str, Any]) -> Iterator[str]:
    """Yield the keys of a record and of its mask that have a value but are not read."""
    yield from (key for key, value in record.items() if key not in _KEYS and value is not None)
    rle = record.get("segmentation") or {}
    yield from (f"segmentation.{key}" for key in rle if key not in ("size", "counts") and rle[key] is not None)


def _records(path: Path) -> Iterator[Any]:
    """Yield the records of a file. Only a JSON file is loaded as a whole. A byte order mark is skipped."""
    if path.suffix == ".json":
        records = json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=_object)
        if not isinstance(records, list):
            raise PredictionError(f"{path}: found {type(records).__name__}, expected a list of records")
        yield from records
    elif path.suffix == ".jsonl":
        with path.open(encoding="utf-8-sig") as lines:
            yield from (json.loads(line, object_pairs_hook=_object) for line in lines if line.strip())
    else:
        yield from _parquet_records(path)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a JSON object. Refuse duplicate names, for which Python would silently keep only the last value."""
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(name for name, number in Counter(name for name, _ in pairs).items() if number > 1)
        raise ValueError(f"an object has {twice!r:.40} twice")
    return found


def _parquet_records(path: Path, columns: Sequence[str] | None = None) -> Iterator[dict[str, Any]]:
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=1024, columns=columns):
            yield from batch.to_pylist()


def _is_rows(schema: pa.Schema) -> bool:
    """Return True for rows of `refseg evaluate`, even if another program rewrote the file without the metadata."""
    return "target_ref_id" in schema.names and not {"segmentation", "counts"} & set(schema.names)


def _own_columns(path: Path, schema: pa.Schema, protocol: Protocol) -> tuple[str, ...]:
    """Return the columns to read from rows that `refseg evaluate` wrote. The last one contains the masks."""
    try:
        facts = RowFacts.of(schema.empty_table())
    except UsageError as error:
        raise PredictionError(f"{path}: {error}") from error
    if facts.sentence_order != "own":
        raise PredictionError(
            f"{path}: found a file from `refseg evaluate --shuffled-sentences`, which cannot be used here; run "
            "`refseg evaluate` with --save-predictions and without --shuffled-sentences"
        )
    kept = [other for other in facts.protocols if column_name(other, "predicted_counts") in schema.names]
    if protocol not in kept:
        names = ", ".join(other.name for other in kept) or "none"
        raise PredictionError(
            f"{path}: found rows with masks of protocol {names}, expected those of {protocol.name}, whose threshold "
            f"and size may differ; run `refseg evaluate` with --protocol {protocol.name} --save-predictions"
        )
    return "split", "ref_id", "sent_id", "height", "width", "predicted_none", column_name(protocol, "predicted_counts")


def _own_records(path: Path, protocol: Protocol, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
    for row in _parquet_records(path, columns):
        size = protocol.compared_size((row["height"], row["width"]))
        ids = {name: row[name] for name in ("split", "ref_id", "sent_id")}
        yield {**ids, "no_target": row["predicted_none"], "size": list(size), "counts": row[columns[-1]]}


def _read_record(where: str, record: Mapping[str, Any]) -> tuple[Key, GivenMask]:
    ref_id, sent_id = whole_number(record.get("ref_id")), whole_number(record.get("sent_id"))
    if ref_id is None or sent_id is None:
        found = f"ref_id {record.get('ref_id')!r:.40} and sent_id {record.get('sent_id')!r:.40}"
        raise PredictionError(f"{where}: found {found}, expected two whole numbers")
    key = Key(ref_id, sent_id)
    rle = record if record.get("segmentation") is None else record["segmentation"]
    if rle is not record and record.get("counts") is not None:
        raise PredictionError(f"{where}, {key}: found segmentation and counts beside it, expected one mask")
    none = record.get("no_target")
    if none is not None and type(none) is not bool:
        raise PredictionError(f"{where}, {key}: found no_target {none!r:.40}, expected true or false")
    if not isinstance(rle, dict) or rle.get("counts") is None:
        raise PredictionError(f"{where}, {key}: found no mask, expected segmentation with size and counts (COCO's RLE)")
    size = rle.get("size")
    sides = [whole_number(side) or 0 for side in size] if isinstance(size, list) else []
    if len(sides) != 2 or min(sides) < 1:
        raise PredictionError(f"{where}, {key}: found size {size!r:.40}, expected [height, width] in pixels")
    return key, GivenMask(
        size=(sides[0], sides[1]), counts=_read_counts(where, key, rle["counts"], sides), predicted_none=none
    )


def _read_counts(where: str, key: Key, counts: Any, size: list[int]) -> NDArray[np.uint32]:
    if isinstance(counts, str | bytes):
        try:
            counts = expand_counts(counts.encode("utf-8", "surrogatepass") if isinstance(counts, str) else counts)
        except AnnotationError as error:
            raise PredictionError(f"{where}, {key}: {error}; expected COCO's compressed text") from error
    if not isinstance(counts, list) or not set(map(type, counts)) <= {int} or min(counts, default=0) < 0:
        raise PredictionError(
            f"{where}, {key}: its counts are not run lengths, expected whole numbers or compressed text"
        )
    if sum(counts) != size[0] * size[1]:
        raise PredictionError(
            f"{where}, {key}: its run lengths sum to {sum(counts)}, expected {size[0]} x {size[1]} pixels = "
            f"{size[0] * size[1]}"
        )
    return np.array(counts, np.uint32)


def _read_folder(folder: Path, rule: PngRule, notes: list[str]) -> Iterator[tuple[str, Key, GivenMask]]:
    """Yield the masks of a folder. Other files are listed in the notes."""
    entries = sorted(folder.iterdir())
    paths = [path for path in entries if path.suffix.lower() == ".png"]
    if not paths:
        raise PredictionError(f"{folder}: found no .png, expected masks named REF_SENT.png, for example 12_34.png")
    if others := [path.name + "/" * path.is_dir() for path in entries if path.suffix.lower() != ".png"]:
        more = f" and {len(others) - _NUM_NAMED:,} more" if len(others) > _NUM_NAMED else ""
        notes.append(f"{folder}: files other than .png were left out: {', '.join(others[:_NUM_NAMED])}{more}")
    if str(rule):
        notes.append(f"{folder}: masks were not read by the default rule, but by: {rule}")
    object_values: Counter[str] = Counter()
    with report_progress(f"read {folder}", "masks") as progress:
        for number, path in enumerate(paths, 1):
            match = _PNG.fullmatch(path.name)
            if match is None:
                raise PredictionError(f"{path}: expected a name like REF_SENT.png, for example 12_34.png")
            try:
                read = read_mask_png(path.read_bytes(), rule)
            except (OSError, AnnotationError) as error:
                raise PredictionError(f"{path}: {error}") from error
            object_values[read.object_value] += 1
            size = read.pixels.shape[0], read.pixels.shape[1]
            yield str(path), Key(int(match[1]), int(match[2])), GivenMask(size=size, counts=encode_runs(read.pixels))
            progress(number, len(paths))
    if note := note_object_values(object_values):
        notes.append(f"{folder}: {note}")
