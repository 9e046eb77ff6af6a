"""File names that a dataset brings along, as paths that stay inside of a folder."""

from pathlib import Path, PurePosixPath

from refseg.errors import DatasetError


def path_inside(folder: Path, file_name: str) -> Path:
    """The path of an image below a folder.

    Args:
        folder: Where images are put.
        file_name: Of a manifest, perhaps with folders of its own; the dataset may be anybody's.

    Raises:
        DatasetError: If the name is empty, absolute or leads out of the folder.
    """
    name = PurePosixPath(file_name)
    if not name.name or name.is_absolute() or ".." in name.parts or "\\" in file_name or "\0" in file_name:
        raise DatasetError(
            f"found file name {file_name!r}, expected a name below the folder of images; "
            "nothing is written for it: ask whoever built the dataset"
        )
    return folder / name
