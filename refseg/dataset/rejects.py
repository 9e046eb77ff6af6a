"""`rejects.parquet`: the refs of the source that are not in the dataset, each with the reason."""

import pyarrow as pa
import pyarrow.parquet as pq

from refseg.dataset.descriptor import REJECTS_NAME, Descriptor
from refseg.dataset.faults import Fault
from refseg.dataset.file_checks import missing, read_whole
from refseg.dataset.manifest_reader import not_parquet
from refseg.storage import Folder
from refseg.wording import counted

REJECTS_SCHEMA = pa.schema(
    [
        ("dataset", pa.string()),
        ("split_by", pa.string()),
        ("split", pa.string()),
        ("ref_id", pa.int64()),
        ("image_id", pa.int64()),
        ("reason", pa.string()),
        ("message", pa.string()),
    ]
)
"""One row per rejected ref; ids and split are null if the ref does not contain them."""


def read_rejects(place: Folder, descriptor: Descriptor) -> pa.Table:
    """Read the rejects of a dataset, with the columns of `REJECTS_SCHEMA`; the table is empty if there are none.

    Raises:
        DamageError: If the file is missing or differs from the one that was built.
        StorageError: If storage refuses or fails.
    """
    table, faults = check_rejects(place, descriptor)
    for fault in faults:
        raise fault.error(place)
    return table


def check_rejects(place: Folder, descriptor: Descriptor) -> tuple[pa.Table | None, list[Fault]]:
    """Read the rejects of a dataset and find all faults of their file.

    Returns:
        The rejects (None if they cannot be read) and the faults.

    Raises:
        StorageError: If storage refuses or fails.
    """
    if not descriptor.num_rejects:
        return REJECTS_SCHEMA.empty_table(), []
    expected = counted(descriptor.num_rejects, "reject")
    try:
        data, faults = read_whole(place, REJECTS_NAME, descriptor.rejects_sha256)
    except FileNotFoundError:
        return None, [missing(REJECTS_NAME, expected)]
    if data is None:
        return None, faults
    try:
        table = pq.ParquetFile(pa.BufferReader(data)).read(use_threads=False)
    except (OSError, pa.ArrowException) as error:
        return None, [*faults, not_parquet(REJECTS_NAME, error)]
    if not table.schema.equals(REJECTS_SCHEMA):
        return None, [*faults, Fault(file=REJECTS_NAME, found="other columns than those of rejects", expected=expected)]
    if table.num_rows != descriptor.num_rejects:
        faults.append(Fault(file=REJECTS_NAME, found=counted(table.num_rows, "row"), expected=expected))
    return table, faults
