"""One reader per family of annotation files, and the choice of the reader for a dataset.

The files, in the order in which data passes through them:

- `source_file.py` fetches, finds, opens (gzip, byte order marks) and hashes files.
- `json_stream.py` reads JSON record by record. `plain_pickle.py` reads pickles of plain values, and with
  `numpy_pickle.py` those of NumPy values.
- `refer.py` reads REFER's layout, which RefCOCO, RefCOCO+, RefCOCOg, gRefCOCO, R-RefCOCO and Ref-ZOM share.
  `referit.py` reads RefClef as it was released, and `mdetr.py` reads MDETR's files.
- `custom.py` reads a user's own table. `table.py` reads rows from CSV, JSON lines or Parquet, `custom_row.py` checks
  one row, and `custom_store.py` joins the rows to refs and images on disk.
- All readers return the `RawSource` of `raw.py`: refs and tables as found, record by record.
"""

from pathlib import Path

from pipelines.sources.custom import read_custom
from pipelines.sources.mdetr import find_mdetr_files, read_mdetr
from pipelines.sources.raw import RawSource
from pipelines.sources.refer import read_refer, read_zom
from pipelines.sources.referit import find_referit_folder, read_referit
from refseg.dataset.schema import CUSTOM, DatasetSpec
from refseg.mask_png import DEFAULT_RULE, PngRule


def read_source(spec: DatasetSpec, annotations: Path, png_rule: PngRule = DEFAULT_RULE) -> RawSource:
    """Read a dataset's annotations by the reader of its family.

    Args:
        spec: Dataset and partition.
        annotations: The folder with the dataset's files, or the folder that contains it (as `spec.folder`). For
            `custom` it may also be the table itself.
        png_rule: How mask PNGs of `custom` are read.

    Raises:
        UsageError: If the files are missing.
        AnnotationError: If a file cannot be read or does not have the expected form.
    """
    if spec.dataset == CUSTOM:
        return read_custom(spec, annotations, png_rule)
    if spec.dataset_id == "refclef/berkeley" and (folder := find_referit_folder(spec, annotations)):
        return read_referit(spec, folder)
    if files := find_mdetr_files(spec, annotations):
        return read_mdetr(spec, files)
    return read_zom(spec, annotations) if spec.dataset == "refzom" else read_refer(spec, annotations)
