"""Opens the index of a split, which is mapped from the dataset's folder, or from this machine's copy of a remote one.

When a machine opens an index for the first time, it is compared with the dataset's hashes and checked. An empty file in
the machine's cache records this. Its name is a hash of the sizes, times and inodes of all files that were compared, so
a file that changes is compared again.
"""

import hashlib
import json
import logging
import mmap
import os
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from refseg.cache_files import cache_folder, make_cache_folder, open_cache_file
from refseg.dataset.built import BuiltDataset
from refseg.dataset.descriptor import IndexEntry, ShardEntry
from refseg.dataset.faults import CHANGED, DamageError, Fault
from refseg.dataset.file_checks import manifest_name, read_as_built
from refseg.dataset.index_checks import find_index_faults
from refseg.dataset.index_file import MASKS, map_arrays
from refseg.dataset.index_rows import map_ahead
from refseg.dataset.packed_runs import unpack_ends
from refseg.dataset.shard_cache import ShardCache, Tar
from refseg.errors import DatasetError
from refseg.storage import Folder, is_remote

logger = logging.getLogger(__name__)

_HASHED_BYTES = 1 << 26
_CHECKS_VERSION = 1
"""Number that is increased when checks are added, so that indexes are checked again."""


class SplitIndex:
    """An open index of a split: its arrays are mapped read-only, and its masks are read one at a time.

    Attributes:
        place: The dataset's folder.
        entry: The descriptor's entry of the file.
        arrays: Arrays by name; `ManifestIndex` describes each.
    """

    def __init__(self, place: Folder, entry: IndexEntry, source: Path | bytes) -> None:
        """Open an index.

        Args:
            place: The dataset's folder.
            entry: The descriptor's entry of the file.
            source: Path of the file, which is mapped, or its bytes.

        Raises:
            DamageError: If the file is not an index.
            OSError: If the file cannot be opened.
        """
        self.place, self.entry, self._source = place, entry, source
        self.facts: tuple[int, int] = (len(source), 0) if isinstance(source, bytes) else (0, 0)
        data: Any = source
        if isinstance(source, Path):
            data, self.facts = _map(source)
        try:
            self.arrays = map_arrays(data)
        except DatasetError as error:
            raise self.fault(str(error).removeprefix("found "), "an index").error(place) from error
        self._data = data
        self._masks = self.arrays[MASKS].data

    def run_ends(self, row: int) -> NDArray[np.int64]:
        """The end of each run of a row's mask: `(runs,)` sums that never decrease; the last is the number of pixels.

        Raises:
            DamageError: If the mask is not the one that was built, or does not have the image's size.
        """
        arrays = self.arrays
        start, end = arrays["mask_start"][row : row + 2].tolist()
        packed = self._masks[start:end]
        if xxhash.xxh3_64_intdigest(packed) != arrays["mask_xxh3"].item(row):
            raise self._mask_fault(row, "another mask", "the one that was built")
        try:
            ends = unpack_ends(packed, arrays["num_runs"].item(row))
        except DatasetError as error:
            raise self._mask_fault(row, str(error).removeprefix("found "), "a mask") from error
        image = arrays["row_image"].item(row)
        if ends.item(-1) != arrays["height"].item(image) * arrays["width"].item(image):
            raise self._mask_fault(row, "a mask of another size", "run lengths of the image's size")
        return ends

    def compare(self) -> None:
        """Compare the hash of all arrays except the masks with the descriptor; a mask is compared when it is read.

        Raises:
            DamageError: If the hashes differ.
        """
        digest, end = xxhash.xxh3_64(), len(self._data) - len(self.arrays[MASKS])
        for start in range(0, end, _HASHED_BYTES):
            digest.update(memoryview(self._data)[start : min(start + _HASHED_BYTES, end)])
            self.release()
        if digest.hexdigest() != self.entry.arrays_xxh3:
            raise self.fault(f"arrays with xxh3 {digest.hexdigest()}", self.entry.arrays_xxh3).error(self.place)

    def release(self) -> None:
        """Release the process's memory of what was read so far; the pages stay in the system's page cache."""
        if isinstance(self._data, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
            self._data.madvise(mmap.MADV_DONTNEED)

    def _mask_fault(self, row: int, found: str, expected: str) -> DamageError:
        return self.fault(found, expected, f"ref {self.arrays['ref_id'][row]}").error(self.place)

    def fault(self, found: str, expected: str, sample: str = "") -> Fault:
        """Return a fault of this file."""
        return Fault(file=self.entry.name, sample=sample, found=found, expected=expected, remedy=CHANGED)

    def __reduce__(self) -> tuple[Any, ...]:
        return _open_again, (self.place, self.entry, self._source, self.facts)


def open_split_index(dataset: BuiltDataset, split: str) -> SplitIndex:
    """Open the index of a split.

    When a machine opens it for the first time, its hash is compared and its arrays are checked. The hashes of the
    split's manifests are compared too, unless the dataset is remote. A remote index is copied to this machine's cache.

    Args:
        dataset: The open dataset.
        split: Name of one of its splits.

    Raises:
        DamageError: If the index or a manifest is not the one that was built, or if the index has content that the
            format forbids.
        DatasetError: If the dataset has no index.
        StorageError: If remote storage refuses access or fails.
    """
    entry = next((index for index in dataset.descriptor.indexes if index.split == split), None)
    if entry is None:
        raise DatasetError(
            f"{dataset.place}: has no index of split {split}, so it is unfinished or damaged; build the dataset again"
        )
    index = _fetch(dataset.place, entry) if is_remote(dataset.place.address) else _open_local(dataset.place, entry)
    mark = _mark(dataset, index)
    if not os.path.lexists(mark):
        _check(dataset, index)
        _remember(mark)
    return index


def _check(dataset: BuiltDataset, index: SplitIndex) -> None:
    entries = dataset.entries_of(index.entry.split)
    with ThreadPoolExecutor(1) as background:
        compared = background.submit(_compare_manifests, dataset, index, entries)
        index.compare()
        for found, expected in find_index_faults(index.arrays, dataset.descriptor, entries, index.release):
            raise index.fault(found, expected).error(dataset.place)
        index.release()
        compared.result()


def _compare_manifests(dataset: BuiltDataset, index: SplitIndex, entries: Sequence[ShardEntry]) -> None:
    """Compare local manifests with the hashes in the index; remote ones are compared when they are read.

    XXH3 is used because it is ten times as fast as SHA-256. A manifest that differs is compared by SHA-256 too, so that
    its error has the same message as in every other reader.
    """
    hashes = index.arrays["manifest_xxh3"]

    def compare(numbered: tuple[int, ShardEntry]) -> None:
        number, entry = numbered
        name = manifest_name(entry)
        if _hash_manifest(dataset.place, name) != hashes.item(number):
            read_as_built(dataset.place, name, entry.parquet_sha256)
            raise index.fault(f"another manifest_xxh3 of {name}", "that of the file").error(dataset.place)

    if not is_remote(dataset.place.address):
        deque(map_ahead(compare, enumerate(entries)), maxlen=0)


def _hash_manifest(place: Folder, name: str) -> int | None:
    """Return the XXH3-64 of a manifest, or None if it cannot be read."""
    try:
        return xxhash.xxh3_64_intdigest(place.read(name))
    except OSError:
        return None


def _open_local(place: Folder, entry: IndexEntry) -> SplitIndex:
    try:
        return SplitIndex(place, entry, Path(place.join(entry.name)))
    except OSError as error:
        reason = f"a file that cannot be read ({error.strerror})"
        raise Fault(file=entry.name, found=reason, expected="its bytes", remedy=CHANGED).error(place) from error


def _fetch(place: Folder, entry: IndexEntry) -> SplitIndex:
    """Open a remote index from this machine's copy of it, or from its bytes in memory if no copy can be kept."""
    remote = Tar(address=place.join(entry.name), num_bytes=entry.num_bytes, sha256=entry.sha256)
    cache = ShardCache.of_this_machine("index")
    if cache is not None and cache.fetch(remote) == "here":
        # The cache removes no file that is in use. The open descriptor protects this one until the map below does so.
        descriptor = cache.open(remote)
        if descriptor is not None:
            try:
                return SplitIndex(place, entry, cache.path(remote))
            finally:
                os.close(descriptor)
    logger.warning(
        "%s: the index is kept in memory, by each process, and read again at each start; give REFSEG_CACHE a folder "
        "with room",
        place.join(entry.name),
    )
    return SplitIndex(place, entry, read_as_built(place, entry.name, entry.sha256))


def _open_again(place: Folder, entry: IndexEntry, source: Path | bytes, facts: tuple[int, int]) -> SplitIndex:
    try:
        index = SplitIndex(place, entry, source)
    except OSError as error:
        raise DatasetError(f"{source!s}: the index was removed while in use ({error}); start the run again") from error
    if index.facts != facts:
        raise DatasetError(f"{source!s}: the index was replaced while in use; start the run again")
    return index


def _map(path: Path) -> tuple[mmap.mmap, tuple[int, int]]:
    """Map a file; return the map with the file's size and inode, by which a file that replaces it is recognised."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        facts = os.fstat(descriptor)
        return mmap.mmap(descriptor, 0, prot=mmap.PROT_READ), (facts.st_size, facts.st_ino)
    except ValueError as error:
        raise OSError(f"{path}: is empty") from error
    finally:
        os.close(descriptor)


def _mark(dataset: BuiltDataset, index: SplitIndex) -> Path:
    """Return the path of the file that records that this index and its manifests were compared as they are now."""
    facts: list[object] = [_CHECKS_VERSION, index.entry.sha256, index.facts, dataset.descriptor.digest]
    if not is_remote(dataset.place.address):
        names = [index.entry.name, *(manifest_name(entry) for entry in dataset.entries_of(index.entry.split))]
        facts += [_file_facts(dataset.place.join(name)) for name in names]
        facts += [entry.parquet_sha256 for entry in dataset.entries_of(index.entry.split)]
    return cache_folder("checked") / hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def _file_facts(path: str) -> Sequence[int]:
    """Return properties of a file that change when the file is written again."""
    facts = Path(path).stat()
    return facts.st_size, facts.st_mtime_ns, facts.st_ino, facts.st_dev


def _remember(mark: Path) -> None:
    """Write the file that records the comparison; if it cannot be written, the next opening compares again."""
    with suppress(OSError):
        make_cache_folder(mark.parent)
        os.close(open_cache_file(mark, os.O_WRONLY | os.O_CREAT))
