"""Finds the image files of a build in the folder layouts of common projects."""

import os
import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

from refseg.dataset.schema import ImageLocation
from refseg.errors import UsageError
from refseg.storage import Folder, archive_as_folder, is_remote, open_folder, split_address

LAYOUTS = (
    "",
    "images/train2014",  # CRIS, ReLA
    "images/mscoco/images/train2014",  # REFER, LAVT, LISA
    "mscoco/images/train2014",  # the same, from its images/ folder
    "images/mscoco/train2014",  # PolyFormer, SeqTR
    "train2014",  # CARIS, MaskRIS, COCO's own
    "val2014",  # Ref-ZOM uses pictures of train2014 and val2014
    "images/val2014",
    "trainval2014",  # DMMI
    "train2017",  # COCO 2017: the same pictures under other names
    "images/train2017",
    "images/saiapr_tc-12",  # RefClef in REFER's layout
    "saiapr_tc-12",
    "images",
)
"""Folders that are searched, in this order, below the folder that the user gives."""

ARCHIVES = ("train2014.zip", "val2014.zip", "train2017.zip", "saiapr_tc-12.zip")
"""Archives that are searched after the folders, in the folder that the user gives. They are read without unpacking."""

FETCHES = 8
"""Number of remote images that are fetched at a time. A request takes longer than the processing of an image."""

_SUFFIXES = frozenset({"jpg", "jpeg", "jpe", "jfif", "png", "webp", "heic", "heif", "gif", "bmp", "tif", "tiff"})


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceImage:
    """The source of an image: a file, or a tar of another dataset.

    Attributes:
        address: Path or URL of the file; empty if the image is in a tar.
        num_bytes: Size of the JPEG in bytes.
        location: Location in another dataset's tar. None if the image is a file, which is copied into this dataset's
            tar.
        size: `(height, width)` in pixels as recorded by the other dataset; None for a file.
    """

    address: str
    num_bytes: int
    location: ImageLocation | None = None
    size: tuple[int, int] | None = None

    @property
    def name(self) -> str:
        """File name without folders; for an image in a tar, the hash of its bytes."""
        if self.location is not None:
            return self.location.image_xxh3
        return split_address(self.address)[1] if is_remote(self.address) else self.address.rsplit("/", 1)[-1]


