"""One reader per annotation family, and which dataset is read by which."""

from pathlib import Path

from pipelines.sources.custom import read_custom
from pipelines.sources.mdetr import find_mdetr_files, read_mdetr
from pipelines.sources.raw import RawSource
from pipelines.sources.refer import read_refer
from pipelines.sources.referit import find_referit_folder, read_referit
from pipelines.sources.zom import read_zom
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
