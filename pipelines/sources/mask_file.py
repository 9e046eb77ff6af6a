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


def read_mask(data: bytes) -> Rle:
    """Read a mask file: grey, palette (any index but 0), 16 bits or colour; an alpha channel says nothing.

    Raises:
        RowFault: If it is no PNG that can be read whole.
    """
    try:
        with Image.open(BytesIO(data), formats=["PNG"]) as picture:
            pixels: NDArray[Any] = np.asarray(picture)
            has_alpha = picture.mode in _ALPHA
    except (OSError, SyntaxError, ValueError, LookupError, struct.error, Image.DecompressionBombError) as error:
        reason = " ".join(str(error).split()).partition(" <")[0] or type(error).__name__
        raise RowFault(f"cannot be read as a PNG ({reason})") from error
    if pixels.ndim == 3:
        pixels = np.any(pixels[..., :-1] if has_alpha else pixels, axis=2)
    return encode_mask(pixels)
