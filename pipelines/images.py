"""Finds image files in the layouts people have, and tells what is wrong with one."""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path, PurePosixPath

from PIL import JpegImagePlugin

from refseg.errors import UsageError
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

_JPEG_START = b"\xff\xd8\xff"
_JPEG_END = b"\xff\xd9"
_ORIENTATION = 0x0112
_TURNED = (5, 6, 7, 8)
"""EXIF orientations that swap height and width when shown."""


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

    def _names_by_id(self, image_id: int, name: str) -> tuple[str, ...]:
        if self._is_coco:
            return (
                f"COCO_train2014_{image_id:012d}.jpg",
                f"{image_id:012d}.jpg",
                f"COCO_val2014_{image_id:012d}.jpg",
            )
        return (f"{image_id // 1000:02d}/images/{name}",)  # SAIAPR TC-12 as released


def find_jpeg_fault(
    data: bytes, height: int, width: int, *, decode: bool, size_from: str = ""
) -> tuple[str, str] | None:
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
        None if all is well, else a reason of `rejects.REASONS` and what was found.
    """
    try:
        picture = JpegImagePlugin.JpegImageFile(BytesIO(data))
    except (SyntaxError, OSError, ValueError):
        if data.startswith(_JPEG_START):
            return "truncated_image", f"ends or is damaged within its first {len(data)} bytes; fetch the file again"
        start = f"starts with {data[:4].hex(' ')}" if data else "is empty"
        return "not_a_jpeg", f"{start}, expected a JPEG; fetch the file again"
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
        return "size_mismatch", (
            f"is {found_width} x {found_height} pixels, expected {width} x {height} as annotated; {remedy}"
        )
    if not decode:
        if data.rfind(_JPEG_END, -(1 << 16)) < 0:  # some cameras write more after it
            return "truncated_image", "has no end marker; fetch the file again"
        return None
    picture.draft("L", (max(1, width // 8), max(1, height // 8)))
    try:
        picture.load()
    except (OSError, SyntaxError, ValueError, IndexError) as error:
        return "truncated_image", f"cannot be decoded whole ({error}); fetch the file again"
    return None


def _exif_orientation(picture: JpegImagePlugin.JpegImageFile) -> int | None:
    """How the picture is to be turned when shown; None if nothing says so, or nothing readable."""
    try:
        orientation = picture.getexif().get(_ORIENTATION)
    except (OSError, SyntaxError, ValueError, LookupError, struct.error):
        return None
    return orientation if isinstance(orientation, int) else None
