"""Manifests as the descriptor names them: every reader gets them here, by hash, with rows that the format allows.

Hashes show damage and edits; `row_checks` what a writer did wrong, or wanted to.
"""

import hashlib
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from refseg.dataset.arrow_arrays import one_array
from refseg.dataset.descriptor import DESCRIPTOR_NAME, REJECTS_NAME, Descriptor, ShardEntry
from refseg.dataset.row_checks import RowFault, RowRules, find_row_faults
from refseg.dataset.schema import MANIFEST_SCHEMA
from refseg.errors import DatasetError, StorageError
from refseg.storage import Folder

REMEDY = "the dataset was changed after it was built; `refseg verify` it, then copy or build it again"
_ROW_REMEDY = "such rows cannot be used: `refseg verify` the dataset, then build it again"
_CHECKED = (
    "dataset", "split_by", "split", "ref_id", "image_id", "file_name", "height", "width", "no_target",
    *(f"sentences.list.element.{name}" for name in ("sent_id", "sent", "token_ids", "exists")),
    "shard", "image_offset", "image_bytes", "sample_bytes", "sample_xxh3", "source_rank", "image_kind", "ignore",
)  # fmt: skip
"""Columns that are always read and checked; `mask` and `annotations` where they are asked for."""


def dataset_ids(descriptor: Descriptor) -> tuple[str, ...]:
    """Ids that rows may have: the members of a mix, or the dataset itself."""
    return tuple(member.dataset for member in descriptor.mix) or (descriptor.dataset,)


def row_rules(descriptor: Descriptor, entry: ShardEntry) -> RowRules:
    """What the rows of a shard must be."""
    own = {f"{entry.name}.tar": entry.tar_bytes} if entry.num_samples else {}
    pools = {f"{pool.name}/{tar.name}": tar.num_bytes for pool in descriptor.image_pools for tar in pool.tars}
    return RowRules(split=entry.split, datasets=dataset_ids(descriptor), tar_bytes={**own, **pools})


def manifest_name(entry: ShardEntry) -> str:
    """File name of a shard's manifest."""
    return f"{entry.name}.parquet"


def refuse_unknown_files(place: Folder, sizes: dict[str, int], descriptor: Descriptor) -> None:
    """Detect duplicated shards, which a reader of all tars would read twice.

    Args:
        place: The dataset's folder.
        sizes: What is in it: names and bytes.
        descriptor: Descriptor of the dataset.

    Raises:
        DatasetError: If the folder holds a tar or Parquet file that is not the dataset's.
    """
    known = {REJECTS_NAME, *(f"{entry.name}.{kind}" for entry in descriptor.shards for kind in ("tar", "parquet"))}
    for name in sorted(sizes):
        if name.endswith((".tar", ".parquet")) and name not in known:
            raise DatasetError(
                f"{place.join(name)}: found a file that {DESCRIPTOR_NAME} does not name, expected only the dataset's "
                "own shards; remove it"
            )


def check_files(place: Folder, sizes: dict[str, int], entry: ShardEntry) -> None:
    """Check that a shard's manifest and tar are there and have the descriptor's sizes.

    Args:
        place: The dataset's folder.
        sizes: What is in it: names and bytes.
        entry: The shard.

    Raises:
        DatasetError: If one of the two is missing or of another size.
    """
    if entry.num_samples:
        check_size(place, sizes, f"{entry.name}.tar", entry.tar_bytes)
    check_size(place, sizes, manifest_name(entry), entry.parquet_bytes)


def check_size(place: Folder, sizes: dict[str, int], name: str, expected: int, *, remedy: str = REMEDY) -> None:
    """Check that a file exists and has the expected size.

    Raises:
        DatasetError: If it is missing or of another size.
    """
    found = sizes.get(name)
    if found is None:
        raise DatasetError(f"{place.join(name)}: there is no such file, expected {expected} bytes; {remedy}")
    if found != expected:
        raise DatasetError(f"{place.join(name)}: found {found} bytes, expected {expected}; {remedy}")


def read_bytes(place: Folder, entry: ShardEntry) -> bytes:
    """Read a manifest's file and check its hash.

    Hashing tars too would read the whole dataset: each sample is checked when read.

    Raises:
        DatasetError: If it is missing, or another than was built.
        StorageError: If storage refuses or fails.
    """
    return _read_hashed(place, manifest_name(entry), entry.parquet_sha256)


def _read_hashed(place: Folder, name: str, expected: str) -> bytes:
    try:
        data = place.read(name)
    except FileNotFoundError as error:
        raise DatasetError(f"{place.join(name)}: there is no such file; {REMEDY}") from error
    except StorageError:
        raise
    except OSError as error:
        raise DatasetError(f"{place.join(name)}: cannot be read ({error.strerror}); {REMEDY}") from error
    if (found := hashlib.sha256(data).hexdigest()) != expected:
        raise DatasetError(f"{place.join(name)}: found sha256 {found}, expected {expected}; {REMEDY}")
    return data


