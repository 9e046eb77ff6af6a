"""Checks the arrays of an index once on each machine; readers then use them without checks.

An index with the right hash may still come from an untrusted writer. Only arrays that pass have the positions, sizes
and offsets that readers rely on. `row_checks` checks the rows of manifests by the same rules, and `refseg verify`
compares the two.
"""

from collections.abc import Callable, Iterator
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from refseg.dataset.descriptor import Descriptor, ShardEntry
from refseg.dataset.file_checks import tar_name
from refseg.dataset.index_file import split_tars
from refseg.dataset.index_rows import COUNTED, STRINGS, Arrays
from refseg.dataset.manifest_reader import dataset_ids
from refseg.dataset.row_checks import find_misplaced_samples
from refseg.dataset.schema import MAX_PIXELS, MAX_SIDE
from refseg.tokenizer import EOS_ID, SOS_ID, VOCAB_SIZE

_LEAST = dict.fromkeys(("row_start", "sentence_start", "mask_start", "sent_start"), 1) | {"token_start": 2}
"""Least lengths of lists: an image has at least one row, a row one sentence, and a sentence the two tokens SOS and
EOS."""
_PART = 1 << 18
"""Number of images, rows or sentences that are checked together."""


class IndexFault(NamedTuple):
    """One violation of the format in an index."""

    found: str
    expected: str


def find_index_faults(
    arrays: Arrays,
    descriptor: Descriptor,
    entries: tuple[ShardEntry, ...],
    release: Callable[[], None] = lambda: None,
) -> Iterator[IndexFault]:
    """Check the arrays of an index. Faults after the first one may be consequences of it.

    Args:
        arrays: Arrays of a split's index.
        descriptor: Descriptor of the dataset.
        entries: The shards of the split.
        release: Function that is called after each part of an array, to release the memory of what was checked.

    Yields:
        Faults. There are none if readers may use the index.
    """
    yield from _find_wrong_lengths(arrays, entries)
    yield from _find_wrong_starts(arrays, release)
    yield from _find_wrong_images(arrays, descriptor, entries)
    yield from _find_wrong_rows(arrays, len(dataset_ids(descriptor)), release)
    yield from _find_wrong_tokens(arrays, release)
    yield from _find_wrong_sentences(arrays, release)
    for name in STRINGS:
        text = strings_of(arrays, name)
        try:
            for part in _parts(len(text), release):
                text[part].validate(full=True)
        except pa.ArrowInvalid:
            yield IndexFault(f"{name} that is not UTF-8", "text")


def strings_of(arrays: Arrays, name: str) -> pa.LargeStringArray:
    """Return a column of strings that shares the memory of its two arrays."""
    start, data = arrays[f"{name}_start"], arrays[f"{name}_bytes"]
    return pa.LargeStringArray.from_buffers(len(start) - 1, pa.py_buffer(start), pa.py_buffer(data))


def _find_wrong_lengths(arrays: Arrays, entries: tuple[ShardEntry, ...]) -> Iterator[IndexFault]:
    rows, sentences = sum(entry.num_refs for entry in entries), sum(entry.num_sentences for entry in entries)
    images = len(arrays["image_id"])
    of_images = ("height", "width", "image_shard", "image_offset", "image_bytes", "sample_bytes", "sample_xxh3")
    for length, names in (
        (rows, ("ref_id", "source_rank", "row_image", "num_runs", "row_dataset", "no_target", "mask_xxh3")),
        (rows + 1, ("sentence_start", "category_start", "mask_start")),
        (sentences, ("sent_id", "sentence_exists")),
        (sentences + 1, ("token_start", "sent_start")),
        (images, of_images),
        (images + 1, ("row_start", "file_name_start")),
        (len(entries), ("manifest_xxh3",)),
        (len(entries) + 1, ("manifest_start",)),
    ):
        for name in names:
            if len(arrays[name]) != length:
                yield IndexFault(f"{len(arrays[name])} values of {name}", f"{length} as the descriptor counts")
    of_manifests = np.cumsum([0, *(entry.num_refs for entry in entries)])
    if not np.array_equal(arrays["manifest_start"], of_manifests):
        yield IndexFault("other numbers of rows in manifests", "those in the descriptor")


