"""Finds image files in the layouts people have, and tells what is wrong with one."""

import os
import struct
import unicodedata
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from PIL import JpegImagePlugin

from refseg.errors import StorageError, UsageError
from refseg.storage import Folder, is_remote, open_folder

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

FETCHES = 8
"""Remote images on their way at a time: a request takes longer than the work on its image."""

_JPEG_START = b"\xff\xd8\xff"
_JPEG_END = b"\xff\xd9"
_OTHER_FORMATS = (
    ("PNG", b"\x89PNG", 0),
    ("WebP", b"WEBP", 8),
    ("HEIC", b"ftyphei", 4),
    ("HEIC", b"ftypmif", 4),
)
"""Pictures that people have beside JPEGs: name, mark and where it stands in the file."""
_SUFFIXES = frozenset({"jpg", "jpeg", "jpe", "jfif", "png", "webp", "heic", "heif", "gif", "bmp", "tif", "tiff"})
_ORIENTATION = 0x0112
_TURNED = (5, 6, 7, 8)
"""EXIF orientations that swap height and width when shown."""
_HEAD_BYTES = 1 << 16
"""Of a JPEG, mostly more than all that stands before its pixels; one EXIF or ICC segment takes as many at most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageFile:
    """A file found for an image: path or URL, and how many bytes it has."""

    address: str
    num_bytes: int

    @property
    def name(self) -> str:
        """File name without folders."""
        return self.address.rsplit("/", 1)[-1]


class ImageFinder:
    """The image files below some folders.

    Local files are looked at one by one as they are asked for, so memory does not grow with the folder; remote folders
    are listed once, for a request per image would take longer than the build.

    Args:
        roots: Folders or URLs that hold the images themselves or one of `LAYOUTS`, in order of preference.
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
        for root in map(open_folder, roots):
            if not root.exists():
                raise UsageError(
                    f"--images {root}: no such folder; expected the JPEGs or a COCO layout such as train2014/"
                )
            for folder in (open_folder(root.join(layout)) for layout in LAYOUTS):
                if is_remote(folder.address):
                    self._listings[folder.address] = folder.list()
                if self._listings[folder.address] if is_remote(folder.address) else folder.exists():
                    self._folders.append(folder)

    def find(self, image_id: int, file_name: str) -> ImageFile | None:
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
                    return ImageFile(address=folder.join(candidate), num_bytes=num_bytes)
        return None

    def find_alike(self, file_names: Sequence[str]) -> dict[str, str]:
        """What may have been meant by names that are not there.

        Files are alike that differ in capitals, suffix, Unicode's normal form or spaces around, and those of the same
        name in one of the folders themselves. Every folder is gone through once for each folder that the names name, so
        this is for a handful of them.

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
                for name in _names_in(open_folder(folder.join(parent)) if parent else folder):
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


def _alike_key(name: str) -> str:
    """Equal for names of files that are easily taken for each other."""
    name = unicodedata.normalize("NFC", name).strip().casefold()
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


class JpegFault(NamedTuple):
    """What is wrong with an image file.

    Attributes:
        reason: Of `rejects.REASONS`.
        found: What was found, what was expected and what to do; goes on after the file's name.
    """

    reason: str
    found: str


def read_jpeg_sizes(images: Sequence[ImageFile]) -> list[tuple[int, int] | JpegFault]:
    """`(height, width)` of each image in pixels as stored, or why there is none; remote ones several at a time.

    A picture that EXIF lays on its side has no such size: nothing would tell which of its two sizes annotations mean.

    Raises:
        StorageError: If remote storage fails.
    """
    if any(is_remote(image.address) for image in images):
        with ThreadPoolExecutor(FETCHES) as pool:
            return list(pool.map(_read_jpeg_size, images))
    return list(map(_read_jpeg_size, images))


def _read_jpeg_size(image: ImageFile) -> tuple[int, int] | JpegFault:
    """Read only the start of a file, of a remote one too, where that is enough."""
    parent, _, name = image.address.rpartition("/")
    folder = open_folder(parent or "/")
    try:
        picture = _open_jpeg(folder.read(name, 0, _HEAD_BYTES))
        if isinstance(picture, JpegFault) and image.num_bytes > _HEAD_BYTES:
            picture = _open_jpeg(folder.read(name))
    except StorageError:
        raise  # says nothing of the image
    except OSError as error:
        return JpegFault("missing_image", f"cannot be read ({error.strerror or error}); fetch the file again")
    if isinstance(picture, JpegFault):
        return picture
    orientation = _exif_orientation(picture)
    if orientation in _TURNED:
        width, height = picture.size
        return JpegFault(
            "size_mismatch",
            f"is stored rotated (EXIF orientation {orientation}): {width} x {height} pixels as stored, {height} x "
            f"{width} as shown; rotate the pixels and take the tag away, or give height {height} and width {width} if "
            "its targets are in stored pixels",
        )
    return picture.height, picture.width


def _open_jpeg(data: bytes) -> JpegImagePlugin.JpegImageFile | JpegFault:
    """Read a JPEG's head and none of its pixels."""
    try:
        return JpegImagePlugin.JpegImageFile(BytesIO(data))
    except (SyntaxError, OSError, ValueError):
        if data.startswith(_JPEG_START):
            found = f"ends or is damaged within its first {len(data)} bytes; fetch the file again"
            return JpegFault("truncated_image", found)
        found = f"starts with {data[:4].hex(' ')}, expected a JPEG" if data else "is empty, expected a JPEG"
        forms = [form for form, mark, place in _OTHER_FORMATS if data.startswith(mark, place)]
        remedy = f"it is a {forms[0]}: save it as JPEG" if forms else "fetch the file again"
        return JpegFault("not_a_jpeg", f"{found}; {remedy}")


