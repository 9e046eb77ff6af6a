"""Rows of manifests as flat arrays, manifest by manifest, and those of several as if they were one.

An array of one manifest counts from 0 within it; where it counts entries of another array (`token_start`, say, those of
`tokens`), what came before is added when arrays are put together. A column of strings is two arrays: `NAME_bytes`,
UTF-8 without separators, and `NAME_start`. Masks may be left out, and room for them given: see `hole`.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from refseg.dataset.arrow_arrays import list_ends, numbers, one_array
from refseg.dataset.row_checks import find_repeated
from refseg.errors import DatasetError

STRINGS = ("category", "sent", "file_name")
"""Columns of strings."""
_COUNTED = {
    "row_image": "image_id", "row_start": "ref_id", "mask_span": "mask_counts", "sentence_start": "sent_id",
    "token_start": "tokens", "manifest_start": "ref_id", "manifest_counts_start": "mask_counts",
    **{f"{name}_start": f"{name}_bytes" for name in STRINGS},
}  # fmt: skip
"""Arrays that count entries of others."""
_THREADS = 4  # that read manifests; Parquet and NumPy let go of the interpreter
_READ_AHEAD = 8  # manifests in memory at most

Arrays = dict[str, NDArray[Any]]
"""Flat arrays by name. `ManifestIndex` says what each is."""


class FlatManifest(NamedTuple):
    """One manifest's rows."""

    arrays: Arrays
    """`*_start` arrays are without their leading 0."""
    tars: list[str]
    """What the rows call their tars; `image_shard` counts in here."""


def read_all(read: Callable[[Any], FlatManifest], manifests: Iterable[Any]) -> Iterator[FlatManifest]:
    """Read manifests in order, several at a time but never many ahead."""
    with ThreadPoolExecutor(_THREADS) as threads:
        ahead: deque[Future[FlatManifest]] = deque()
        try:
            for manifest in manifests:
                ahead.append(threads.submit(read, manifest))
                if len(ahead) == _READ_AHEAD:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            for future in ahead:
                future.cancel()


def join(manifests: Iterable[FlatManifest], put: Callable[[str, NDArray[Any]], None]) -> list[str]:
    """Hand on the arrays of all manifests, part after part, as those of one.

    Args:
        manifests: In order.
        put: Is given an array's name and its next part.

    Returns:
        What the rows call their tars; `image_shard` counts in here.
    """
    lengths: dict[str, int] = {}
    tars: dict[str, int] = {}
    for number, manifest in enumerate(manifests):
        before = dict(lengths)
        for name, part in manifest.arrays.items():
            lengths[name] = before.get(name, 0) + len(part)
            if number == 0 and name.endswith("_start"):
                put(name, np.zeros(1, np.int64))
            if is_hole(part):
                pass
            elif name in _COUNTED:
                part = part + before.get(_COUNTED[name], 0)
            elif name == "image_shard":
                part = np.array([tars.setdefault(tar, len(tars)) for tar in manifest.tars], np.int32)[part]
            put(name, part)
    return list(tars)


def join_in_memory(manifests: Iterable[FlatManifest]) -> tuple[Arrays, list[str]]:
    """The arrays of all manifests, and what the rows call their tars."""
    parts: dict[str, list[NDArray[Any]]] = {}
    tars = join(manifests, lambda name, part: parts.setdefault(name, []).append(part))
    return {name: np.concatenate(found) for name, found in parts.items()}, tars


def refuse_repeats(where: str, manifests: Iterable[FlatManifest]) -> Iterator[FlatManifest]:
    """Pass manifests on; refs and sentences that are in two of them are refused at the end.

    Args:
        where: The dataset, for messages.
        manifests: Each without repeats of its own.

    Raises:
        DatasetError: If a ref id occurs twice in a dataset, or a sentence id twice in a split of a dataset.
    """
    ids: dict[str, list[NDArray[np.int64]]] = {name: [] for name in ("ref_id", "dataset", "sent_id", "split")}
    for manifest in manifests:
        arrays = manifest.arrays
        num_sentences = np.diff(arrays["sentence_start"], prepend=0)
        dataset = arrays["row_dataset"].astype(np.int64)
        ids["ref_id"].append(arrays["ref_id"])
        ids["dataset"].append(dataset)
        ids["sent_id"].append(arrays["sent_id"])
        ids["split"].append(np.repeat(dataset << 32 | arrays["row_split"], num_sentences))
        yield manifest
    for what, group, expected in (("ref_id", "dataset", "each once"), ("sent_id", "split", "each once in a split")):
        found = np.concatenate([np.empty(0, np.int64), *ids[what]])
        repeated = find_repeated(found, np.concatenate([np.empty(0, np.int64), *ids[group]]))
        if len(repeated):
            raise DatasetError(
                f"{where}: found {what} {found[repeated[0]]} in two manifests, expected {expected}; `refseg verify` "
                "the dataset, then build it again"
            )


def hole(length: int, kind: type) -> NDArray[Any]:
    """Zeros that are to be filled in later, and take no memory until then."""
    return np.broadcast_to(np.zeros(1, kind), length)


