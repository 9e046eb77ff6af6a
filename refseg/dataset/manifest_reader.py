"""Reads manifests: their hashes are compared with the descriptor, and their rows with what the format allows.

A hash detects damage and edits. `row_checks` detects rows that another writer wrote wrongly or with ill intent.
"""

from collections import ChainMap
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

import pyarrow as pa
import pyarrow.parquet as pq

from refseg.dataset.arrow_arrays import one_array
from refseg.dataset.descriptor import Descriptor, ShardEntry
from refseg.dataset.faults import DamageError, Fault
from refseg.dataset.file_checks import manifest_name, read_as_built, read_whole, tar_name
from refseg.dataset.row_checks import RowRules, find_row_faults
from refseg.dataset.schema import MANIFEST_SCHEMA
from refseg.storage import Folder

_CHECKED = (
    "dataset", "split_by", "split", "ref_id", "image_id", "file_name", "height", "width", "no_target",
    *(f"sentences.list.element.{name}" for name in ("sent_id", "sent", "token_ids", "exists")),
    "shard", "image_offset", "image_bytes", "sample_bytes", "sample_xxh3", "source_rank", "image_kind", "ignore",
)  # fmt: skip
"""Columns that are always read and checked; `mask` and `annotations` are so only on request."""


def dataset_ids(descriptor: Descriptor) -> tuple[str, ...]:
    """Ids that rows may have. They are the members of a mix, or the dataset itself."""
    return tuple(member.dataset for member in descriptor.mix) or (descriptor.dataset,)


def row_rules(descriptor: Descriptor) -> Callable[[ShardEntry], RowRules]:
    """Return a function from a shard to the rules of its rows; the tars of image pools are listed once for all."""
    pools = {f"{pool.name}/{tar.name}": tar.num_bytes for pool in descriptor.image_pools for tar in pool.tars}
    return partial(_rules_of_shard, dataset_ids(descriptor), pools)


def _rules_of_shard(datasets: tuple[str, ...], pools: dict[str, int], entry: ShardEntry) -> RowRules:
    own = {tar_name(entry): entry.tar_bytes} if entry.num_samples else {}
    tar_bytes: Mapping[str, int] = ChainMap(own, pools)
    return RowRules(split=entry.split, datasets=datasets, tar_bytes=tar_bytes)


def read_checked(
    place: Folder,
    entry: ShardEntry,
    rules: RowRules,
    columns: Sequence[str],
    *,
    file: pq.ParquetFile | None = None,
) -> pa.Table:
    """Read columns of a manifest together with the columns that checks need. All rows are checked.

    Args:
        place: The dataset's folder.
        entry: The shard.
        rules: The shard's rules, from `row_rules`.
        columns: Names of columns. A nested column is named by its path.
        file: The manifest from `open_manifest`. If None, the manifest is opened.

    Raises:
        DamageError: If the manifest is missing, is not the one that was built, or has rows that the format forbids.
        StorageError: If the storage refuses access or fails.
    """
    # Annotations are checked as a whole, so all their fields are read even if only the ids are requested.
    wanted = ("annotations" if name.startswith("annotations.") else name for name in columns)
    file = open_manifest(place, entry) if file is None else file
    table = read_table(place, manifest_name(entry), file, list(dict.fromkeys([*_CHECKED, *wanted])))
    for fault in find_manifest_faults(table, entry, rules):
        raise fault.error(place)
    return table


def read_unchecked(place: Folder, entry: ShardEntry, columns: Sequence[str]) -> pa.Table:
    """Read columns of a manifest that this process wrote or checked before: its hash is compared, its rows are not.

    The arguments and errors are the same as for `read_checked`.
    """
    return read_table(place, manifest_name(entry), open_manifest(place, entry), columns)


