"""Indexes as files of this machine: flat arrays that all processes map instead of holding them.

An index is a folder named by what it is of. It is written aside under an exclusive `flock` and renamed; who maps it
holds a shared `flock` on it, and what is in use is not removed. The kernel drops the locks of a process that dies.
"""

import fcntl
import hashlib
import json
import logging
import mmap
import os
import shutil
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import xxhash
from numpy.typing import NDArray

from refseg.cache_files import make_cache_folder, open_cache_file, read_cache_file
from refseg.data.flat_arrays import Arrays, FlatManifest, is_hole, join
from refseg.dataset.descriptor import ShardEntry
from refseg.dataset.file_checks import manifest_name, read_as_built
from refseg.dataset.index_rows import manifest_facts
from refseg.errors import DatasetError
from refseg.json_text import parse_json
from refseg.storage import Folder, cache_folder

logger = logging.getLogger(__name__)

INDEX_VERSION = 3
"""Raised when the arrays change, so that those of another release are not read."""
MASK_CHECK = "mask_check"
"""Array of an index whose masks are filled in later: `(manifests,)` uint64, XXH3-64 of each manifest's masks, 0 until
they are there."""
_FACTS = "index.json"
_CHECKED = "checked.json"
_HASHING_THREADS = 4
_PART_OF_DISK = 0.5  # of what is free or taken by indexes


class CacheUnusableError(Exception):
    """An index cannot be kept on this machine: no space, no permission, or a file system without `flock`."""


