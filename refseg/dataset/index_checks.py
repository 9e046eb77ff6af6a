"""What the arrays of an index must be: checked once on a machine, before a reader uses them without looking again.

An index with the right hash may still be untrusted. Only arrays that pass have the positions, sizes and offsets that
readers rely on. A manifest says the same of its rows (`row_checks`), and `refseg verify` compares the two.
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
"""Least lengths of lists: an image has a row, a row a sentence, a sentence SOS and EOS."""


class IndexFault(NamedTuple):
    """One thing in which an index is not as it must be."""

    found: str
    expected: str


def find_index_faults(
    arrays: Arrays,
    descriptor: Descriptor,
    entries: tuple[ShardEntry, ...],
    release: Callable[[], None] = lambda: None,
) -> Iterator[IndexFault]:
    """Look for arrays that no reader may use; the first fault may make the others meaningless.

    Args:
        arrays: Arrays of a split's index.
        descriptor: Descriptor of the dataset.
        entries: The shards of the split.
        release: Called between the checks, to let go of the memory of arrays that were looked at.
    """
    checks: tuple[Callable[[], Iterator[IndexFault]], ...] = (
        lambda: _find_wrong_lengths(arrays, entries),
        lambda: _find_wrong_starts(arrays, release),
        lambda: _find_wrong_images(arrays, descriptor, entries),
        lambda: _find_wrong_rows(arrays, len(dataset_ids(descriptor))),
        lambda: _find_wrong_tokens(arrays),
        lambda: _find_wrong_sentences(arrays),
    )
    for check in checks:
        yield from check()
        release()
    for name in STRINGS:
        release()
        text = strings_of(arrays, name)
        try:
            text.validate(full=True)
        except pa.ArrowInvalid:
            yield IndexFault(f"{name} that is not UTF-8", "text")


def strings_of(arrays: Arrays, name: str) -> pa.LargeStringArray:
    """A column of strings over its two arrays; nothing is copied."""
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
    """Lists that reach out of what they are lists of."""
    for name, counted in chain(COUNTED.items(), [("tar_start", "tar_bytes")]):
        if name == "row_image":
            continue
        starts, end = arrays[name], len(arrays[counted])
        is_whole = len(starts) > 0 and starts[0] == 0 and starts[-1] == end
        if not is_whole or (np.diff(starts) < _LEAST.get(name, 0)).any():
            yield IndexFault(f"{name} that is not in order", f"positions from 0 to {end} in {counted}")
        release()
    row_start = arrays["row_start"]
    if not np.array_equal(arrays["row_image"], np.repeat(np.arange(len(row_start) - 1), np.diff(row_start))):
        yield IndexFault("another row_image", "the image whose rows begin at row_start")


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


def _find_wrong_rows(arrays: Arrays, num_datasets: int) -> Iterator[IndexFault]:
    ref_id, dataset, num_runs = arrays["ref_id"], arrays["row_dataset"], arrays["num_runs"]
    no_target = arrays["no_target"]
    pixels = (arrays["height"].astype(np.int64) * arrays["width"])[arrays["row_image"]]

    def of_row(found: str) -> Callable[[int], str]:
        return lambda row: f"ref {ref_id[row]} with {found}"

    unknown = (dataset < 0) | (dataset >= num_datasets)
    yield from _first(unknown, of_row("an unknown dataset"), "a dataset of the descriptor")
    too_many = (num_runs < 1) | (num_runs > pixels + 1)
    yield from _first(too_many, of_row("another number of run lengths"), "from one to those of its pixels")
    contradiction = (num_runs > 1) == no_target.view(np.bool_)
    yield from _first(
        contradiction, of_row("no_target that its mask contradicts"), "a target with pixels, or no_target and none"
    )
    yield from _find_repeated(ref_id, dataset, num_datasets, "ref_id", "each once")


def _find_wrong_tokens(arrays: Arrays) -> Iterator[IndexFault]:
    tokens, start = arrays["tokens"], arrays["token_start"]
    is_wrong = (tokens[start[:-1]] != SOS_ID) | (tokens[start[1:] - 1] != EOS_ID)
    if (tokens >= VOCAB_SIZE).any():
        is_wrong |= np.maximum.reduceat(tokens, start[:-1]) >= VOCAB_SIZE
    sent_id = arrays["sent_id"]
    yield from _first(
        is_wrong,
        lambda sentence: f"sentence {sent_id[sentence]} with token_ids that are not those of a sentence",
        f"{SOS_ID}, ids below {SOS_ID}, {EOS_ID}",
    )


def _find_wrong_sentences(arrays: Arrays) -> Iterator[IndexFault]:
    sent_id = arrays["sent_id"]
    num_sentences = np.diff(arrays["sentence_start"])
    is_wrong = arrays["sentence_exists"] & np.repeat(arrays["no_target"], num_sentences)
    yield from _first(
        is_wrong,
        lambda sentence: f"sentence {sent_id[sentence]} that exists in a ref with no_target",
        "none that does",
    )
    dataset = arrays["row_dataset"]
    of_sentence = np.repeat(dataset, num_sentences)
    num_datasets = int(dataset.max(initial=0)) + 1
    yield from _find_repeated(sent_id, of_sentence, num_datasets, "sent_id", "each once in a split")


def _find_repeated(
    ids: NDArray[np.int64], dataset: NDArray[Any], num_datasets: int, what: str, expected: str
) -> Iterator[IndexFault]:
    """An id that a dataset has twice; one dataset after the other, since sorting plain numbers is fast."""
    for position in range(num_datasets):
        of_one = np.sort(ids if num_datasets == 1 else ids[dataset == position])
        again = of_one[1:][of_one[1:] == of_one[:-1]]
        if len(again):
            yield IndexFault(f"{what} {again[0]} more than once", expected)


def _first(is_wrong: NDArray[np.bool_], found: Callable[[int], str], expected: str) -> Iterator[IndexFault]:
    if is_wrong.any():
        yield IndexFault(found(int(is_wrong.argmax())), expected)