def read_all_columns(place: Folder, entry: ShardEntry) -> tuple[pa.Table | None, list[Fault]]:
    """Read a manifest without checking its rows, and collect the faults of the file.

    Args:
        place: The dataset's folder.
        entry: The shard.

    Returns:
        All its columns, or None if it is missing or not a manifest; and the faults of the file. A missing file is not
        among them, because `find_file_faults` reports it.

    Raises:
        StorageError: If the storage refuses access or fails.
    """
    name = manifest_name(entry)
    try:
        data, faults = read_whole(place, name, entry.parquet_sha256)
        if data is None:
            return None, faults
        return read_table(place, name, parse_manifest(place, name, data)), faults
    except FileNotFoundError:
        return None, []
    except DamageError as error:
        return None, [*faults, error.fault]


def find_manifest_faults(table: pa.Table, entry: ShardEntry, rules: RowRules) -> Iterator[Fault]:
    """Compare the rows of a manifest with the rules of the format and the counts in the descriptor.

    Args:
        table: The rows, with at least the columns that `read_checked` always reads.
        entry: The shard.
        rules: The shard's rules, from `row_rules`.

    Yields:
        Faults; one with a `sample` is the fault of a row that cannot be used at all.
    """
    file = manifest_name(entry)
    if table.num_rows != entry.num_refs:
        yield Fault(file=file, found=f"{table.num_rows} rows", expected=f"{entry.num_refs}")
    usable = True
    for row, found, expected in find_row_faults(table, rules):
        usable = False
        yield Fault(file=file, sample=f"ref {table.column('ref_id')[row].as_py()}", found=found, expected=expected)
    if usable:
        num_sentences = len(one_array(table.column("sentences")).flatten())
        if num_sentences != entry.num_sentences:
            yield Fault(file=file, found=f"{num_sentences} sentences", expected=f"{entry.num_sentences}")


def open_manifest(place: Folder, entry: ShardEntry, *, dictionaries: Sequence[str] = ()) -> pq.ParquetFile:
    """Open a manifest and compare its hash. The rows are not checked.

    Args:
        place: The dataset's folder.
        entry: The shard.
        dictionaries: Columns of strings to be read as dictionaries.

    Raises:
        DamageError: If the manifest is missing or is not the one that was built.
        StorageError: If the storage refuses access or fails.
    """
    name = manifest_name(entry)
    return parse_manifest(place, name, read_as_built(place, name, entry.parquet_sha256), dictionaries=dictionaries)


def parse_manifest(place: Folder, name: str, data: bytes, *, dictionaries: Sequence[str] = ()) -> pq.ParquetFile:
    """Open a manifest from its bytes.

    Args:
        place: The dataset's folder, for messages.
        name: File name of the manifest, for messages.
        data: Content of the file.
        dictionaries: Columns of strings to be read as dictionaries.

    Raises:
        DamageError: If the bytes are not Parquet, or do not have the columns of a manifest.
    """
    try:
        schema = pq.read_schema(pa.BufferReader(data))
        file = pq.ParquetFile(pa.BufferReader(data), read_dictionary=list(dictionaries) or None)
    except (OSError, pa.ArrowException) as error:
        raise not_parquet(name, error).error(place) from error
    if not schema.equals(MANIFEST_SCHEMA):
        raise Fault(file=name, found="other columns than a manifest has", expected="a manifest").error(place)
    return file


def read_table(place: Folder, name: str, file: pq.ParquetFile, columns: Sequence[str] | None = None) -> pa.Table:
    """Read columns of an open manifest without checking their values; None reads all columns.

    Arrow's threads are not used. Manifests are already read several at a time, and Arrow's threads can abort a command
    that ends before they have stopped: its work is done, but its exit code is lost.

    Raises:
        DamageError: If the content is damaged.
    """
    try:
        table = file.read(columns=None if columns is None else list(columns), use_threads=False)
        table.validate(full=True)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise not_parquet(name, error).error(place) from error
    return table


def not_parquet(name: str, error: Exception) -> Fault:
    """Return the fault of a file that Arrow cannot read."""
    reason = str(error).splitlines()[0]
    return Fault(file=name, found=f"a file that cannot be read as Parquet ({reason})", expected="a whole file")
