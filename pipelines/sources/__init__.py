"""One reader per layout of annotation files, and the choice of the reader for a dataset.

`referit.py` reads RefClef as it was released, `mdetr.py` reads MDETR's files, and `jxu124.py` the Parquet sets of that
name on the Hugging Face Hub. `parquet_rows.py` reads columns of such files; `pictures.py` writes out their pictures.
"""

from pipelines.sources.reader import ReadOptions
from pipelines.sources.registry import FAMILIES, READERS, read_source

__all__ = ["FAMILIES", "READERS", "ReadOptions", "read_source"]