def is_hole(array: NDArray[Any]) -> bool:
    """True of what `hole` gives."""
    return array.strides == (0,) and len(array) > 1


def flatten(table: pa.Table, num_run_lengths: int, *, split: int, datasets: tuple[str, ...]) -> FlatManifest:
    """Make flat arrays of a manifest's rows. A manifest has all rows of its images that are of its split.

    Args:
        table: Its rows, checked; if they are without masks, these become holes.
        num_run_lengths: Of all masks.
        split: Position of their split.
        datasets: Ids that rows may have.
    """
    columns = {name: one_array(table.column(name)) for name in table.column_names}
    sentences = columns["sentences"].flatten()
    token_lists = sentences.field("token_ids")
    shards = columns["shard"]  # a dictionary of few
    row_shard = numbers(shards.indices)

    # Rows of one image are adjacent: a new image starts where the place in the tars changes, or the member of a mix.
    row_dataset = _row_datasets(columns["dataset"], columns["split_by"], datasets)
    offset = numbers(columns["image_offset"])
    is_first = np.ones(table.num_rows, np.bool_)
    is_first[1:] = (
        (offset[1:] != offset[:-1]) | (row_shard[1:] != row_shard[:-1]) | (row_dataset[1:] != row_dataset[:-1])
    )
    first_row = np.flatnonzero(is_first)

    def of_image(name: str) -> NDArray[Any]:
        return numbers(columns[name])[first_row]

    _, hashes = _text(columns["sample_xxh3"].take(pa.array(first_row)))
    sample_xxh3 = np.frombuffer(bytes.fromhex(hashes.tobytes().decode()), ">u8").astype(np.uint64)
    spans, counts = hole(2 * table.num_rows, np.int64), hole(num_run_lengths, np.uint32)
    if "mask" in columns:
        spans, counts = flatten_masks(columns["mask"])
    arrays = {
        "ref_id": numbers(columns["ref_id"]),
        "row_split": np.full(table.num_rows, split, np.int16),
        "row_dataset": row_dataset,
        "row_image": np.cumsum(is_first) - 1,
        "no_target": numbers(columns["no_target"]),
        "mask_span": spans,
        "mask_counts": counts,
        "manifest_start": np.array([table.num_rows]),
        "manifest_counts_start": np.array([num_run_lengths]),
        "sentence_start": list_ends(columns["sentences"]),
        "sent_id": numbers(sentences.field("sent_id")),
        "sentence_exists": numbers(sentences.field("exists")),
        "token_start": list_ends(token_lists),
        "tokens": numbers(token_lists.flatten()),
        "image_id": of_image("image_id"),
        "height": of_image("height"),
        "width": of_image("width"),
        "row_start": np.append(first_row[1:], table.num_rows),
        "image_shard": row_shard[first_row],
        "image_offset": offset[first_row],
        "image_bytes": of_image("image_bytes"),
        "sample_bytes": of_image("sample_bytes"),
        "sample_xxh3": sample_xxh3,
    }
    strings = {
        "category": columns["category"].cast(pa.string()),
        "sent": sentences.field("sent"),
        "file_name": columns["file_name"].take(pa.array(first_row)),
    }
    for name in STRINGS:
        arrays[f"{name}_start"], arrays[f"{name}_bytes"] = _text(strings[name])
    return FlatManifest(arrays, shards.dictionary.to_pylist())


def flatten_masks(masks: pa.StructArray) -> tuple[NDArray[np.int64], NDArray[np.uint32]]:
    """Start and end of each mask's run lengths, in turn, and the run lengths of all."""
    lists = masks.field("counts")
    ends = list_ends(lists)
    spans = np.stack([np.append(0, ends[:-1]), ends], axis=1).reshape(-1)
    return spans, numbers(lists.flatten())


def strings_of(arrays: Arrays, name: str) -> pa.LargeStringArray:
    """A column of strings over its two arrays; nothing is copied."""
    start, data = arrays[f"{name}_start"], arrays[f"{name}_bytes"]
    return pa.LargeStringArray.from_buffers(len(start) - 1, pa.py_buffer(start), pa.py_buffer(data))


def _row_datasets(
    names: pa.DictionaryArray, partitions: pa.DictionaryArray, known: tuple[str, ...]
) -> NDArray[np.int16]:
    """Position of each row's dataset in `known`."""
    num_partitions = len(partitions.dictionary)
    codes, code = np.unique(numbers(names.indices) * num_partitions + numbers(partitions.indices), return_inverse=True)
    ids = [
        f"{names.dictionary[c // num_partitions]}/{partitions.dictionary[c % num_partitions]}" for c in codes.tolist()
    ]
    return np.array([known.index(dataset_id) for dataset_id in ids], np.int16)[code]


def _text(strings: pa.StringArray) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
    """Where each string ends in all strings' bytes, and these bytes."""
    _, offsets, data = strings.buffers()
    places = np.frombuffer(offsets, np.int32)[strings.offset : strings.offset + len(strings) + 1].astype(np.int64)
    text = np.frombuffer(data, np.uint8) if data is not None and data.size else np.empty(0, np.uint8)
    return places[1:] - places[0], text[places[0] : places[-1]]
