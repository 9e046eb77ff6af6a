"""Where the images of a build lie: found as files, in the layouts people have."""

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
    "val2014",  # Ref-ZOM takes pictures of both
    "images/val2014",
    "trainval2014",  # DMMI
    "train2017",  # COCO 2017: the same pictures under other names
    "images/train2017",
    "images/saiapr_tc-12",  # RefClef in REFER's layout
    "saiapr_tc-12",
    "images",
)
"""Folders looked through, in this order, below the folder given."""

ARCHIVES = ("train2014.zip", "val2014.zip", "train2017.zip", "saiapr_tc-12.zip")
"""Archives that are looked for in the folder given, after its folders; they are read as they are."""

FETCHES = 8
"""Remote images on their way at a time: a request takes longer than the work on its image."""

_SUFFIXES = frozenset({"jpg", "jpeg", "jpe", "jfif", "png", "webp", "heic", "heif", "gif", "bmp", "tif", "tiff"})


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceImage:
    """Where a build takes an image from: a file, or a tar of another dataset.

    Attributes:
        address: Path or URL of the file; empty if the image lies in a tar.
        num_bytes: Size of the JPEG.
        location: Where it lies in another dataset's tar; None: it is a file, which is copied into this dataset's tar.
        size: `(height, width)` in pixels, as the other dataset has it; None for a file.
    """

    address: str
    num_bytes: int
    location: ImageLocation | None = None
    size: tuple[int, int] | None = None

    @property
    def name(self) -> str:
        """File name without folders; of an image in a tar the hash of its bytes."""
        if self.location is not None:
            return self.location.image_xxh3
        return split_address(self.address)[1] if is_remote(self.address) else self.address.rsplit("/", 1)[-1]


class ImageFinder:
    """The image files below some folders.

    Local files are looked at one by one as they are asked for, so memory does not grow with the folder; remote folders
    are listed once, for a request per image would take longer than the build.

    Args:
        roots: Folders, URLs or ZIP archives that hold the images themselves, one of `LAYOUTS` or one of `ARCHIVES`, in
            order of preference.
        is_coco: True if ids are COCO's, so that files are also known by them.
        keep_folders: True if the folders of a name tell pictures apart, so that a file is that name's or nobody's:
            `s/t/a.jpg` is not `a.jpg`.

    Raises:
        UsageError: If a root is no folder.
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
        """Take those of `LAYOUTS` that are there."""
        for folder in (open_folder(root.join(layout)) for layout in LAYOUTS):
            if is_remote(folder.address):
                self._listings[folder.address] = folder.list()
            if self._listings[folder.address] if is_remote(folder.address) else folder.exists():
                self._folders.append(folder)

    def find(self, image_id: int, file_name: str) -> SourceImage | None:
        """Find an image by its name in `instances.json`, else by its id in COCO's names; None if there is no file.

        A name with folders is looked for as it is, then, without `keep_folders`, without them; never outside of the
        roots.
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
        """What may have been meant by names that are not there.

        Files are alike that differ in capitals, suffix, Unicode's normal form, percent encoding or spaces around, and
        those of the same name in one of the folders themselves. Every folder is read once for each folder that the
        names name, so this is for a handful of them.

        Returns:
            By name asked for, the name of a file below the roots; only those for which there is one.
        """
        wanted: dict[str, dict[str, list[str]]] = {}
        for file_name in file_names:
            parts = PurePosixPath(file_name.replace("\\", "/")).parts
            if parts and parts[0] != "/" and ".." not in parts:
                for parent in {"/".join(parts[:-1]), ""}:
                    wanted.setdefault(parent, {}).setdefault(_alike_key(parts[-1]), []).append(file_name)
        found: dict[str, str] = {}
        for parent in sorted(wanted, reverse=True):  # the folder that is named before none
            for folder in self._folders:
                try:
                    named = open_folder(folder.join(parent)) if parent else folder
                except UsageError:  # no folder can have that name
                    continue
                for name in _names_in(named):
                    for file_name in wanted[parent].get(_alike_key(name), ()):
                        found.setdefault(file_name, f"{parent}/{name}" if parent else name)
        return found

    def _names_by_id(self, image_id: int, name: str) -> tuple[str, ...]:
        if self._is_coco:
            return (
                f"COCO_train2014_{image_id:012d}.jpg",
                f"{image_id:012d}.jpg",
                f"COCO_val2014_{image_id:012d}.jpg",
            )
        return (f"{image_id // 1000:02d}/images/{name}",)  # SAIAPR TC-12 as released


def describe_alike(name: str, alike: str | None) -> str:
    """The end of a message about a missing picture: the file of nearly its name; empty if there is none."""
    if alike is None:
        return ""
    if unicodedata.normalize("NFC", alike) == unicodedata.normalize("NFC", name):
        return f"; there is {alike}, its letters written otherwise in Unicode ({alike!a} for {name!a})"
    return f"; there is {alike if alike == alike.strip() else repr(alike)}"


def _alike_key(name: str) -> str:
    """Equal for names of files that are easily taken for each other."""
    name = unicodedata.normalize("NFC", unquote(name)).strip().casefold()
    stem, dot, suffix = name.rpartition(".")
    return stem.strip() if dot and suffix in _SUFFIXES else name


def _names_in(folder: Folder) -> Iterator[str]:
    """Names of what lies directly in a folder; of a local one without a look at each, and without keeping them."""
    if not is_remote(folder.address):
        with suppress(OSError), os.scandir(folder.address) as entries:
            for entry in entries:
                yield entry.name
    else:
        yield from folder.list()
