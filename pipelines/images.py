"""Finds image files in the layouts people have, and tells what is wrong with one."""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

from PIL import JpegImagePlugin

from refseg.errors import UsageError

LAYOUTS = (
    "",
    "images/train2014",  # CRIS, ReLA
    "images/mscoco/images/train2014",  # REFER, LAVT, LISA
    "mscoco/images/train2014",  # the same, from its images/ folder
    "images/mscoco/train2014",  # PolyFormer, SeqTR
    "train2014",  # CARIS, MaskRIS, COCO's own
    "trainval2014",  # DMMI
    "train2017",  # COCO 2017: the same pictures under other names
    "images/train2017",
    "images",
)
"""Folders looked through, in this order, below the folder given."""

_JPEG_START = b"\xff\xd8\xff"


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageFile:
    """A file found for an image: where, and how many bytes it has."""

    path: Path
    num_bytes: int


class ImageIndex:
    """The image files below some folders; listings are read once, only a file that is asked for is looked at.

    Args:
        roots: Folders that hold the images themselves or one of `LAYOUTS`, in order of preference.

    Raises:
        UsageError: If a root is no folder.
    """

    def __init__(self, roots: Iterable[Path]) -> None:
        self._folders: dict[str, Path] = {}  # by file name: the first folder that has it
        for root in roots:
            if not root.is_dir():
                raise UsageError(
                    f"--images {root}: no such folder; expected the JPEGs or a COCO layout such as train2014/"
                )
            for layout in LAYOUTS:
                folder = root / layout
                if folder.is_dir():
                    for name in os.listdir(folder):  # noqa: PTH208 - names alone: no Path for each of 80,000 files
                        self._folders.setdefault(name, folder)

    def find(self, image_id: int, file_name: str) -> ImageFile | None:
        """Find an image by its name in `instances.json`, else by its id in COCO's names; None if there is no file."""
        names = (
            Path(file_name).name,
            f"COCO_train2014_{image_id:012d}.jpg",
            f"{image_id:012d}.jpg",
            f"COCO_val2014_{image_id:012d}.jpg",
        )
        for name in names:
            folder = self._folders.get(name)
            if folder is not None:
                path = folder / name
                if path.is_file():  # not so for a folder or a link into nowhere
                    return ImageFile(path=path, num_bytes=path.stat().st_size)
        return None


def find_jpeg_fault(data: bytes, height: int, width: int) -> tuple[str, str] | None:
    """Decode a JPEG from its first to its last byte and compare its size with the annotated one.

    Greyscale and CMYK are fine. The size is compared before decoding, so a picture of a billion pixels costs nothing.
    Pixels are made at an eighth of the size: libjpeg still reads every code and meets the same faults, in 2/3 of the
    time.

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
        return "size_mismatch", (
            f"is {found_width} x {found_height} pixels, expected {width} x {height} as annotated; "
            "was it resized? take the original file"
        )
    picture.draft(None, (max(1, width // 8), max(1, height // 8)))
    try:
        picture.load()
    except (OSError, SyntaxError, ValueError, IndexError) as error:
        return "truncated_image", f"cannot be decoded whole ({error}); fetch the file again"
    return None
