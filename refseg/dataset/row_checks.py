"""What every row of a manifest must be: checked over whole columns, before a reader uses any of them.

A manifest with right hashes may still be untrusted. Only rows that pass have the sizes, offsets and run lengths that
readers rely on without looking again. Columns that were not read are not checked.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from refseg.dataset.arrow_arrays import list_ends, list_lengths, numbers, one_array
from refseg.dataset.schema import IMAGE_KIND, MAX_PIXELS, MAX_SIDE
from refseg.dataset.shape_checks import find_annotation_faults, find_mask_faults
from refseg.tokenizer import EOS_ID, SOS_ID, VOCAB_SIZE

_BLOCK = 512  # of a tar: a header, and what members are padded to
_HASHES = ("image_xxh3", "sample_xxh3")
_OF_IMAGE = ("image_id", "file_name", "height", "width", "image_bytes", "image_xxh3", "sample_bytes", "sample_xxh3")


class RowFault(NamedTuple):
    """One violation of the format by a row."""

    row: int
    """Its position in the manifest."""
    found: str
    expected: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RowRules:
    """What the descriptor says of a manifest's rows.

    Attributes:
        split: Split of all rows.
        datasets: Dataset ids that rows may have.
        tar_bytes: Size of each tar, by the `shard` that rows may name.
    """

    split: str
    datasets: tuple[str, ...]
    tar_bytes: Mapping[str, int]


def find_row_faults(table: pa.Table, rules: RowRules) -> Iterator[RowFault]:
    """Look for rows that the format forbids; the first kind of fault that makes others unreadable ends the search.

    Args:
        table: Rows with the types of `MANIFEST_SCHEMA`; strings may be dictionaries, columns may be missing.
        rules: Rules that the descriptor gives for the manifest.
    """
    columns = {name: one_array(table.column(name)) for name in table.column_names}
    missing = [fault for name, column in columns.items() if name != "ignore" for fault in _find_nulls(name, column)]
    yield from missing
    if missing:
        return
    sides = numbers(columns["height"]), numbers(columns["width"])
    is_wrong = (np.minimum(*sides) < 1) | (np.maximum(*sides) > MAX_SIDE)
    is_wrong |= sides[0].astype(np.int64) * sides[1] > MAX_PIXELS
    yield from _of_rows(
        is_wrong,
        lambda row: f"size {sides[0][row]} x {sides[1][row]} (height x width)",
        f"1 to {MAX_SIDE:,} pixels a side and {MAX_PIXELS:,} at most",
    )
    if is_wrong.any():
        return
    yield from _find_wrong_names(columns, rules)
    yield from _find_unknown_content(columns)
    yield from _find_wrong_places(columns, rules)
    yield from _find_split_images(columns)
    if "sentences" in columns:
        yield from _find_wrong_sentences(columns)
    if "box_xywh" in columns:
        boxes = columns["box_xywh"]
        is_wrong = list_lengths(boxes) != 4
        values = numbers(boxes.flatten())
        is_wrong[np.repeat(np.arange(len(boxes)), list_lengths(boxes))[~np.isfinite(values)]] = True
        yield from _constant(is_wrong, "a box_xywh of other values", "four finite numbers")
    of_masks = find_mask_faults(columns["mask"], numbers(columns["no_target"]), sides) if "mask" in columns else ()
    of_annotations = find_annotation_faults(columns["annotations"], sides) if "annotations" in columns else ()
    for is_wrong, found, expected in chain(of_masks, of_annotations):
        yield from _of_rows(is_wrong, found, expected)


def find_repeated(ids: NDArray[np.int64], groups: NDArray[Any]) -> NDArray[np.int64]:
    """Positions of ids that an earlier position of the same group has, too."""
    order = np.lexsort((ids, groups))
    again = (ids[order][1:] == ids[order][:-1]) & (groups[order][1:] == groups[order][:-1])
    return np.sort(order[1:][again])


def find_misplaced_samples(
    image_offset: NDArray[np.int64],
    image_bytes: NDArray[np.int64],
    sample_bytes: NDArray[np.int64],
    tar_bytes: NDArray[np.int64],
) -> NDArray[np.bool_]:
    """Which samples are not header, image, header and JSON within a tar; all are given in bytes, `(samples,)`."""
    start = image_offset - _BLOCK
    is_wrong = (start < 0) | (start % _BLOCK != 0) | (image_bytes < 1) | (sample_bytes < image_bytes)
    is_wrong |= (sample_bytes - image_bytes < 2 * _BLOCK) | (sample_bytes > tar_bytes)
    return is_wrong | (start > tar_bytes - sample_bytes)


def _of_rows(is_wrong: NDArray[np.bool_], found: Callable[[int], str], expected: str) -> Iterator[RowFault]:
    for row in np.flatnonzero(is_wrong).tolist():
        yield RowFault(row, found(row), expected)


def _constant(is_wrong: NDArray[np.bool_], found: str, expected: str) -> Iterator[RowFault]:
    return _of_rows(is_wrong, lambda _: found, expected)


def _find_nulls(name: str, column: pa.Array) -> Iterator[RowFault]:
    """Rows of a column that hold no value somewhere."""
    path = _path_of_null(name, column)
    if path is not None:
        for row, value in enumerate(column.to_pylist()):
            if _holds_none(value):
                yield RowFault(row, f"no value of {path}", "one in every row")


def _path_of_null(path: str, array: pa.Array) -> str | None:
    """The first nested column with a null; None: there is none."""
    if array.null_count:
        return path
    if pa.types.is_dictionary(array.type):
        return _path_of_null(path, array.dictionary)
    if pa.types.is_list(array.type):
        return _path_of_null(path, array.flatten())
    if pa.types.is_struct(array.type):
        found = (_path_of_null(f"{path}.{field.name}", array.field(field.name)) for field in array.type)
        return next((name for name in found if name is not None), None)
    return None


def _holds_none(value: Any) -> bool:
    if isinstance(value, dict):
        value = list(value.values())
    return value is None or (isinstance(value, list) and any(map(_holds_none, value)))


def _codes(array: pa.Array) -> tuple[list[str], NDArray[Any]]:
    """The values of a column of strings, each once, and which of them each row has."""
    array = array if pa.types.is_dictionary(array.type) else array.dictionary_encode()
    return array.dictionary.to_pylist(), numbers(array.indices)


def _find_wrong_names(columns: Mapping[str, pa.Array], rules: RowRules) -> Iterator[RowFault]:
    """Splits, datasets, tars and hashes that there are not; ref ids that come again."""
    splits, split = _codes(columns["split"])
    yield from _of_rows(
        np.array([name != rules.split for name in splits], np.bool_)[split],
        lambda row: f"split {splits[split[row]]}",
        rules.split,
    )
    names, name = _codes(columns["dataset"])
    partitions, partition = _codes(columns["split_by"])
    ids = np.array([[f"{first}/{second}" in rules.datasets for second in partitions] for first in names], np.bool_)
    yield from _of_rows(
        ~ids[name, partition],
        lambda row: f"dataset {names[name[row]]}/{partitions[partition[row]]}",
        ", ".join(rules.datasets),
    )
    is_wrong = np.zeros(len(split), np.bool_)
    is_wrong[find_repeated(numbers(columns["ref_id"]), name * len(partitions) + partition)] = True
    yield from _constant(is_wrong, "the ref_id of another row", "each ref_id once")
    for of_hash in _HASHES:
        if of_hash in columns:
            yield from _find_wrong_hashes(of_hash, columns[of_hash])


def _find_unknown_content(columns: Mapping[str, pa.Array]) -> Iterator[RowFault]:
    """What the format has room for and this release does not read."""
    if "image_kind" in columns:
        kinds, kind = _codes(columns["image_kind"])
        is_wrong = np.array([name != IMAGE_KIND for name in kinds], np.bool_)[kind]
        yield from _of_rows(is_wrong, lambda row: f"a picture of kind {kinds[kind[row]]!r:.20}", IMAGE_KIND)
    if "ignore" in columns:
        is_wrong = numbers(columns["ignore"].is_valid())
        yield from _constant(is_wrong, "a mask of pixels to ignore", "none, as this release would count them")


def _find_wrong_hashes(name: str, column: pa.Array) -> Iterator[RowFault]:
    is_hash = numbers(pc.match_substring_regex(column.cast(pa.string()), "^[0-9a-f]{16}$"))
    yield from _of_rows(~is_hash, lambda row: f"{name} {column[row].as_py()!r:.40}", "16 hexadecimal digits")


def _find_wrong_places(columns: Mapping[str, pa.Array], rules: RowRules) -> Iterator[RowFault]:
    """Samples that do not lie within their tars."""
    tars, tar = _codes(columns["shard"])
    is_unknown = np.array([name not in rules.tar_bytes for name in tars], np.bool_)[tar]
    yield from _of_rows(
        is_unknown,
        lambda row: f"shard {tars[tar[row]]!r:.80}",
        " or ".join(sorted(rules.tar_bytes)[:3]) or "none, as there is no tar",
    )
    tar_bytes = np.array([rules.tar_bytes.get(name, 0) for name in tars], np.int64)[tar]
    offset, image, sample = (numbers(columns[name]) for name in ("image_offset", "image_bytes", "sample_bytes"))
    yield from _of_rows(
        find_misplaced_samples(offset, image, sample, tar_bytes) & ~is_unknown,
        lambda row: f"an image of {image[row]} bytes at {offset[row]} in a sample of {sample[row]} bytes",
        "a sample of header, image, header and JSON within its tar",
    )


def _find_split_images(columns: Mapping[str, pa.Array]) -> Iterator[RowFault]:
    """Rows that tell another thing of their image than the row before, or come apart from the image's other rows."""
    num_rows = len(columns["shard"])
    keys = [numbers(columns["image_offset"]), *(_codes(columns[name])[1] for name in ("shard", "dataset", "split_by"))]
    is_first = np.ones(num_rows, np.bool_)
    is_first[1:] = np.any([key[1:] != key[:-1] for key in keys], axis=0)
    for name in _OF_IMAGE:
        if name in columns:
            is_text = not pa.types.is_integer(columns[name].type)
            values = _codes(columns[name])[1] if is_text else numbers(columns[name])
            is_wrong = np.zeros(num_rows, np.bool_)
            is_wrong[1:] = (values[1:] != values[:-1]) & ~is_first[1:]
            yield from _constant(is_wrong, f"another {name} than in the row before", "the same of one image")
    first = np.flatnonzero(is_first)
    order = np.lexsort([key[first] for key in keys])
    same = np.all([key[first][order[1:]] == key[first][order[:-1]] for key in keys], axis=0)
    is_wrong = np.zeros(num_rows, np.bool_)
    is_wrong[first[order[1:][same]]] = True
    yield from _constant(is_wrong, "an image that earlier rows have, too", "rows of one image side by side")


