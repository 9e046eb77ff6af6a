"""Reads a mask drawn as a PNG: what is not 0 is the object."""

import struct
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipelines.masks import encode_mask
from pipelines.sources.table import RowFault
from refseg.schema import Rle

_ALPHA = ("LA", "PA", "RGBA")
_PALETTE = ("P", "PA")


def read_mask(data: bytes) -> Rle:
    """Read a mask file: grey, palette (any index but 0), 16 bits or colour; an alpha channel says nothing.

    Raises:
        RowFault: If it is no PNG that can be read whole, or a palette does not show 0 as black: a picture of two
            colours made into one of indices may have its object at 0, and nothing else would tell.
    """
    try:
        with Image.open(BytesIO(data), formats=["PNG"]) as picture:
            pixels: NDArray[Any] = np.asarray(picture)
            has_alpha = picture.mode in _ALPHA
            background = picture.getpalette("RGB") if picture.mode in _PALETTE else None
    except (OSError, SyntaxError, ValueError, LookupError, struct.error, Image.DecompressionBombError) as error:
        reason = " ".join(str(error).split()).partition(" <")[0] or type(error).__name__
        raise RowFault(f"cannot be read as a PNG ({reason})") from error
    if background and any(background[:3]):
        raise RowFault(
            f"has a palette that shows 0, the background, as {tuple(background[:3])}, expected black; save it as a "
            "picture in shades of grey"
        )
    if pixels.ndim == 3:
        pixels = np.any(pixels[..., :-1] if has_alpha else pixels, axis=2)
    return encode_mask(pixels)