def _find_wrong_starts(arrays: Arrays, release: Callable[[], None]) -> Iterator[IndexFault]:
    """Find lists that are out of order, or reach beyond the end of the array that they have positions in."""
    for name, counted in chain(COUNTED.items(), [("tar_start", "tar_bytes")]):
        end = len(arrays[counted])
        if name != "row_image" and not _is_in_order(arrays[name], end, _LEAST.get(name, 0), release):
            yield IndexFault(f"{name} that is not in order", f"positions from 0 to {end} in {counted}")
    row_start, row_image = arrays["row_start"], arrays["row_image"]
    for images in _parts(len(row_start) - 1, release):
        starts = row_start[images.start : images.stop + 1]
        expected = np.repeat(np.arange(images.start, images.stop), np.diff(starts))
        if not np.array_equal(row_image[starts[0] : starts[-1]], expected):
            yield IndexFault("another row_image", "the image whose rows begin at row_start")


def _is_in_order(starts: NDArray[np.int64], end: int, least: int, release: Callable[[], None]) -> bool:
    """Return True if lists of at least `least` values follow each other without a gap from 0 to `end`."""
    if not len(starts) or starts[0] != 0 or starts[-1] != end:
        return False
    for lists in _parts(len(starts) - 1, release):
        first, last = starts[lists], starts[lists.start + 1 : lists.stop + 1]
        # Positions are compared before they are subtracted: the difference of damaged ones may overflow to a number
        # that looks like a length.
        if (last < first).any() or (least and (last - first < least).any()):
            return False
    return True


def _find_wrong_images(arrays: Arrays, descriptor: Descriptor, entries: tuple[ShardEntry, ...]) -> Iterator[IndexFault]:
    height, width = arrays["height"].astype(np.int64), arrays["width"].astype(np.int64)
    is_wrong = (np.minimum(height, width) < 1) | (np.maximum(height, width) > MAX_SIDE) | (height * width > MAX_PIXELS)
    yield from _first(
        is_wrong,
        lambda image: f"size {height[image]} x {width[image]} (height x width)",
        f"1 to {MAX_SIDE:,} pixels a side and {MAX_PIXELS:,} at most",
    )
    known = {tar_name(entry): entry.tar_bytes for entry in entries if entry.num_samples}
    known |= {f"{pool.name}/{tar.name}": tar.num_bytes for pool in descriptor.image_pools for tar in pool.tars}
    try:
        tars = split_tars(arrays)
    except UnicodeDecodeError:
        yield IndexFault("names of tars that are not UTF-8", "names of tars")
        return
    for tar in tars:
        if tar not in known:
            yield IndexFault(f"shard {tar!r:.80}", " or ".join(sorted(known)[:3]) or "none, as there is no tar")
    shard = arrays["image_shard"]
    yield from _first((shard < 0) | (shard >= len(tars)), lambda image: f"tar number {shard[image]}", "one of its tars")
    if not len(tars):
        return
    tar_bytes = np.array([known.get(tar, 0) for tar in tars], np.int64)[np.clip(shard, 0, len(tars) - 1)]
    offset, image_bytes, sample_bytes = (arrays[name] for name in ("image_offset", "image_bytes", "sample_bytes"))
    yield from _first(
        find_misplaced_samples(offset, image_bytes, sample_bytes, tar_bytes),
        lambda image: (
            f"an image of {image_bytes[image]} bytes at {offset[image]} in a sample of {sample_bytes[image]} bytes"
        ),
        "a sample of header, image, header and JSON within its tar",
    )


def _find_wrong_rows(arrays: Arrays, num_datasets: int, release: Callable[[], None]) -> Iterator[IndexFault]:
    ref_id, dataset = arrays["ref_id"], arrays["row_dataset"]
    pixels = arrays["height"].astype(np.int64) * arrays["width"]
    for rows in _parts(len(ref_id), release):
        unknown = (dataset[rows] < 0) | (dataset[rows] >= num_datasets)
        yield from _first_of(unknown, "ref", ref_id[rows], "with an unknown dataset", "a dataset of the descriptor")
        num_runs = arrays["num_runs"][rows]
        too_many = (num_runs < 1) | (num_runs > pixels[arrays["row_image"][rows]] + 1)
        found, expected = "with another number of run lengths", "from one to those of its pixels"
        yield from _first_of(too_many, "ref", ref_id[rows], found, expected)
        contradiction = (num_runs > 1) == arrays["no_target"][rows].view(np.bool_)
        found, expected = "with no_target that its mask contradicts", "a target with pixels, or no_target and none"
        yield from _first_of(contradiction, "ref", ref_id[rows], found, expected)
    yield from _find_repeated(ref_id, dataset, "ref_id", "each once", release)


