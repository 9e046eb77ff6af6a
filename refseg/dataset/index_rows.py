"""Converts the rows of manifests to flat arrays, which `index_file` writes to the index of a split."""

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple, TypeVar

import numpy as np
import pyarrow as pa
import xxhash
from numpy.typing import NDArray

from refseg.dataset.arrow_arrays import list_ends, list_lengths, numbers, one_array
from refseg.dataset.descriptor import Descriptor, ShardEntry
from refseg.dataset.file_checks import manifest_name, read_as_built
from refseg.dataset.manifest_reader import dataset_ids, parse_manifest, read_checked, row_rules
from refseg.dataset.packed_runs import pack_runs
from refseg.storage import Folder

S = TypeVar("S")
T = TypeVar("T")

STRINGS = ("category", "sent", "file_name")
"""Columns of strings. `NAME_bytes` is the UTF-8 text of all rows without separators; `NAME_start` has their offsets."""
COUNTED = {
    "row_image": "image_id", "row_start": "ref_id", "sentence_start": "sent_id", "token_start": "tokens",
    "mask_start": "mask_bytes", "manifest_start": "ref_id", **{f"{name}_start": f"{name}_bytes" for name in STRINGS},
}  # fmt: skip
"""Arrays that hold positions, with the array that each has positions in.

A `*_start` array has one entry more than there are lists: list `i` is between its entries `i` and `i + 1`. Three refs
with 2, 1 and 3 sentences have the `sentence_start` 0, 2, 3, 6.
"""

_REPEATING = ("dataset", "split_by", "split", "shard", "category")
"""Columns with few different values, which are read as dictionaries."""
_THREADS = 4
"""Threads that read manifests. Parquet and NumPy release the interpreter lock, so they run at the same time."""
_READ_AHEAD = 8
"""Most manifests in memory at a time."""

Arrays = dict[str, NDArray[Any]]
"""Flat arrays by name; `ManifestIndex` describes each."""


class FlatRows(NamedTuple):
    """The rows of one manifest."""

    arrays: Arrays
    tars: list[str]
    """Names of the rows' tars; `image_shard` has positions in this list."""


def read_flat(place: Folder, descriptor: Descriptor, entries: Iterable[ShardEntry]) -> Iterator[FlatRows]:
    """Read manifests in order, in several threads and with at most `_READ_AHEAD` in memory.

    Args:
        place: The dataset's folder.
        descriptor: Descriptor of the dataset.
        entries: The shards.

    Raises:
        DamageError: If a manifest is missing, is not the one that was built, or has rows that the format forbids.
        StorageError: If the storage refuses access or fails.
    """
    rules = row_rules(descriptor)

    def read(entry: ShardEntry) -> FlatRows:
        name = manifest_name(entry)
        data = read_as_built(place, name, entry.parquet_sha256)
        file = parse_manifest(place, name, data, dictionaries=_REPEATING)
        table = read_checked(place, entry, rules(entry), ["category", "mask"], file=file)
        return flatten(table, dataset_ids(descriptor), xxhash.xxh3_64_intdigest(data))

    return map_ahead(read, entries)


def map_ahead(work: Callable[[S], T], items: Iterable[S]) -> Iterator[T]:
    """Apply `work` to items in several threads. Yield results in order, with at most `_READ_AHEAD` in memory."""
    with ThreadPoolExecutor(_THREADS) as threads:
        ahead: deque[Future[T]] = deque()
        try:
            for item in items:
                ahead.append(threads.submit(work, item))
                if len(ahead) == _READ_AHEAD:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            for future in ahead:
                future.cancel()