class StoredIndex:
    """The files of one index, kept from being removed as long as this lives; pickled as their folder alone.

    Each array has its XXH3-64, which `check` compares. Masks that are filled in later have one for each manifest.

    Attributes:
        folder: Of the files.
        tars: What rows call their tars.
        has_holes: True if masks are filled in when they are first asked for.
    """

    def __init__(self, folder: Path) -> None:
        """Open what is there.

        Raises:
            OSError: If it is not there, or not whole.
        """
        self.folder = folder
        descriptor = open_cache_file(folder / _FACTS, os.O_RDONLY)
        weakref.finalize(self, os.close, descriptor)
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        facts = _unseal(read_cache_file(folder / _FACTS))
        self.tars: list[str] = facts["tars"]
        self._arrays: dict[str, tuple[str, int, int | None]] = facts["arrays"]
        for name, (kind, length, _) in self._arrays.items():
            if (folder / name).lstat().st_size != length * np.dtype(kind).itemsize:
                raise OSError(f"{folder / name}: expected {length} values of type {kind}")
        self.has_holes = MASK_CHECK in self._arrays
        self._mapped: Arrays = {}
        self._sound: set[int] = set()  # manifests whose masks this process has compared with their hash
        self._cannot_fill = False
        with suppress(OSError):  # of another user, or read-only: it is removed a little earlier
            os.utime(folder / _FACTS)  # used just now

    def arrays(self) -> Arrays:
        """The arrays, mapped and read-only."""
        if not self._mapped:
            self._mapped = {name: _map(self.folder / name, *facts[:2]) for name, facts in self._arrays.items()}
        return self._mapped

    def check(self) -> None:
        """Compare all arrays with their hashes: a bit that changed on the disk would be other words, or another image.

        Raises:
            OSError: If one is damaged.
        """

        def check_one(name: str) -> None:
            expected = self._arrays[name][2]
            if expected is not None and xxhash.xxh3_64_intdigest(self.arrays()[name].data) != expected:
                raise OSError(f"{self.folder / name}: damaged")

        self.arrays()
        with ThreadPoolExecutor(_HASHING_THREADS) as threads:
            list(threads.map(check_one, self._arrays))

    def has_masks(self, manifest: int) -> bool:
        """True if the masks of a manifest are there, as they were filled in; each process compares them once."""
        if manifest in self._sound:
            return True
        arrays = self.arrays()
        row, end_row = arrays["manifest_start"][manifest : manifest + 2].tolist()
        count, end_count = arrays["manifest_counts_start"][manifest : manifest + 2].tolist()
        found = _hash_masks(arrays["mask_span"][2 * row : 2 * end_row], arrays["mask_counts"][count:end_count])
        if found != int(arrays[MASK_CHECK][manifest]):
            return False
        self._sound.add(manifest)
        return True

    def fill_masks(self, manifest: int, spans: NDArray[np.int64], counts: NDArray[np.uint32]) -> None:
        """Write the masks of a manifest, for all processes; their hash is written last.

        Processes may do so at the same time: they write the same bytes.

        Args:
            manifest: Its number.
            spans: `(2 * rows,)` where each mask starts and ends in `counts`, in turn.
            counts: Run lengths of all its masks.
        """
        arrays = self.arrays()
        first_row = int(arrays["manifest_start"][manifest])
        first_count = int(arrays["manifest_counts_start"][manifest])
        spans = spans + first_count
        self._fill("mask_counts", first_count, counts)
        self._fill("mask_span", 2 * first_row, spans)
        self._fill(MASK_CHECK, manifest, np.array([_hash_masks(spans, counts)], np.uint64))

    def _fill(self, name: str, position: int, values: NDArray[Any]) -> None:
        """Write into a hole of an array, for all processes: they see it in what they have mapped.

        Where that cannot be done a warning says so, once.
        """
        try:
            with os.fdopen(open_cache_file(self.folder / name, os.O_RDWR), "r+b") as file:
                file.seek(position * values.itemsize)
                file.write(np.ascontiguousarray(values, self._arrays[name][0]).data)
        except OSError as error:
            if not self._cannot_fill:
                logger.warning(
                    "%s: masks cannot be kept here (%s), so each is read from its manifest whenever it is needed, "
                    "which takes as long as its image; give REFSEG_CACHE a folder with room",
                    self.folder,
                    error,
                )
            self._cannot_fill = True

    def is_checked(self, address: str, facts: list[list[object]]) -> bool:
        """True if the manifests at `address` were compared with their hashes when they were `facts`."""
        try:
            return bool(parse_json(read_cache_file(self.folder / _CHECKED)).get(address) == _digest(facts))
        except (OSError, ValueError, AttributeError):
            return False

    def remember_checked(self, address: str, facts: list[list[object]]) -> None:
        """Say that the manifests at `address` were compared with their hashes; lost if it cannot be written."""
        path = self.folder / _CHECKED
        temporary = path.with_suffix(f".{os.getpid()}")
        with suppress(OSError):
            known = {}
            with suppress(OSError, ValueError):
                known = parse_json(read_cache_file(path))
            with suppress(FileNotFoundError):  # left by a process that was killed
                temporary.unlink()
            with os.fdopen(open_cache_file(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL), "w") as file:
                json.dump({**(known if isinstance(known, dict) else {}), address: _digest(facts)}, file)
            temporary.replace(path)

    def __reduce__(self) -> tuple[Any, ...]:
        return _open_again, (self.folder,)


def _open_again(folder: Path) -> StoredIndex:
    try:
        return StoredIndex(folder)
    except OSError as error:
        raise DatasetError(f"{folder}: the index was removed while in use ({error}); start the run again") from error


