"""One reader per annotation family, and which dataset is read by which.

- `source_file.py` fetches, finds, opens (gzip, byte order marks) and hashes the files. `json_stream.py` reads JSON
  record by record, `plain_pickle.py` pickles that hold plain values alone (`numpy_pickle.py`: and NumPy's).
- `refer.py` reads REFER's layout, which RefCOCO, RefCOCO+, RefCOCOg, gRefCOCO, R-RefCOCO and Ref-ZOM share;
  `referit.py` reads RefClef as released, `mdetr.py` MDETR's files.
- `custom.py` reads a user's own table: `table.py` reads CSV, JSON lines and Parquet alike, `custom_row.py` checks one
  row, and `custom_store.py` joins the rows to refs and images on disk.
- All return the `RawSource` of `raw.py`: refs and tables as found, record by record.
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
        annotations: The folder that holds its files or its own folder (`spec.folder`); of `custom` also the table.
        png_rule: How mask PNGs of `custom` are read.

    Raises:
        UsageError: If the files are not there.
        AnnotationError: If a file cannot be read or is not of the expected form.
    """
    if spec.dataset == CUSTOM:
        return read_custom(spec, annotations, png_rule)
    if spec.dataset_id == "refclef/berkeley" and (folder := find_referit_folder(spec, annotations)):
        return read_referit(spec, folder)
    if files := find_mdetr_files(spec, annotations):
        return read_mdetr(spec, files)
    return read_zom(spec, annotations) if spec.dataset == "refzom" else read_refer(spec, annotations)
