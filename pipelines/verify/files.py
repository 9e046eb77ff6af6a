"""Which files there are, here and in image pools, and whether their sizes are the descriptor's; the rejects."""

import hashlib
from collections import Counter
from collections.abc import Iterator

import pyarrow as pa

from pipelines.parquet import read_parquet
from pipelines.rejects import REJECTS_SCHEMA
from pipelines.verify.faults import REBUILD, Fault
from refseg.dataset.descriptor import DESCRIPTOR_NAME, REJECTS_NAME, Descriptor, ImagePool
from refseg.dataset.image_pools import pool_address
from refseg.errors import DatasetError, StorageError
from refseg.storage import Folder, open_folder
from refseg.wording import counted


def check_files(folder: Folder, descriptor: Descriptor) -> Iterator[Fault]:
    """Every file that must be there, with its size, and no other tar or Parquet file."""
    expected = {}
    for entry in descriptor.shards:
        if entry.num_samples:
            expected[f"{entry.name}.tar"] = entry.tar_bytes
        expected[f"{entry.name}.parquet"] = entry.parquet_bytes
    found = folder.list(descriptor.file_names)
    for name, num_bytes in expected.items():
        yield from _compare_size(name, found.get(name), num_bytes, REBUILD)
    if descriptor.num_rejects and REJECTS_NAME not in found:
        yield Fault(file=REJECTS_NAME, found="no such file", expected=counted(descriptor.num_rejects, "reject"))
    known = {*expected, *([REJECTS_NAME] if descriptor.num_rejects else [])}
    for name in sorted(found):
        if name.endswith((".tar", ".parquet")) and name not in known:
            yield Fault(
                file=name,
                found="a file that the descriptor does not name",
                expected="only the dataset's own shards",
                remedy="remove it: a reader that takes all tars would read its samples twice",
            )
    for pool in descriptor.image_pools:
        try:
            sizes = find_pool(folder, pool).list([tar.name for tar in pool.tars])
        except DatasetError as error:
            wrong, _, remedy = str(error).removeprefix(f"{folder}: ").rpartition("; ")
            own_host = "image pools on the dataset's own host"
            yield Fault(file=DESCRIPTOR_NAME, found=wrong, expected=own_host, remedy=remedy)
            continue
        for tar in pool.tars:
            yield from _compare_size(f"{pool.name}/{tar.name}", sizes.get(tar.name), tar.num_bytes, pool_remedy(pool))


def find_pool(folder: Folder, pool: ImagePool) -> Folder:
    """The folder of an image pool of a dataset in `folder`.

    Raises:
        DatasetError: If it is on another host than the dataset, and the user did not allow that.
    """
    return open_folder(pool_address(pool, folder.address))


def pool_remedy(pool: ImagePool) -> str:
    """What to do about a tar of a pool that is not what it was."""
    return (
        f"put {pool.dataset} back at {pool.path} as it was built with digest {pool.digest:.12}, "
        "or build this dataset again"
    )


def read_whole(
    folder: str, name: str, sha256: str, faults: list[Fault], *, file: str | None = None, remedy: str = REBUILD
) -> tuple[bytes | None, str]:
    """Read a file and compare its hash; what is wrong is added to `faults`.

    Args:
        folder: Path or URL.
        name: Of the file.
        sha256: What its hash must be.
        faults: Added to; a missing file is not told here.
        file: What the fault calls the file; None: its name.
        remedy: What the fault says to do.

    Returns:
        Its bytes and their SHA-256; None and nothing if there is nothing to look at.

    Raises:
        StorageError: If remote storage fails: that says nothing of the file.
    """
    try:
        data = open_folder(folder).read(name)
    except FileNotFoundError:
        return None, ""
    except StorageError:
        raise
    except OSError as error:
        reason = f"a file that cannot be read ({error.strerror})"
        faults.append(Fault(file=file or name, found=reason, expected="its bytes", remedy=remedy))
        return None, ""
    found = hashlib.sha256(data).hexdigest()
    if found != sha256:
        as_built = f"{sha256:.12} as built"
        faults.append(Fault(file=file or name, found=f"sha256 {found:.12}", expected=as_built, remedy=remedy))
    return data, found


def _compare_size(name: str, found: int | None, expected: int, remedy: str) -> Iterator[Fault]:
    if found is None:
        yield Fault(file=name, found="no such file", expected=f"{expected} bytes", remedy=remedy)
    elif found != expected:
        yield Fault(file=name, found=f"{found} bytes", expected=f"{expected} bytes", remedy=remedy)


def read_rejects(folder: Folder, descriptor: Descriptor) -> tuple[list[Fault], dict[str, int] | None]:
    """Check `rejects.parquet`, and count its refs by split: None if it cannot be read."""
    if not descriptor.num_rejects:
        return [], {}
    try:
        data = folder.read(REJECTS_NAME)
    except FileNotFoundError:
        return [], None  # told with the files

    def fault(found: str, expected: str = counted(descriptor.num_rejects, "reject")) -> Fault:
        return Fault(file=REJECTS_NAME, found=found, expected=expected)

    faults = []
    if (sha256 := hashlib.sha256(data).hexdigest()) != descriptor.rejects_sha256:
        faults.append(fault(f"sha256 {sha256:.12}", f"{descriptor.rejects_sha256:.12} as in {DESCRIPTOR_NAME}"))
    try:
        table = read_parquet(data)
    except (OSError, pa.ArrowException):
        return [*faults, fault("a file that is not Parquet")], None
    if not table.schema.equals(REJECTS_SCHEMA):
        return [*faults, fault("other columns")], None
    if table.num_rows != descriptor.num_rejects:
        faults.append(fault(counted(table.num_rows, "row")))
    return faults, dict(Counter(split for split in table.column("split").to_pylist() if split is not None))
