"""Finds and opens the built dataset that a REFER client asks for: its records, tars and folder of images."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from refseg.addresses import local_path
from refseg.cache_files import cache_folder
from refseg.compat.image_folder import ImageFolder, ImageRecord
from refseg.compat.refer_records import COLUMNS, ReferTables, refer_tables
from refseg.dataset.built import BuiltDataset
from refseg.dataset.descriptor import DESCRIPTOR_NAME, load_descriptor
from refseg.dataset.row_images import IMAGE_COLUMNS, RowImages
from refseg.dataset.schema import ANY_REFER, DATASETS, DatasetSpec, find_dataset
from refseg.errors import UsageError
from refseg.storage import Folder, RemoteFolder, is_remote, open_folder

IMAGE_LAYOUTS = (
    "images/mscoco/images/train2014",  # REFER, LAVT, LISA, GLaMM, EVF-SAM
    "images/train2014",  # CRIS, ReLA
    "images/mscoco/train2014",  # PolyFormer, SeqTR
    "train2014",  # CARIS, MaskRIS
    "trainval2014",  # DMMI
)
"""Folders below the root in which clients expect COCO's images. Images are written to the first that exists."""
REFCLEF_IMAGES = "images/saiapr_tc-12"
"""The same for the images of RefClef."""
_OF_IMAGE = (*IMAGE_COLUMNS, "image_xxh3")


@dataclass(frozen=True, slots=True, kw_only=True)
class ReferSource:
    """The data of a REFER object.

    Attributes:
        folder: Folder or URL of the built dataset.
        image_folder: Folder into which images are written.
        tables: REFER's records; those of images are `ImageRecord`s.
    """

    folder: str
    image_folder: Path
    tables: ReferTables


def open_refer(data_root: Path | str, dataset: str, split_by: str) -> ReferSource:
    """Open a built dataset as REFER's records.

    Args:
        data_root: The built dataset, or a folder that contains it; a path or URL.
        dataset: Name in REFER's layout or in refseg: `refcoco+` or `refcocoplus`.
        split_by: The partition.

    Raises:
        UsageError: If the root contains no such dataset, or its pictures were reduced.
        DatasetError: If the dataset is unfinished or damaged.
        StorageError: If storage refuses or fails.
    """
    spec = _find_spec(data_root, dataset, split_by)
    built = BuiltDataset.open(_find_built(data_root, spec))
    built.refuse_smaller_images()
    rows: list[dict[str, Any]] = built.read([*COLUMNS, *_OF_IMAGE]).to_pylist()
    # Reversed, so that the first row of an image wins if the image is in several tars.
    images = {row["image_id"]: {name: row[name] for name in _OF_IMAGE} for row in reversed(rows)}
    own = _find_own_folder(data_root, spec)
    folder = ImageFolder(
        own or cache_folder("refer-images") / f"{spec.dataset}-{spec.split_by}-{built.descriptor.digest[:16]}",
        is_ours=own is None,
        images=RowImages(built, sorted(row["shard"] for row in images.values())),
        rows=images,
    )
    tables = refer_tables(rows, spec)
    records: list[dict[str, Any]] = [ImageRecord(image, folder) for image in tables.images]
    return ReferSource(folder=str(built.place), image_folder=folder.path, tables=replace(tables, images=records))


def _find_spec(data_root: Path | str, dataset: str, split_by: str) -> DatasetSpec:
    for spec in DATASETS.values():
        if dataset in (spec.folder, spec.dataset) and spec.split_by == split_by:
            return spec
    try:
        return find_dataset(f"{dataset}/{split_by}")
    except UsageError:
        own_name = f"{ANY_REFER}/{dataset}"  # a client asks for rrsisd with the partition unc, for example
        root = open_folder(data_root)
        built = [folder for folder in (root, *_folders(root)) if folder.size(DESCRIPTOR_NAME) is not None]
        if any(load_descriptor(folder.address).dataset == own_name for folder in built):
            return find_dataset(own_name)
        raise


def _find_built(data_root: Path | str, spec: DatasetSpec) -> Path | str:
    """Return the root itself, or the only folder in it that holds the dataset."""
    root = open_folder(data_root)
    if root.size(DESCRIPTOR_NAME) is not None:
        descriptor = load_descriptor(data_root)
        if descriptor.dataset != spec.dataset_id:
            raise UsageError(
                f"{root}: found {descriptor.dataset}, expected {spec.dataset_id} or a folder that contains it"
            )
        return data_root
    built = [(folder, load_descriptor(folder.address)) for folder in _folders(root) if folder.size(DESCRIPTOR_NAME)]
    found = [folder for folder, descriptor in built if descriptor.dataset == spec.dataset_id]
    if len(found) == 1:
        return found[0].address
    if found:
        raise UsageError(
            f"{root}: {' and '.join(map(str, found))} hold {spec.dataset_id}, expected one dataset; "
            "give the dataset's own folder as the root"
        )
    held = ", ".join(descriptor.dataset for _, descriptor in built)
    raise UsageError(
        f"{root}: found {f'only {held}' if held else 'no built dataset'}, expected {spec.dataset_id} there or one "
        f"folder below; build it with `refseg build-shards {spec.dataset_id}`"
    )


def _folders(root: Folder) -> Iterator[Folder]:
    """Yield the folders directly in a folder, sorted by name."""
    names: Sequence[str]
    if isinstance(root, RemoteFolder):
        names = root.folders()
    else:
        path = Path(root.address)
        names = sorted(entry.name for entry in path.iterdir() if entry.is_dir()) if path.is_dir() else []
    yield from (open_folder(root.join(name)) for name in names)


def _find_own_folder(data_root: Path | str, spec: DatasetSpec) -> Path | None:
    """Return the user's folder of images below the root; None if there is none."""
    layouts = IMAGE_LAYOUTS if spec.is_coco else (REFCLEF_IMAGES,) if spec.dataset == "refclef" else ()
    if is_remote(data_root):
        return None
    return next((folder for layout in layouts if (folder := local_path(data_root) / layout).is_dir()), None)