def find_jpeg_fault(data: bytes, height: int, width: int, *, decode: bool, size_from: str = "") -> JpegFault | None:
    """Compare a JPEG's size with the annotated one and decode it from its first to its last byte.

    Greyscale and CMYK are fine. The size is compared before decoding, so a picture of a billion pixels costs nothing.
    Pixels are made at an eighth of the size, without colour: libjpeg still reads every code and meets the same faults,
    in 2/3 of the time.

    Args:
        data: Content of the file.
        height: As annotated, in pixels.
        width: As annotated, in pixels.
        decode: False: look at the header and the end alone.
        size_from: What gave the annotated size, such as a mask; empty: annotations that belong to the image.

    Returns:
        None if all is well.
    """
    picture = _open_jpeg(data)
    if isinstance(picture, JpegFault):
        return picture
    if picture.size != (width, height):
        found_width, found_height = picture.size
        orientation = _exif_orientation(picture)
        if picture.size == (height, width) and orientation in _TURNED:
            remedy = (
                f"it is stored rotated (EXIF orientation {orientation}) and read as stored: rotate the pixels "
                "and take the tag away"
            )
        elif size_from:
            remedy = f"{size_from} gives that size: correct it, or take the picture it was made for"
        else:
            remedy = "was it resized? take the original file"
        found = f"is {found_width} x {found_height} pixels, expected {width} x {height} as annotated; {remedy}"
        return JpegFault("size_mismatch", found)
    if not decode:
        if data.rfind(_JPEG_END, -(1 << 16)) < 0:  # some cameras write more after it
            return JpegFault("truncated_image", "has no end marker; fetch the file again")
        return None
    picture.draft("L", (max(1, width // 8), max(1, height // 8)))
    try:
        picture.load()
    except (OSError, SyntaxError, ValueError, IndexError) as error:
        return JpegFault("truncated_image", f"cannot be decoded whole ({error}); fetch the file again")
    return None


def _exif_orientation(picture: JpegImagePlugin.JpegImageFile) -> int | None:
    """How the picture is to be turned when shown; None if nothing says so, or nothing readable."""
    try:
        orientation = picture.getexif().get(_ORIENTATION)
    except (OSError, SyntaxError, ValueError, LookupError, struct.error):
        return None
    return orientation if isinstance(orientation, int) else None
