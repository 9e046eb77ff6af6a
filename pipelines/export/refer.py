"""Exports to REFER's layout, with `refs(<split_by>).p` and `.json`, `instances.json`, and the images."""

import pickle
import shutil
from dataclasses import replace
from pathlib import Path

from pipelines.build_folder import hash_file
from pipelines.export.dataset import ExportedDataset, ImageWriter
from pipelines.export.run import ExportOptions, Progress
from refseg.compat.refer_records import COLUMNS, ReferTables, differences, refer_tables
from refseg.dataset.row_images import IMAGE_COLUMNS
from refseg.dataset.schema import CUSTOM, DatasetSpec
from refseg.errors import UsageError
from refseg.json_text import canonical_json

_PROTOCOL = 2
"""Protocol of the pickle, which Python 2 can read, because `refer.py` was written for Python 2."""


def write(dataset: ExportedDataset, out: Path, options: ExportOptions, progress: Progress) -> tuple[str, ...]:
    """Write the files of one dataset and partition.

    Args:
        dataset: The dataset to export.
        out: Folder to write to.
        options: Options of the export.
        progress: Called after each shard.

    Returns:
        The differences to the dataset's sources, in sentences; empty if the source files were copied.

    Raises:
        UsageError: If the annotation files to copy are missing or differ from those that the build read.
    """
    spec = dataset.spec
    if spec.dataset == CUSTOM and options.annotations is not None:
        raise UsageError(
            f"--annotations: {dataset.descriptor.dataset} was built from a table and has no files in REFER's layout to "
            "copy; remove the option to make them from the shards"
        )
    images = ImageWriter(dataset, out / image_folder(spec))
    rows = []
    for entry in dataset.entries:
        found = dataset.rows(entry, [*COLUMNS, *IMAGE_COLUMNS])
        if options.images:
            for row in found:
                images.write(row)
        if options.annotations is None:
            rows += found
        progress()
    if options.annotations is not None:
        _restore(dataset, options.annotations, out)
        return ()
    tables = refer_tables(rows, spec)
    tables = replace(tables, categories=dataset.categories(tables))
    write_tables(tables, spec, out / spec.folder, description=dataset.descriptor.dataset)
    return differences(spec)


def image_folder(spec: DatasetSpec) -> str:
    """Return the folder in which REFER expects a dataset's images, relative to REFER's root folder."""
    if spec.dataset == "refclef":
        return "images/saiapr_tc-12"
    return "images/mscoco/images/train2014" if spec.is_coco else "images"


def write_tables(tables: ReferTables, spec: DatasetSpec, folder: Path, *, description: str) -> None:
    """Write records in the files of REFER's layout. The refs are written as a pickle and as JSON.

    Args:
        tables: The records.
        spec: Specification of the dataset, which determines the files' names.
        folder: New folder of the dataset, for example `refcoco+`.
        description: Description in `info` of `instances.json`.
    """
    folder.mkdir(parents=True)
    refs_name = f"{spec.refs_prefix}({spec.split_by})"
    (folder / f"{refs_name}.p").write_bytes(pickle.dumps(tables.refs, protocol=_PROTOCOL))
    (folder / f"{refs_name}.json").write_bytes(canonical_json(tables.refs))
    instances = {
        "info": {"description": f"{description}, exported by refseg"},
        "licenses": [],
        "images": tables.images,
        "annotations": tables.annotations,
        "categories": tables.categories,
    }
    (folder / "instances.json").write_bytes(canonical_json(instances))


def _restore(dataset: ExportedDataset, annotations: Path, out: Path) -> None:
    """Copy the files that a dataset was built from, after comparing their hashes."""
    for source in dataset.descriptor.sources:
        candidates = (annotations / source.name, annotations / Path(source.name).name)
        found = [path for path in candidates if path.is_file()]
        if not found:
            raise UsageError(
                f"--annotations {annotations}: found no {source.name}, expected the files that the build read"
            )
        same = [path for path in found if hash_file(path) == source.sha256]
        if not same:
            raise UsageError(
                f"{found[0]}: differs from the file that the build of {dataset.descriptor.dataset} read (found sha256 "
                f"{hash_file(found[0]):.12}, expected {source.sha256:.12}); give the annotations of that build"
            )
        target = out / source.name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(same[0], target)