class ImageFinder:
    """Finds image files below some folders.

    A local file is looked up when it is needed, so that memory does not grow with the folder. Remote folders are listed
    once, because one request per image would be slower than the build.

    Args:
        roots: Paths or URLs of folders or ZIP archives, in order of preference. They contain the images, one of
            `LAYOUTS`, or one of `ARCHIVES`.
        is_coco: True if image ids are COCO's, so that files are also found by id.
        keep_folders: True if the folders in a name are significant, so that `s/t/a.jpg` does not match `a.jpg`.

    Raises:
        UsageError: If a root is not a folder.
        StorageError: If remote storage refuses or fails.
    """

    def __init__(self, roots: Sequence[Path | str], *, is_coco: bool, keep_folders: bool = False) -> None:
        self._is_coco = is_coco
        self._keep_folders = keep_folders
        self._folders: list[Folder] = []
        self._listings: dict[str, dict[str, int]] = {}
        for address in roots:
            root = open_folder(archive_as_folder(address))
            if not root.exists():
                raise UsageError(
                    f"--images {address}: no such folder; expected the JPEGs or a COCO layout such as train2014/"
                )
            self._add(root)
            held = self._listings.get(root.address)
            for name in ARCHIVES:
                if name in held if held is not None else root.size(name) is not None:
                    self._add(open_folder(archive_as_folder(root.join(name))))

    def _add(self, root: Folder) -> None:
        """Add the folders of `LAYOUTS` that exist below a root."""
        for folder in (open_folder(root.join(layout)) for layout in LAYOUTS):
            if is_remote(folder.address):
                self._listings[folder.address] = folder.list()
            if self._listings[folder.address] if is_remote(folder.address) else folder.exists():
                self._folders.append(folder)

    def find(self, image_id: int, file_name: str) -> SourceImage | None:
        """Find an image by the file name in `instances.json` or, if that is not found, by COCO's file name for the id.

        A name with folders is searched first with the folders and then, unless `keep_folders` is set, without them.
        Files outside the roots are never found.

        Returns:
            The image, or None if the file does not exist.
        """
        name = PurePosixPath(file_name)
        is_inside = not name.is_absolute() and ".." not in name.parts
        names = [str(name)] if name.name and is_inside else []
        if not self._keep_folders:
            names += [name.name, *self._names_by_id(image_id, name.name)]
        for candidate in filter(None, dict.fromkeys(names)):
            for folder in self._folders:
                listing = self._listings.get(folder.address)
                is_listed = listing is not None and "/" not in candidate
                num_bytes = listing.get(candidate) if listing is not None and is_listed else folder.size(candidate)
                if num_bytes is not None:
                    return SourceImage(address=folder.join(candidate), num_bytes=num_bytes)
        return None

    def find_alike(self, file_names: Sequence[str]) -> dict[str, str]:
        """Find files with names similar to missing ones.

        Similar names differ only in capitals, suffix, Unicode normal form, percent encoding, surrounding spaces or
        folder. The search reads every folder once for each folder in the names, so it is intended for a few names.

        Args:
            file_names: Names of missing files.

        Returns:
            The name of a similar file below the roots, by missing name. Names without a similar file are left out.
        """
        wanted: dict[str, dict[str, list[str]]] = {}
        for file_name in file_names:
            parts = PurePosixPath(file_name.replace("\\", "/")).parts
            if parts and parts[0] != "/" and ".." not in parts:
                for parent in {"/".join(parts[:-1]), ""}:
                    wanted.setdefault(parent, {}).setdefault(_similarity_key(parts[-1]), []).append(file_name)
        found: dict[str, str] = {}
        for parent in sorted(wanted, reverse=True):  # the folder in the name has precedence over no folder
            for folder in self._folders:
                try:
                    named = open_folder(folder.join(parent)) if parent else folder
                except UsageError:  # no folder can have that name
                    continue
                for name in _names_in(named):
                    for file_name in wanted[parent].get(_similarity_key(name), ()):
                        found.setdefault(file_name, f"{parent}/{name}" if parent else name)
        return found

    def _names_by_id(self, image_id: int, name: str) -> tuple[str, ...]:
        if self._is_coco:
            return (
                f"COCO_train2014_{image_id:012d}.jpg",
                f"{image_id:012d}.jpg",
                f"COCO_val2014_{image_id:012d}.jpg",
            )
        return (f"{image_id // 1000:02d}/images/{name}",)  # the layout in which SAIAPR TC-12 is released


def describe_alike(name: str, alike: str | None) -> str:
    """Return text that names a similar file, for a message about a missing picture; empty if there is none."""
    if alike is None:
        return ""
    if unicodedata.normalize("NFC", alike) == unicodedata.normalize("NFC", name):
        return f"; there is {alike}, whose letters are encoded differently in Unicode ({alike!a} for {name!a})"
    return f"; there is {alike if alike == alike.strip() else repr(alike)}"


def _similarity_key(name: str) -> str:
    """Return a key that is equal for file names that are easily confused."""
    name = unicodedata.normalize("NFC", unquote(name)).strip().casefold()
    stem, dot, suffix = name.rpartition(".")
    return stem.strip() if dot and suffix in _SUFFIXES else name


def _names_in(folder: Folder) -> Iterator[str]:
    """Yield the names of the entries of a folder. A local folder is scanned without reading the files' metadata."""
    if not is_remote(folder.address):
        with suppress(OSError), os.scandir(folder.address) as entries:
            for entry in entries:
                yield entry.name
    else:
        yield from folder.list()
