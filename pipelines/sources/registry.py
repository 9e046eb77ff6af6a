"""Lists all readers by name, and chooses the reader for a dataset."""

import importlib
import pkgutil
from pathlib import Path

from pipelines.sources import custom, jxu124, layouts, mdetr, refer, referit
from pipelines.sources.raw import RawSource
from pipelines.sources.reader import DEFAULT_OPTIONS, Reader, ReadOptions
from refseg.dataset.schema import DatasetSpec
from refseg.errors import UsageError
from refseg.wording import did_you_mean

FAMILIES: tuple[Reader, ...] = (custom.READER, referit.READER, mdetr.READER, jxu124.READER, refer.READER)
"""Readers that are tried in this order if the user names none."""


def _find_layouts() -> dict[str, Reader]:
    names = sorted(module.name for module in pkgutil.iter_modules(layouts.__path__))
    found = (importlib.import_module(f"{layouts.__name__}.{name}").READER for name in names)
    return {reader.name: reader for reader in found}


READERS: dict[str, Reader] = {reader.name: reader for reader in FAMILIES} | _find_layouts()
"""All readers by name. Readers in `layouts/` are used only if the user names them."""


def read_source(
    spec: DatasetSpec, annotations: Path, options: ReadOptions = DEFAULT_OPTIONS, *, reader: str = ""
) -> RawSource:
    """Read a dataset's annotations.

    Args:
        spec: Dataset and partition.
        annotations: The folder with the dataset's files, the folder that contains `spec.folder`, or a file.
        options: The user's options for reading.
        reader: Name of the reader. If empty, the first of `FAMILIES` whose files exist is used.

    Raises:
        UsageError: If the files are missing, or the reader does not exist or cannot read the dataset.
        AnnotationError: If a file cannot be read or does not have the expected form.
    """
    if reader and reader not in READERS:
        raise UsageError(
            f"--reader {reader}: expected one of {', '.join(READERS)}{did_you_mean(reader, list(READERS))}"
        )
    if reader and not READERS[reader].serves(spec):
        raise UsageError(
            f"--reader {reader}: reads {READERS[reader].reads}, which {spec.dataset_id} does not have; "
            f"expected one of {', '.join(name for name, other in READERS.items() if other.serves(spec))}"
        )
    chosen = (READERS[reader],) if reader else tuple(family for family in FAMILIES if family.serves(spec))
    for candidate in chosen:
        source = candidate.read(spec, annotations, options)
        if source is not None:
            return source
    raise UsageError(f"--annotations {annotations}: found no files of --reader {reader} ({READERS[reader].reads})")