def read_columns(place: Folder, entry: ShardEntry, descriptor: Descriptor, columns: Sequence[str]) -> pa.Table:
    """Read some columns of a manifest's rows, all of which are checked.

    Args:
        place: The dataset's folder.
        entry: The shard.
        descriptor: Descriptor of the dataset.
        columns: Names, of nested ones with their path.

    Raises:
        DatasetError: If the manifest is missing, another than was built, or has rows that the format forbids.
        StorageError: If storage refuses or fails.
    """
    file = open_manifest(place, entry)
    table = read_checked(place.join(manifest_name(entry)), file, entry, descriptor, columns)
    return table.select(list(dict.fromkeys(name.partition(".")[0] for name in columns)))


def open_manifest(place: Folder, entry: ShardEntry, *, dictionaries: Sequence[str] = ()) -> pq.ParquetFile:
    """Open a manifest whose file is checked, but not its rows; errors as of `read_columns`."""
    path = place.join(manifest_name(entry))
    file = parse_manifest(path, read_bytes(place, entry), dictionaries=dictionaries)
    if file.metadata.num_rows != entry.num_refs:
        raise DatasetError(f"{path}: found {file.metadata.num_rows} rows, expected {entry.num_refs}; {_ROW_REMEDY}")
    return file


def parse_manifest(where: str, data: bytes, *, dictionaries: Sequence[str] = ()) -> pq.ParquetFile:
    """Look into a manifest's bytes.

    Args:
        where: The manifest, for messages.
        data: Content of the file.
        dictionaries: Columns of strings to be read as dictionaries.

    Raises:
        DatasetError: If they are not Parquet, or have other columns than a manifest.
    """
    try:
        schema = pq.read_schema(pa.BufferReader(data))
        file = pq.ParquetFile(pa.BufferReader(data), read_dictionary=list(dictionaries) or None)
    except (OSError, pa.ArrowException) as error:
        reason = str(error).splitlines()[0]
        raise DatasetError(f"{where}: cannot be read as Parquet ({reason}); {_ROW_REMEDY}") from error
    if not schema.equals(MANIFEST_SCHEMA):
        raise DatasetError(f"{where}: has other columns than a manifest; {_ROW_REMEDY}")
    return file


def read_checked(
    where: str, file: pq.ParquetFile, entry: ShardEntry, descriptor: Descriptor, columns: Sequence[str]
) -> pa.Table:
    """Read columns of an open manifest with those that checks need; arguments and errors as of `read_columns`."""
    # Annotations are checked whole, so they are read whole, also where only their ids are asked for.
    wanted = ("annotations" if name.startswith("annotations.") else name for name in columns)
    table = read_rows(where, file, list(dict.fromkeys([*_CHECKED, *wanted])))
    for fault in find_row_faults(table, row_rules(descriptor, entry)):
        raise row_error(where, table, fault)
    num_sentences = len(one_array(table.column("sentences")).flatten())
    if num_sentences != entry.num_sentences:
        raise DatasetError(f"{where}: found {num_sentences} sentences, expected {entry.num_sentences}; {_ROW_REMEDY}")
    return table


def read_rows(where: str, file: pq.ParquetFile, columns: Sequence[str] | None = None) -> pa.Table:
    """Read columns of an open manifest without a look at their values.

    Without Arrow's threads: manifests are read several at a time, and a command that ends while they wind down can be
    aborted by them.

    Raises:
        DatasetError: If the content is damaged.
    """
    try:
        table = file.read(columns=None if columns is None else list(columns), use_threads=False)
        table.validate(full=True)
    except (OSError, ValueError, pa.ArrowException) as error:
        reason = str(error).splitlines()[0]
        raise DatasetError(f"{where}: cannot be read as Parquet ({reason}); {_ROW_REMEDY}") from error
    return table


def read_rejects(place: Folder, descriptor: Descriptor) -> pa.Table:
    """The rows of `rejects.parquet`; none where the dataset has none.

    Raises:
        DatasetError: If the file is missing or another than was built.
        StorageError: If storage refuses or fails.
    """
    if not descriptor.num_rejects:
        return pa.table({"split": pa.array([], pa.string()), "reason": pa.array([], pa.string())})
    path = place.join(REJECTS_NAME)
    data = _read_hashed(place, REJECTS_NAME, descriptor.rejects_sha256)
    try:
        table = pq.ParquetFile(pa.BufferReader(data)).read(use_threads=False)
    except (OSError, pa.ArrowException) as error:
        reason = str(error).splitlines()[0]
        raise DatasetError(f"{path}: cannot be read as Parquet ({reason}); {REMEDY}") from error
    if not {"split", "reason"} <= set(table.column_names):
        raise DatasetError(f"{path}: has other columns than rejects; {REMEDY}")
    return table


def row_error(where: str, table: pa.Table, fault: RowFault) -> DatasetError:
    """The error for a row that the format forbids."""
    ref = f"ref {table.column('ref_id')[fault.row].as_py()}"
    return DatasetError(f"{where}: {ref}: found {fault.found}, expected {fault.expected}; {_ROW_REMEDY}")
