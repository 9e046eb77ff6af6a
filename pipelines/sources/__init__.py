"""Reads annotation files, with one reader per layout, and chooses the reader for a dataset.

The files are listed in the order in which data passes through them.

- `reader.py` defines what a reader is, and `registry.py` lists all readers and chooses one.
- `source_file.py` fetches, finds, opens (gzip, byte order marks) and hashes files. `json_stream.py` reads JSON record
  by record, and `parquet_rows.py` reads columns of Parquet files. `plain_pickle.py` reads pickles of plain values and,
  with `numpy_pickle.py`, of NumPy values.
- `refer.py` reads REFER's layout, `referit.py` reads RefClef's released files, and `mdetr.py` reads MDETR's files.
  `jxu124.py` reads the Parquet datasets of the account jxu124 on the Hugging Face Hub.
- `custom.py` reads a user's own table, with the rows that `table.py` reads from CSV, JSON lines or Parquet. `layouts/`
  reads the files of annotation tools and other projects; `row_reader.py` makes these readers, with `regions.py` and
  `targets.py`.
- `row_source.py` joins the rows of tables and layouts to refs and images: `custom_row.py` checks a row, and
  `custom_store.py` stores the rows on disk.
- All readers return the `RawSource` of `raw.py`. `pictures.py` writes pictures in Parquet files to a folder.
"""

from pipelines.sources.reader import ReadOptions
from pipelines.sources.registry import FAMILIES, READERS, read_source

__all__ = ["FAMILIES", "READERS", "ReadOptions", "read_source"]