def _find_wrong_tokens(arrays: Arrays, release: Callable[[], None]) -> Iterator[IndexFault]:
    sent_id, token_start = arrays["sent_id"], arrays["token_start"]
    for sentences in _parts(len(sent_id), release):
        starts = token_start[sentences.start : sentences.stop + 1]
        tokens, starts = arrays["tokens"][starts[0] : starts[-1]], starts - starts[0]
        is_wrong = (tokens[starts[:-1]] != SOS_ID) | (tokens[starts[1:] - 1] != EOS_ID)
        if (tokens >= VOCAB_SIZE).any():
            is_wrong |= np.maximum.reduceat(tokens, starts[:-1]) >= VOCAB_SIZE
        found, expected = "with token_ids that are not those of a sentence", f"{SOS_ID}, ids below {SOS_ID}, {EOS_ID}"
        yield from _first_of(is_wrong, "sentence", sent_id[sentences], found, expected)


def _find_wrong_sentences(arrays: Arrays, release: Callable[[], None]) -> Iterator[IndexFault]:
    sent_id, sentence_start = arrays["sent_id"], arrays["sentence_start"]
    for rows in _parts(len(sentence_start) - 1, release):
        no_target = arrays["no_target"][rows]
        if no_target.any():
            starts = sentence_start[rows.start : rows.stop + 1]
            is_wrong = arrays["sentence_exists"][starts[0] : starts[-1]] & np.repeat(no_target, np.diff(starts))
            found = "that exists in a ref with no_target"
            yield from _first_of(is_wrong, "sentence", sent_id[starts[0] : starts[-1]], found, "none that does")
    dataset = arrays["row_dataset"]
    if dataset.any():
        dataset = np.repeat(dataset, np.diff(sentence_start))
    yield from _find_repeated(sent_id, dataset, "sent_id", "each once in a split", release)


def _find_repeated(
    ids: NDArray[np.int64], dataset: NDArray[Any], what: str, expected: str, release: Callable[[], None]
) -> Iterator[IndexFault]:
    """Find ids that a dataset has more than once.

    The ids of each dataset are sorted, after which equal ones are adjacent. Sorting plain numbers dataset by dataset is
    faster than sorting pairs of dataset and id.

    Args:
        ids: The ids.
        dataset: Position of each id's dataset; if all are 0, the array may have any length.
        what: Name of the ids, for the message.
        expected: The rule, for the message.
        release: Function that is called after each part.
    """
    num_datasets = int(dataset.max(initial=0)) + 1
    for position in range(num_datasets):
        of_one = np.empty_like(ids) if num_datasets == 1 else ids[dataset == position]
        if num_datasets == 1:
            for part in _parts(len(ids), release):
                of_one[part] = ids[part]
        of_one.sort()
        for part in _parts(len(of_one) - 1):
            again = of_one[part] == of_one[part.start + 1 : part.stop + 1]
            if again.any():
                yield IndexFault(f"{what} {of_one[part][again.argmax()]} more than once", expected)


def _parts(length: int, release: Callable[[], None] = lambda: None) -> Iterator[slice]:
    """Divide `length` values into short parts, whose temporary arrays fit in the processor's cache.

    `release` is called after each part.
    """
    for start in range(0, length, _PART):
        yield slice(start, min(start + _PART, length))
        release()


def _first(is_wrong: NDArray[np.bool_], found: Callable[[int], str], expected: str) -> Iterator[IndexFault]:
    if is_wrong.any():
        yield IndexFault(found(int(is_wrong.argmax())), expected)


def _first_of(
    is_wrong: NDArray[np.bool_], what: str, ids: NDArray[np.int64], found: str, expected: str
) -> Iterator[IndexFault]:
    return _first(is_wrong, lambda position: f"{what} {ids[position]} {found}", expected)
