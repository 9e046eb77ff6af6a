"""A finished dataset as exporters read it: rows shard by shard, with the picture of each."""

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
    """One finished dataset, or some of its splits, in the terms of the formats that it is exported to.

    Attributes:
        built: The open dataset.
        descriptor: What `refseg.json` says.
        spec: Which dataset.
        splits: Splits asked for, in the dataset's order.
        entries: The shards of these splits.

    Args:
        folder: Path or URL.
        splits: Which splits; None: all.
        images: False: pictures are not exported, and the tars need not be there.

    Raises:
        UsageError: If it is a mix, holds pictures made smaller, or has no such split.
        DatasetError: As of `BuiltDataset.open`.
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
        """Rows of one shard, as plain values; columns and errors as of `BuiltDataset.read`."""
        rows: list[dict[str, Any]] = self.built.read(columns, [entry]).to_pylist()
        return rows

    def categories(self, tables: ReferTables) -> list[dict[str, Any]]:
        """Category records of the whole dataset, whatever splits were asked for, so that files of all splits agree.

        Args:
            tables: Of some rows; COCO's own categories are all in them already.
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
        """The JPEG of a row; errors as of `RowImages`."""
        name = row["shard"]
        if self._images is None or self._images[0] != name:  # neighbours mostly lie in one tar
            self._images = name, RowImages(self.built, [name])
        return self._images[1].read(row)


class ImageWriter:
    """Writes images as files, each once.

    Args:
        dataset: The dataset that they come from.
        folder: The folder that they are written to.
    """

    def __init__(self, dataset: ExportedDataset, folder: Path) -> None:
        self._dataset = dataset
        self._folder = folder
        self._written: dict[str, int] = {}

    def write(self, row: Mapping[str, Any]) -> None:
        """Write the image of a row under its own name.

        Raises:
            DatasetError: If its name leads out of the folder, or is another image's, too.
        """
        file_name, image_id = row["file_name"], row["image_id"]
        known = self._written.setdefault(file_name, image_id)
        path = path_inside(self._folder, file_name)
        if known != image_id:
            raise DatasetError(
                f"{self._dataset.built.place}: images {known} and {image_id} have one file name, {file_name!r}; "
                "expected a name for each; build the dataset from files with names of their own"
            )
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(self._dataset.image(row))