class IndexCache:
    """A folder of indexes of bounded size, from which the least recently used go first, and none in use."""

    def __init__(self, folder: Path, limit_bytes: int | None = None) -> None:
        """Use a folder, made when needed.

        Args:
            folder: On a disk of this machine.
            limit_bytes: What it holds at most; None: half of the disk's free space and its own.
        """
        self.folder = folder
        self._limit_bytes = limit_bytes

    @classmethod
    def of_this_machine(cls) -> "IndexCache":
        """The folder `index` in that of `REFSEG_CACHE`, or in `~/.cache/refseg`."""
        return cls(cache_folder("index"))

    def open(self, key: str) -> StoredIndex | None:
        """The index of this name; None if it is not here, was damaged, or lies where others could have put it."""
        try:
            if self.folder.exists():
                make_cache_folder(self.folder)
            if (self.folder / key).is_symlink():
                raise OSError("is a link, which a cache does not follow")
            stored = StoredIndex(self.folder / key)
            stored.check()
            return stored
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            logger.warning("%s: cannot be used (%s), will be written anew", self.folder / key, error)
            return None

    def write(self, key: str, read: Callable[[], Iterable[FlatManifest]]) -> tuple[StoredIndex, bool]:
        """Keep an index; of several processes one writes, and the others wait for it.

        Args:
            key: Its name.
            read: Gives the manifests; called by the process that writes.

        Returns:
            The index, and True if this process wrote it.

        Raises:
            CacheUnusableError: If this machine cannot keep it.
        """
        with self._lock(f"{key}.lock"):
            stored = self.open(key)  # written by another while this one waited
            if stored is not None:
                return stored, False
            part = self.folder / f"{key}.part"
            try:
                with _unusable(self.folder):
                    _remove(part)  # left by a process that was killed
                    part.mkdir(0o700)
                self._fill(part, read)
                with _unusable(self.folder), self._lock("lock"):
                    self._make_room(part)
                    _remove(self.folder / key)  # damaged
                    part.rename(self.folder / key)
                    return StoredIndex(self.folder / key), True
            finally:
                shutil.rmtree(part, ignore_errors=True)

    def _fill(self, part: Path, read: Callable[[], Iterable[FlatManifest]]) -> None:
        files: dict[str, BinaryIO] = {}
        arrays: dict[str, tuple[str, int]] = {}
        hashes: dict[str, xxhash.xxh3_64] = {}

        def put(name: str, values: NDArray[Any]) -> None:
            with _unusable(self.folder):
                if name not in files:
                    files[name] = (part / name).open("xb")
                    arrays[name] = (values.dtype.str, 0)
                    hashes[name] = xxhash.xxh3_64()
                kind, length = arrays[name]
                if is_hole(values):
                    files[name].seek(len(values) * np.dtype(kind).itemsize, os.SEEK_CUR)
                    hashes.pop(name, None)
                else:
                    data = np.ascontiguousarray(values, np.dtype(kind)).data
                    files[name].write(data)
                    if name in hashes:
                        hashes[name].update(data)
                arrays[name] = (kind, length + len(values))

        try:
            tars = join(read(), put)
            with _unusable(self.folder):
                # Not brought to the disk, which would take longer than all else: after a power cut a file is too short,
                # which is noticed when it is opened.
                for file in files.values():
                    file.truncate()  # which ends a file that ends in a hole, and writes what is in memory
        finally:
            for file in files.values():
                with suppress(OSError):  # of a full disk, which has been told
                    file.close()
        with _unusable(self.folder):
            if "mask_counts" in arrays and "mask_counts" not in hashes:
                arrays[MASK_CHECK] = ("<u8", arrays["manifest_start"][1] - 1)
                with (part / MASK_CHECK).open("xb") as file:
                    file.truncate(8 * arrays[MASK_CHECK][1])
            sealed = {
                name: (kind, length, hashes[name].intdigest() if name in hashes else None)
                for name, (kind, length) in arrays.items()
            }
            (part / _FACTS).write_text(_seal({"tars": tars, "arrays": sealed}), encoding="utf-8")

    def _make_room(self, new: Path) -> None:
        """Remove what was used least recently until the new index is within the limit."""
        folders = (path for path in self.folder.iterdir() if path != new and not path.is_symlink())
        held = sorted(
            (path for path in folders if (path / _FACTS).is_file()), key=lambda path: (path / _FACTS).stat().st_mtime
        )
        sizes = {path: _num_bytes(path) for path in (*held, new)}
        total = sum(sizes.values())
        limit = self._limit_bytes
        if limit is None:
            taken = sum(_num_bytes_taken(path) for path in (*held, new))  # less, where there are holes
            limit = int(_PART_OF_DISK * (shutil.disk_usage(self.folder).free + taken))
        for path in held:
            if total > limit and _remove_unused(path):
                total -= sizes[path]
        if total > limit:
            raise CacheUnusableError(
                f"{self.folder}: found an index of {sizes[new]:,} bytes, expected {limit:,} at most"
            )

    @contextmanager
    def _lock(self, name: str) -> Iterator[None]:
        """One process at a time."""
        with _unusable(self.folder):
            make_cache_folder(self.folder)
            descriptor = open_cache_file(self.folder / name, os.O_RDWR | os.O_CREAT)
        try:
            with _unusable(self.folder):
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            # Closing alone would leave the lock with a child that was forked meanwhile.
            fcntl.flock(descriptor, fcntl.LOCK_UN)
            os.close(descriptor)


