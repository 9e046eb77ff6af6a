"""One reader per layout of annotation files, and the choice of the reader for a dataset.

The files, in the order in which data passes through them:

- `source_file.py` fetches, finds, opens (gzip, byte order marks) and hashes files.
- `json_stream.py` reads JSON record by record. `plain_pickle.py` reads pickles of plain values, and with
  `numpy_pickle.py` those of NumPy values.
- `reader.py` defines what a reader is. `registry.py` holds all readers and chooses one.
- `refer.py` reads REFER's layout, which RefCOCO, RefCOCO+, RefCOCOg, gRefCOCO, R-RefCOCO and Ref-ZOM share.
  `referit.py` reads RefClef as it was released, and `mdetr.py` reads MDETR's files.
- `custom.py` reads a user's own table. `table.py` reads rows from CSV, JSON lines or Parquet.
- `layouts/` has a file for each layout of annotation tools and other projects: a function from a file to the rows of
  such a table, from which `row_reader.py` makes a reader.
- `custom_row.py` checks one row, `custom_store.py` joins the rows to refs and images on disk, and `row_source.py` runs
  both.
- All readers return the `RawSource` of `raw.py`: refs and tables as found, record by record.
"""

from pipelines.sources.reader import ReadOptions
from pipelines.sources.registry import FAMILIES, READERS, read_source

__all__ = ["FAMILIES", "READERS", "ReadOptions", "read_source"]