def _find_wrong_sentences(columns: Mapping[str, pa.Array]) -> Iterator[RowFault]:
    lists = columns["sentences"]
    lengths = list_lengths(lists)
    yield from _constant(lengths == 0, "no sentence", "at least one")
    sentences, row_of = lists.flatten(), np.repeat(np.arange(len(lengths)), lengths)
    fields = {field.name for field in sentences.type}
    num_rows = len(lengths)

    def rows(is_wrong: NDArray[np.bool_], found: str, expected: str) -> Iterator[RowFault]:
        of_row = np.zeros(num_rows, np.bool_)
        of_row[row_of[is_wrong]] = True
        return _constant(of_row, found, expected)

    if "sent" in fields:
        is_blank = ~numbers(pc.match_substring_regex(sentences.field("sent"), r"\S"))
        yield from rows(is_blank, "a sentence without text", "text in every sentence")
    if "sent_id" in fields:
        sent_ids = numbers(sentences.field("sent_id"))
        names, partitions = _codes(columns["dataset"])[1], _codes(columns["split_by"])[1]
        again = np.zeros(len(sent_ids), np.bool_)
        again[find_repeated(sent_ids, (names * (partitions.max(initial=0) + 1) + partitions)[row_of])] = True
        yield from rows(again, "a sent_id of another sentence of the split", "each sent_id once")
    if "exists" in fields:
        is_wrong = numbers(sentences.field("exists")) & numbers(columns["no_target"])[row_of]
        yield from rows(is_wrong, "no_target with a sentence that exists", "none that does")
    if "token_ids" in fields:
        token_lists = sentences.field("token_ids")
        token_ids, ends = numbers(token_lists.flatten()), list_ends(token_lists)
        starts = np.append(0, ends[:-1])[: len(ends)]
        is_short = ends - starts < 2
        expected = f"{SOS_ID}, ids below {SOS_ID}, {EOS_ID}"
        yield from rows(is_short, "fewer than two token_ids", expected)
        if not is_short.any():
            is_wrong = (token_ids[starts] != SOS_ID) | (token_ids[ends - 1] != EOS_ID)
            if (token_ids >= VOCAB_SIZE).any():
                is_wrong |= np.maximum.reduceat(token_ids, starts) >= VOCAB_SIZE
            yield from rows(is_wrong, "token_ids that are not those of a sentence", expected)
