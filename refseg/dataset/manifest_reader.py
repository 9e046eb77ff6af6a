"""Manifests as the descriptor names them: compared by hash, with rows that the format allows.

Hashes show damage and edits; `row_checks` shows what another writer did wrong, or wanted to do.
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
"""Columns that are always read and checked; `mask` and `annotations` where they are asked for."""


def dataset_ids(descriptor: Descriptor) -> tuple[str, ...]:
    """Ids that rows may have: the members of a mix, or the dataset itself."""
    return tuple(member.dataset for member in descriptor.mix) or (descriptor.dataset,)


def row_rules(descriptor: Descriptor) -> Callable[[ShardEntry], RowRules]:
    """A function from each shard to what its rows must be; the tars of image pools are listed once for all shards."""
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
    """Read columns of a manifest together with those that checks need; all rows are checked.

    Args:
        place: The dataset's folder.
        entry: The shard.
        rules: What the rows must be, from `row_rules`.
        columns: Names, of nested ones with their path.
        file: The manifest from `open_manifest`; None: it is opened here.

    Raises:
        DamageError: If the manifest is missing, another than was built, or has rows that the format forbids.
        StorageError: If storage refuses or fails.
    """
    # Annotations are checked whole, so they are read whole, also where only their ids are asked for.
    wanted = ("annotations" if name.startswith("annotations.") else name for name in columns)
    file = open_manifest(place, entry) if file is None else file
    table = read_table(place, manifest_name(entry), file, list(dict.fromkeys([*_CHECKED, *wanted])))
    for fault in find_manifest_faults(table, entry, rules):
        raise fault.error(place)
    return table


def read_unchecked(place: Folder, entry: ShardEntry, columns: Sequence[str]) -> pa.Table:
    """Read columns of a manifest that this process wrote or checked before: its hash is compared, its rows are not.

    Arguments and errors as of `read_checked`.
    """
    return read_table(place, manifest_name(entry), open_manifest(place, entry), columns)


def read_all_columns(place: Folder, entry: ShardEntry) -> tuple[pa.Table | None, list[Fault]]:
    """Read a manifest whose rows may be anything.

    Args:
        place: The dataset's folder.
        entry: The shard.

    Returns:
        All its columns, None if it is missing or no manifest; and what is wrong with the file. A missing file is no
        fault here: `find_file_faults` has it.

    Raises:
        StorageError: If storage refuses or fails.
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
    """Compare the rows of a manifest with what the format allows and the descriptor counted.

    Args:
        table: The rows, at least the columns that `read_checked` always reads.
        entry: The shard.
        rules: What the rows must be.

    Yields:
        Faults; those with a `sample` are of rows that cannot be used at all.
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
    """Open a manifest that is the one that was built; its rows are not looked at. Errors as of `read_checked`."""
    name = manifest_name(entry)
    return parse_manifest(place, name, read_as_built(place, name, entry.parquet_sha256), dictionaries=dictionaries)


def parse_manifest(place: Folder, name: str, data: bytes, *, dictionaries: Sequence[str] = ()) -> pq.ParquetFile:
    """Look into a manifest's bytes.

    Args:
        place: The dataset's folder, for messages.
        name: File name of the manifest, for messages.
        data: Content of the file.
        dictionaries: Columns of strings to be read as dictionaries.

    Raises:
        DamageError: If they are not Parquet, or have other columns than a manifest.
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
    """Read columns of an open manifest without a look at their values; None: all columns.

    Without Arrow's threads: manifests are read several at a time, and a command that ends while they wind down can be
    aborted by them, its work done and its exit code lost.

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
    """What is wrong with a file that Arrow cannot read."""
    reason = str(error).splitlines()[0]
    return Fault(file=name, found=f"a file that cannot be read as Parquet ({reason})", expected="a whole file")
