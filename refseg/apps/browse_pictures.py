"""The pictures of a browse page: each in the shape of the annotated picture, made small; a note for those that fail."""

import struct
from io import BytesIO

from PIL import Image, ImageDraw

from refseg.errors import ImageError
from refseg.jpeg_header import open_stored_jpeg

PICTURE_SIDE = 512
"""Pixels of the longer side of a picture in the page; larger ones are made smaller."""
_QUALITY = 80
_NOTE = "This picture cannot be shown."


def small_jpeg(data: bytes, size: tuple[int, int]) -> bytes:
    """A JPEG for the page, in the shape of the annotated picture however it was stored.

    Args:
        data: Bytes of the JPEG.
        size: `(height, width)` as annotated.

    Raises:
        ImageError: If it cannot be decoded, or has more pixels than annotated.
    """
    try:
        with open_stored_jpeg(data, at_most=size) as picture:
            picture.draft("RGB", _shown(size))  # decodes a large one at half or a quarter of its size
            small = picture.convert("RGB").resize(_shown(size), Image.Resampling.BICUBIC, reducing_gap=2.0)
    except (SyntaxError, OSError, ValueError, struct.error) as error:
        raise ImageError(f"cannot be decoded: {error}") from error
    return _jpeg(small)


def note_jpeg(size: tuple[int, int]) -> bytes:
    """A grey picture that says that the picture of this size cannot be shown."""
    note = Image.new("RGB", _shown(size), "#666")
    ImageDraw.Draw(note).text((8, 8), _NOTE, "white")
    return _jpeg(note)


def _shown(size: tuple[int, int]) -> tuple[int, int]:
    """Width and height in the page."""
    scale = min(1.0, PICTURE_SIDE / max(size))
    return max(1, round(size[1] * scale)), max(1, round(size[0] * scale))


def _jpeg(picture: Image.Image) -> bytes:
    file = BytesIO()
    picture.save(file, "JPEG", quality=_QUALITY)
    return file.getvalue()