def open_stored(
    place: Folder, entries: Sequence[ShardEntry], digest: str, read: Callable[[], Iterator[FlatManifest]]
) -> StoredIndex | None:
    """The index's files on this machine, written now if they are not there; None if they cannot be.

    Args:
        place: The dataset's folder.
        entries: Its shards of some splits.
        digest: Of the dataset and these splits.
        read: Gives their manifests.

    Raises:
        DatasetError: If a manifest is another than was built.
        StorageError: If remote storage refuses or fails.
    """
    cache = IndexCache.of_this_machine()
    key = hashlib.sha256(json.dumps([INDEX_VERSION, digest]).encode()).hexdigest()[:32]
    facts = manifest_facts(place, entries)
    stored = cache.open(key)
    if stored is None:
        begin = time.monotonic()
        logger.info("%s: opened for the first time here, %d manifests are read", place, len(entries))
        try:
            stored, is_written = cache.write(key, read)
        except CacheUnusableError as error:
            logger.warning(
                "the index is kept in memory, by each process, and made again at each start (%s); give REFSEG_CACHE "
                "a folder with room",
                error,
            )
            return None
        logger.info("%s: read in %.1f s, kept in %s", place, time.monotonic() - begin, stored.folder)
        if is_written:
            stored.remember_checked(place.address, facts)
    if not stored.is_checked(place.address, facts):
        # Another copy of the dataset, or files that were touched: what is mapped is right, but what lies there?
        with ThreadPoolExecutor() as threads:
            list(
                threads.map(
                    lambda entry: len(read_as_built(place, manifest_name(entry), entry.parquet_sha256)), entries
                )
            )
        stored.remember_checked(place.address, facts)
    return stored


@contextmanager
def _unusable(folder: Path) -> Iterator[None]:
    """Take failures of the cache's file system, and only those, for what they are."""
    try:
        yield
    except OSError as error:
        raise CacheUnusableError(f"{folder}: {error}") from error


def _map(path: Path, kind: str, length: int) -> NDArray[Any]:
    if length == 0:
        return np.empty(0, kind)
    descriptor = open_cache_file(path, os.O_RDONLY)
    try:
        # The plain way to a plain array: `np.memmap` is a class of its own that every slice pays for.
        return np.frombuffer(mmap.mmap(descriptor, 0, prot=mmap.PROT_READ), kind)
    finally:
        os.close(descriptor)


def _hash_masks(spans: NDArray[Any], counts: NDArray[Any]) -> int:
    """XXH3-64 of a manifest's masks, never 0: that says that they are not there."""
    found = xxhash.xxh3_64(np.ascontiguousarray(spans, np.int64).data)
    found.update(np.ascontiguousarray(counts, np.uint32).data)
    return found.intdigest() or 1


def _seal(facts: dict[str, Any]) -> str:
    """Facts as JSON, with the hash of that JSON before it."""
    text = json.dumps(facts)
    return f"{xxhash.xxh3_64_hexdigest(text.encode())}\n{text}"


def _unseal(data: bytes) -> dict[str, Any]:
    """What `_seal` was given.

    Raises:
        ValueError: If it is damaged.
    """
    found, _, text = data.partition(b"\n")
    if found != xxhash.xxh3_64_hexdigest(text).encode():
        raise ValueError("its facts are damaged")
    facts: dict[str, Any] = parse_json(text)
    return facts


def _remove(path: Path) -> None:
    """Remove a folder, or a link that stands in its place, if there is one."""
    if path.is_symlink():
        path.unlink()
    else:
        shutil.rmtree(path, ignore_errors=True)


def _digest(facts: list[list[object]]) -> str:
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def _num_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


def _num_bytes_taken(folder: Path) -> int:
    return sum(path.stat().st_blocks * 512 for path in folder.iterdir())


def _remove_unused(folder: Path) -> bool:
    """Remove an index unless somebody maps it."""
    with os.fdopen(open_cache_file(folder / _FACTS, os.O_RDONLY), "rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        (folder / _FACTS).unlink()  # first: without it nobody takes the rest for an index
        shutil.rmtree(folder)
        return True
