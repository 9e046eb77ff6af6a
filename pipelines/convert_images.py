"""Converts pictures to JPEG and rotates them upright if the user requests it, before anything else reads them."""

import struct
import warnings
from dataclasses import dataclass
from io import BytesIO

from PIL import Image, ImageOps, UnidentifiedImageError

from pipelines.jpeg_faults import JpegFault, find_orientation, open_jpeg
from refseg.dataset.schema import MAX_PIXELS, MAX_SIDE
from refseg.file_kinds import describe_other_kind

_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "AVIF", "HEIF")
"""Kinds that are converted, as Pillow names them; it has AVIF and HEIF in some builds or with a plugin only."""
_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr")
_UPRIGHT = 1
_DAMAGES = (OSError, SyntaxError, ValueError, LookupError, struct.error, Image.DecompressionBombError)


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageConversion:
    """What is done to pictures.

    Attributes:
        quality: JPEG quality of pictures that are converted or rotated, 1 to 100.
        is_upright: True: pictures are rotated and mirrored as their EXIF orientation says, and lose it.
    """

    quality: int
    is_upright: bool = False

    def __str__(self) -> str:
        return f"jpeg quality {self.quality}{' exif apply' if self.is_upright else ''}"


def convert_to_jpeg(data: bytes, conversion: ImageConversion) -> bytes | JpegFault:
    """Return a picture as a JPEG; a JPEG that need not be rotated is returned as it is.

    Transparency is dropped, as Pillow's `convert("RGB")` drops it; greyscale stays greyscale.

    Args:
        data: Content of the file.
        conversion: The quality, and whether to rotate.

    Returns:
        The JPEG, or the fault because of which there is none.
    """
    if data.startswith(b"\xff\xd8\xff"):
        jpeg = open_jpeg(data)
        if isinstance(jpeg, JpegFault):
            return jpeg
        if not conversion.is_upright or find_orientation(jpeg) in (None, _UPRIGHT):
            return data
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the size is compared below
            picture = Image.open(BytesIO(data), formats=[name for name in _FORMATS if _is_known(name)])
        with picture:
            width, height = picture.size
            if max(width, height) > MAX_SIDE or width * height > MAX_PIXELS:
                return JpegFault(
                    "not_a_jpeg", f"is {width} x {height} pixels, expected at most {MAX_PIXELS}; reduce it"
                )
            if getattr(picture, "n_frames", 1) > 1:
                return JpegFault("not_a_jpeg", f"holds {picture.n_frames} pictures, expected one; save one of them")
            if picture.mode not in _MODES:
                found = f"has pixels of the kind {picture.mode}, expected 8 bits for each colour"
                return JpegFault(
                    "not_a_jpeg", f"{found}; convert it to 8 bits first, which takes a choice of the range"
                )
            shown = ImageOps.exif_transpose(picture) if conversion.is_upright else picture
            plain = shown.convert("L" if shown.mode in ("1", "L", "LA") else "RGB")
    except UnidentifiedImageError:
        return JpegFault("not_a_jpeg", describe_other_kind(data, "JPEG"))
    except _DAMAGES as error:
        return JpegFault("truncated_image", f"cannot be decoded completely ({error}); fetch the file again")
    file = BytesIO()
    plain.save(file, "jpeg", quality=conversion.quality)
    return file.getvalue()


def _is_known(name: str) -> bool:
    Image.init()
    return name in Image.OPEN
