"""Checks the rows of a manifest, whole columns at a time, before a reader uses them.

A manifest with the right hash may still be untrusted. These checks ensure the sizes, offsets and run lengths that
readers then use without checking again. Columns that were not read are not checked.
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

_BLOCK = 512  # bytes of a tar's block: a header takes one, and members are padded to a multiple
_HASHES = ("image_xxh3", "sample_xxh3")
_OF_IMAGE = ("image_id", "file_name", "height", "width", "image_bytes", "image_xxh3", "sample_bytes", "sample_xxh3")


class RowFault(NamedTuple):
    """One violation of the format by a row."""

    row: int
    """Position of the row in the manifest."""
    found: str
    expected: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RowRules:
    """The values that the descriptor allows in a manifest's rows.

    Attributes:
        split: Split of all rows.
        datasets: Dataset ids that rows may have.
        tar_bytes: Size in bytes of each tar, by the value of `shard` that refers to it.
    """

    split: str
    datasets: tuple[str, ...]
    tar_bytes: Mapping[str, int]


def find_row_faults(table: pa.Table, rules: RowRules) -> Iterator[RowFault]:
    """Find rows that the format forbids.

    Nulls and impossible image sizes end the search, because the later checks need these values.

    Args:
        table: Rows with the types of `MANIFEST_SCHEMA`. Strings may be dictionary-encoded, and columns may be missing.
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
        f"1 to {MAX_SIDE:,} pixels a side and at most {MAX_PIXELS:,} pixels",
    )
    if is_wrong.any():
        return
    yield from _find_wrong_names(columns, rules)
    yield from _find_unknown_content(columns)
    yield from _find_wrong_locations(columns, rules)
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
    """Return the positions of ids that occur at an earlier position of the same group.

    Example: for ids [7, 8, 7] of one group, the sorted order is [0, 2, 1]. The second 7 follows an equal id, so its
    position 2 is returned. The sort is stable, so the first occurrence is never returned.
    """
    order = np.lexsort((ids, groups))
    again = (ids[order][1:] == ids[order][:-1]) & (groups[order][1:] == groups[order][:-1])
    return np.sort(order[1:][again])


def find_misplaced_samples(
    image_offset: NDArray[np.int64],
    image_bytes: NDArray[np.int64],
    sample_bytes: NDArray[np.int64],
    tar_bytes: NDArray[np.int64],
) -> NDArray[np.bool_]:
    """Return which samples cannot be a header, an image, a header and JSON within their tar.

    All arguments are `(samples,)` and in bytes.
    """
    start = image_offset - _BLOCK  # a sample starts with the header block of its image
    is_wrong = (start < 0) | (start % _BLOCK != 0) | (image_bytes < 1) | (sample_bytes < image_bytes)
    is_wrong |= (sample_bytes - image_bytes < 2 * _BLOCK) | (sample_bytes > tar_bytes)
    return is_wrong | (start > tar_bytes - sample_bytes)


def _of_rows(is_wrong: NDArray[np.bool_], found: Callable[[int], str], expected: str) -> Iterator[RowFault]:
    for row in np.flatnonzero(is_wrong).tolist():
        yield RowFault(row, found(row), expected)


def _constant(is_wrong: NDArray[np.bool_], found: str, expected: str) -> Iterator[RowFault]:
    return _of_rows(is_wrong, lambda _: found, expected)


def _find_nulls(name: str, column: pa.Array) -> Iterator[RowFault]:
    """Find the rows of a column that contain a null at any depth."""
    path = _path_of_null(name, column)
    if path is not None:
        for row, value in enumerate(column.to_pylist()):
            if _holds_none(value):
                yield RowFault(row, f"no value of {path}", "one in every row")


def _path_of_null(path: str, array: pa.Array) -> str | None:
    """Return the path of the first nested column with a null. Return None if there is no null."""
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
    """Return the distinct values of a column of strings, and for each row the position of its value among them."""
    array = array if pa.types.is_dictionary(array.type) else array.dictionary_encode()
    return array.dictionary.to_pylist(), numbers(array.indices)


def _find_wrong_names(columns: Mapping[str, pa.Array], rules: RowRules) -> Iterator[RowFault]:
    """Find unknown splits and datasets, repeated ref ids, and malformed hashes."""
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
    """Find values that the format allows but this release cannot read."""
    if "image_kind" in columns:
        kinds, kind = _codes(columns["image_kind"])
        is_wrong = np.array([name != IMAGE_KIND for name in kinds], np.bool_)[kind]
        yield from _of_rows(is_wrong, lambda row: f"a picture of kind {kinds[kind[row]]!r:.20}", IMAGE_KIND)
    if "ignore" in columns:
        is_wrong = numbers(columns["ignore"].is_valid())
        yield from _constant(is_wrong, "a mask of pixels to ignore", "none, because this release would count them")


def _find_wrong_hashes(name: str, column: pa.Array) -> Iterator[RowFault]:
    is_hash = numbers(pc.match_substring_regex(column.cast(pa.string()), "^[0-9a-f]{16}$"))
    yield from _of_rows(~is_hash, lambda row: f"{name} {column[row].as_py()!r:.40}", "16 hexadecimal digits")


def _find_wrong_locations(columns: Mapping[str, pa.Array], rules: RowRules) -> Iterator[RowFault]:
    """Find samples that are not within their tars."""
    tars, tar = _codes(columns["shard"])
    is_unknown = np.array([name not in rules.tar_bytes for name in tars], np.bool_)[tar]
    if is_unknown.any():
        expected = " or ".join(sorted(rules.tar_bytes)[:3]) or "none, because there is no tar"
        yield from _of_rows(is_unknown, lambda row: f"shard {tars[tar[row]]!r:.80}", expected)
    tar_bytes = np.array([rules.tar_bytes.get(name, 0) for name in tars], np.int64)[tar]
    offset, image, sample = (numbers(columns[name]) for name in ("image_offset", "image_bytes", "sample_bytes"))
    yield from _of_rows(
        find_misplaced_samples(offset, image, sample, tar_bytes) & ~is_unknown,
        lambda row: f"an image of {image[row]} bytes at {offset[row]} in a sample of {sample[row]} bytes",
        "a sample of header, image, header and JSON within its tar",
    )


def _find_split_images(columns: Mapping[str, pa.Array]) -> Iterator[RowFault]:
    """Find rows that contradict the previous row of the same image, or are not adjacent to the image's other rows.

    A new image starts where offset, tar or dataset change. Example: for the offsets [a, a, b, a] of one tar, the rows
    0, 2 and 3 are first rows. Sorted by offset, row 3 follows row 0 with the same offset, so row 3 is reported.
    """
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
            yield from _constant(
                is_wrong, f"another {name} than in the row before", "the same value in all rows of an image"
            )
    first = np.flatnonzero(is_first)
    order = np.lexsort([key[first] for key in keys])
    same = np.all([key[first][order[1:]] == key[first][order[:-1]] for key in keys], axis=0)
    is_wrong = np.zeros(num_rows, np.bool_)
    is_wrong[first[order[1:][same]]] = True
    yield from _constant(is_wrong, "an image that earlier rows also have", "adjacent rows for each image")


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
        yield from rows(again, "the sent_id of another sentence of the split", "each sent_id once")
    if "exists" in fields:
        is_wrong = numbers(sentences.field("exists")) & numbers(columns["no_target"])[row_of]
        yield from rows(is_wrong, "no_target with a sentence that exists", "no such sentence")
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
