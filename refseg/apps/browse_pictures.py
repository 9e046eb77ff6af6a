"""Prepares the pictures of a browse page. Pictures are reduced, and a note replaces unreadable ones."""

import struct
from io import BytesIO

from PIL import Image, ImageDraw

from refseg.errors import ImageError
from refseg.jpeg_header import open_stored_jpeg

PICTURE_SIDE = 512
"""Longest side of a picture in the page, in pixels; larger pictures are reduced."""
_QUALITY = 80
_NOTE = "This picture cannot be shown."


def small_jpeg(data: bytes, size: tuple[int, int]) -> bytes:
    """Make a JPEG for the page. It has the aspect ratio of the annotated picture, even if the stored picture differs.

    Args:
        data: Bytes of the stored JPEG.
        size: `(height, width)` as annotated.

    Raises:
        ImageError: If the picture cannot be decoded, or has more pixels than the annotated size.
    """
    try:
        with open_stored_jpeg(data, at_most=size) as picture:
            picture.draft("RGB", _shown(size))  # large JPEGs are decoded at half or a quarter of their size
            small = picture.convert("RGB").resize(_shown(size), Image.Resampling.BICUBIC, reducing_gap=2.0)
    except (SyntaxError, OSError, ValueError, struct.error) as error:
        raise ImageError(f"cannot be decoded: {error}") from error
    return _jpeg(small)


def note_jpeg(size: tuple[int, int]) -> bytes:
    """Make a grey picture of this size with a note that the picture cannot be shown."""
    note = Image.new("RGB", _shown(size), "#666")
    ImageDraw.Draw(note).text((8, 8), _NOTE, "white")
    return _jpeg(note)


def _shown(size: tuple[int, int]) -> tuple[int, int]:
    """Return width and height in the page."""
    scale = min(1.0, PICTURE_SIDE / max(size))
    return max(1, round(size[1] * scale)), max(1, round(size[0] * scale))


def _jpeg(picture: Image.Image) -> bytes:
    file = BytesIO()
    picture.save(file, "JPEG", quality=_QUALITY)
    return file.getvalue()