def flatten(table: pa.Table, datasets: tuple[str, ...], manifest_xxh3: int) -> FlatRows:
    """Convert the checked rows of a manifest to flat arrays.

    Args:
        table: The rows, with the columns `category` and `mask`.
        datasets: Dataset ids that rows may have.
        manifest_xxh3: XXH3-64 of the manifest's file.
    """
    columns = {name: one_array(table.column(name)) for name in table.column_names}
    sentences = columns["sentences"].flatten()
    token_lists = sentences.field("token_ids")
    shards = _dictionary(columns["shard"])
    row_shard = numbers(shards.indices)

    # The rows of one image are adjacent, so a new image begins at each row whose tar, offset in it or dataset differs
    # from those of the row before. For the offsets 512, 512, 9216 of one tar, `is_first` is True, False, True, and
    # `row_image` is 0, 0, 1.
    row_dataset = _row_datasets(_dictionary(columns["dataset"]), _dictionary(columns["split_by"]), datasets)
    offset = numbers(columns["image_offset"])
    is_first = np.ones(table.num_rows, np.bool_)
    is_first[1:] = (
        (offset[1:] != offset[:-1]) | (row_shard[1:] != row_shard[:-1]) | (row_dataset[1:] != row_dataset[:-1])
    )
    first_row = np.flatnonzero(is_first)

    def of_image(name: str) -> NDArray[Any]:
        return numbers(columns[name])[first_row]

    _, hashes = _text(columns["sample_xxh3"].take(pa.array(first_row)))
    mask_start, mask_bytes, mask_xxh3 = _pack_masks(columns["mask"])
    arrays = {
        "ref_id": numbers(columns["ref_id"]),
        "source_rank": numbers(columns["source_rank"]),
        "row_dataset": row_dataset,
        "row_image": np.cumsum(is_first) - 1,
        "no_target": numbers(columns["no_target"]),
        "num_runs": list_lengths(columns["mask"].field("counts")).astype(np.int32),
        "mask_start": mask_start,
        "mask_bytes": mask_bytes,
        "manifest_start": np.array([0, table.num_rows]),
        "manifest_xxh3": np.array([manifest_xxh3], np.uint64),
        "mask_xxh3": mask_xxh3,
        "sentence_start": _starts(list_ends(columns["sentences"])),
        "sent_id": numbers(sentences.field("sent_id")),
        "sentence_exists": numbers(sentences.field("exists")),
        "token_start": _starts(list_ends(token_lists)),
        "tokens": numbers(token_lists.flatten()),
        "image_id": of_image("image_id"),
        "height": of_image("height"),
        "width": of_image("width"),
        "row_start": np.append(first_row, table.num_rows),
        "image_shard": row_shard[first_row],
        "image_offset": offset[first_row],
        "image_bytes": of_image("image_bytes"),
        "sample_bytes": of_image("sample_bytes"),
        "sample_xxh3": np.frombuffer(bytes.fromhex(hashes.tobytes().decode()), ">u8").astype(np.uint64),
    }
    strings = {
        "category": columns["category"].cast(pa.string()),
        "sent": sentences.field("sent"),
        "file_name": columns["file_name"].take(pa.array(first_row)),
    }
    for name in STRINGS:
        arrays[f"{name}_start"], arrays[f"{name}_bytes"] = _text(strings[name])
    return FlatRows(arrays, shards.dictionary.to_pylist())


def continued(arrays: Arrays, lengths: Mapping[str, int]) -> Iterator[tuple[str, NDArray[Any]]]:
    """Shift the positions in arrays, so that the arrays can be appended to others.

    The `sentence_start` 0, 2, 3 of two refs, appended to the 0, 4 of one ref, becomes 6, 7: the number of sentences so
    far is added, and the leading 0 is dropped.

    Args:
        arrays: Arrays to be appended. `image_shard` must already be converted, because it has positions in a list of
            names.
        lengths: Lengths of the arrays so far, by name; empty at the beginning.
    """
    for name, values in arrays.items():
        if name in COUNTED and lengths:
            values = values[1:] if name.endswith("_start") else values
            values = values + lengths[COUNTED[name]]
        yield name, values


def _dictionary(strings: pa.Array) -> pa.DictionaryArray:
    return strings if pa.types.is_dictionary(strings.type) else strings.dictionary_encode()


def _starts(ends: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.append(0, ends)


def _row_datasets(
    names: pa.DictionaryArray, partitions: pa.DictionaryArray, known: tuple[str, ...]
) -> NDArray[np.int16]:
    """Return the position of each row's dataset in `known`."""
    num_partitions = len(partitions.dictionary)
    codes, code = np.unique(numbers(names.indices) * num_partitions + numbers(partitions.indices), return_inverse=True)
    ids = [
        f"{names.dictionary[c // num_partitions]}/{partitions.dictionary[c % num_partitions]}" for c in codes.tolist()
    ]
    return np.array([known.index(dataset_id) for dataset_id in ids], np.int16)[code]


def _pack_masks(masks: pa.StructArray) -> tuple[NDArray[np.int64], NDArray[np.uint8], NDArray[np.uint64]]:
    """Pack the run lengths of masks. Return the offset of each mask, the packed bytes, and the hash of each mask."""
    lists = masks.field("counts")
    starts, counts = _starts(list_ends(lists)).tolist(), numbers(lists.flatten())
    packed = [pack_runs(counts[start:end]) for start, end in itertools.pairwise(starts)]
    ends = np.cumsum([len(one) for one in packed], dtype=np.int64)
    hashes = np.array([xxhash.xxh3_64_intdigest(one) for one in packed], np.uint64)
    return _starts(ends), np.frombuffer(b"".join(packed), np.uint8), hashes


def _text(strings: pa.StringArray) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
    """Return the offset of each string in the joined bytes of all strings, and these bytes."""
    _, offsets, data = strings.buffers()
    starts = np.frombuffer(offsets, np.int32)[strings.offset : strings.offset + len(strings) + 1].astype(np.int64)
    text = np.frombuffer(data, np.uint8) if data is not None and data.size else np.empty(0, np.uint8)
    return starts - starts[0], text[starts[0] : starts[-1]]
