"""Reads a finished dataset for exporters. Rows are read shard by shard, and pictures row by row."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from refseg.compat.image_folder import path_inside
from refseg.compat.refer_records import ReferTables, learn_names, refer_categories
from refseg.dataset.built import BuiltDataset
from refseg.dataset.descriptor import ShardEntry
from refseg.dataset.row_images import RowImages
from refseg.dataset.schema import find_dataset
from refseg.errors import DatasetError, UsageError


class ExportedDataset:
    """The splits of a finished dataset that are to be exported.

    Attributes:
        built: The open dataset.
        descriptor: Content of `refseg.json`.
        spec: Specification of the dataset.
        splits: The requested splits, in the dataset's order.
        entries: The shards of these splits.

    Args:
        folder: Path or URL of the dataset.
        splits: Splits to export. None means all splits.
        images: If False, pictures are not exported, and the tars may be missing.

    Raises:
        UsageError: If the dataset is a mix, holds reduced pictures, or does not have a requested split.
        DatasetError: If the dataset is unfinished or damaged.
        StorageError: If remote storage refuses or fails.
    """

    def __init__(self, folder: Path | str, splits: Sequence[str] | None = None, *, images: bool = True) -> None:
        self.built = BuiltDataset.open(folder, splits, with_tars=images)
        self.descriptor = self.built.descriptor
        if self.descriptor.mix:
            members = ", ".join(member.dataset for member in self.descriptor.mix)
            raise UsageError(
                f"{folder}: is a mix, and ids of different datasets collide in other projects' files; "
                f"export its members ({members})"
            )
        self.built.refuse_smaller_images()
        self.spec = find_dataset(self.descriptor.dataset)
        self.splits = self.built.splits
        self.entries = self.built.entries
        self._images: tuple[str, RowImages] | None = None

    def rows(self, entry: ShardEntry, columns: Sequence[str]) -> list[dict[str, Any]]:
        """Return the rows of one shard as plain values. `BuiltDataset.read` explains the columns and errors."""
        rows: list[dict[str, Any]] = self.built.read(columns, [entry]).to_pylist()
        return rows

    def categories(self, tables: ReferTables) -> list[dict[str, Any]]:
        """Return the category records of all splits, so that the files of different splits have the same categories.

        Args:
            tables: Records of some rows. They already contain all of COCO's own categories.
        """
        return tables.categories if self.spec.is_coco else self._all_categories

    @cached_property
    def _all_categories(self) -> list[dict[str, Any]]:
        names: dict[int, str] = {}
        for entry in self.descriptor.shards:
            for row in self.rows(entry, ("category", "annotations.list.element.category_id")):
                learn_names(names, row)
        return refer_categories(names, self.spec)

    def image(self, row: Mapping[str, Any]) -> bytes:
        """Return the JPEG of a row. `RowImages.read` explains the errors."""
        name = row["shard"]
        if self._images is None or self._images[0] != name:  # adjacent rows are mostly in the same tar
            self._images = name, RowImages(self.built, [name])
        return self._images[1].read(row)


class ImageWriter:
    """Writes each image once, as a file.

    Args:
        dataset: The dataset of the images.
        folder: The folder to write to.
    """

    def __init__(self, dataset: ExportedDataset, folder: Path) -> None:
        self._dataset = dataset
        self._folder = folder
        self._written: dict[str, int] = {}

    def write(self, row: Mapping[str, Any]) -> None:
        """Write the image of a row under its own name.

        Raises:
            DatasetError: If the image's path is outside the folder, or two images have the same name.
        """
        file_name, image_id = row["file_name"], row["image_id"]
        known = self._written.setdefault(file_name, image_id)
        path = path_inside(self._folder, file_name)
        if known != image_id:
            raise DatasetError(
                f"{self._dataset.built.place}: images {known} and {image_id} have the same file name, {file_name!r}; "
                "expected different names; build the dataset from files with unique names"
            )
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(self._dataset.image(row))
