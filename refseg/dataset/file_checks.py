"""Compares the files of a dataset and of its image pools with the names, sizes and hashes in the descriptor."""

import hashlib
from collections.abc import Collection, Iterable, Iterator, Mapping

from refseg.dataset.descriptor import DESCRIPTOR_NAME, REJECTS_NAME, Descriptor, ImagePool, PoolTar, ShardEntry
from refseg.dataset.faults import CHANGED, Fault
from refseg.dataset.image_pools import pool_remedy
from refseg.errors import StorageError
from refseg.storage import Folder


def manifest_name(entry: ShardEntry) -> str:
    """Return the file name of a shard's manifest."""
    return f"{entry.name}.parquet"


def tar_name(entry: ShardEntry) -> str:
    """Return the file name of a shard's tar."""
    return f"{entry.name}.tar"


def find_file_faults(
    sizes: Mapping[str, int], descriptor: Descriptor, entries: Collection[ShardEntry], *, with_tars: bool = True
) -> Iterator[Fault]:
    """Compare the files of a folder with those that the descriptor names.

    Args:
        sizes: Sizes in bytes of the files in the folder, by name.
        descriptor: Descriptor of the dataset.
        entries: The shards whose files must exist.
        with_tars: If False, only the manifests must exist.
    """
    for entry in entries:
        if entry.num_samples and with_tars:
            yield from _compare_size(tar_name(entry), sizes, entry.tar_bytes)
        yield from _compare_size(manifest_name(entry), sizes, entry.parquet_bytes)
    splits = {entry.split for entry in entries}
    for index in descriptor.indexes:
        if index.split in splits:
            yield from _compare_size(index.name, sizes, index.num_bytes)
    known = {REJECTS_NAME, *(name(entry) for entry in descriptor.shards for name in (tar_name, manifest_name))}
    for name in sorted(sizes):
        if name.endswith((".tar", ".parquet")) and name not in known:
            yield unknown_file(name)


def find_pool_faults(sizes: Mapping[str, int], pool: ImagePool, tars: Iterable[PoolTar]) -> Iterator[Fault]:
    """Compare the tars of an image pool with those that this dataset was built with.

    Args:
        sizes: Sizes in bytes of the files in the pool's folder, by name.
        pool: The pool.
        tars: The tars of the pool that must exist.
    """
    for tar in tars:
        yield from _compare_size(f"{pool.name}/{tar.name}", sizes, tar.num_bytes, pool_remedy(pool))


def read_whole(
    folder: Folder, name: str, sha256: str, *, file: str = "", remedy: str = CHANGED
) -> tuple[bytes | None, list[Fault]]:
    """Read a file and compare its hash.

    Args:
        folder: The folder that holds the file.
        name: Name of the file.
        sha256: The expected SHA-256.
        file: Name of the file in a fault. If empty, `name` is used.
        remedy: The remedy in a fault.

    Returns:
        The bytes (None if the file cannot be read), and the faults that were found.

    Raises:
        FileNotFoundError: If the file does not exist.
        StorageError: If remote storage fails. The file itself may be undamaged.
    """

    def fault(found: str, expected: str) -> Fault:
        return Fault(file=file or name, found=found, expected=expected, remedy=remedy)

    try:
        data = folder.read(name)
    except (FileNotFoundError, StorageError):
        raise
    except OSError as error:
        return None, [fault(f"a file that cannot be read ({error.strerror})", "its bytes")]
    found = hashlib.sha256(data).hexdigest()
    return data, [] if found == sha256 else [fault(f"sha256 {found}", sha256)]


def read_as_built(folder: Folder, name: str, sha256: str) -> bytes:
    """Read a file and require that it is the one that was built.

    Raises:
        DamageError: If it is missing, cannot be read or has another hash.
        StorageError: If remote storage fails.
    """
    try:
        data, faults = read_whole(folder, name, sha256)
    except FileNotFoundError as error:
        raise missing(name, "its bytes").error(folder) from error
    for fault in faults:
        raise fault.error(folder)
    assert data is not None, "a file that cannot be read is a fault"
    return data


def unknown_file(file: str) -> Fault:
    """Return the fault for a tar or Parquet file that does not belong to the dataset."""
    return Fault(
        file=file,
        found=f"a file that {DESCRIPTOR_NAME} does not name",
        expected="only the dataset's own shards",
        remedy="remove it: a reader that takes all tars would read its samples twice",
    )


def missing(file: str, expected: str, remedy: str = CHANGED) -> Fault:
    """Return the fault for a missing file."""
    return Fault(file=file, found="no such file", expected=expected, remedy=remedy)


def _compare_size(file: str, sizes: Mapping[str, int], expected: int, remedy: str = CHANGED) -> Iterator[Fault]:
    found = sizes.get(file.rpartition("/")[2])
    if found is None:
        yield missing(file, f"{expected} bytes", remedy)
    elif found != expected:
        yield Fault(file=file, found=f"{found} bytes", expected=f"{expected} bytes", remedy=remedy)
