"""Parquet from memory, read by the calling thread alone."""

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.parquet as pq


def read_parquet(data: bytes, columns: Sequence[str] | None = None) -> pa.Table:
    """Read a table.

    Without Arrow's threads: a command that ends while they wind down can be aborted by them, its work done and its
    exit code lost. Shards are spread over processes anyway.

    Args:
        data: Content of the file.
        columns: Which; None: all.

    Raises:
        pa.ArrowException: If the content is no Parquet or has no such columns.
    """
    chosen = None if columns is None else list(columns)
    return pq.ParquetFile(pa.BufferReader(data)).read(chosen, use_threads=False)
