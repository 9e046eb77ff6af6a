"""JPEG bytes to RGB pixels: the one place that knows the decoder."""

from io import BytesIO

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor
from torchvision.io import ImageReadMode, decode_jpeg

from refseg.errors import ImageError


def decode_rgb(data: UInt8[np.ndarray, "bytes"]) -> UInt8[Tensor, "3 h w"]:
    """Decode a JPEG to RGB, 0 to 255; the memory is `(h, w, 3)`, as `Geometry.apply_image` likes it.

    Greyscale is repeated over the channels. An EXIF rotation is not applied: annotations are in stored pixels.

    Args:
        data: The file's bytes; writable, which torch asks of memory it looks at.

    Raises:
        ImageError: If these are not the bytes of a whole picture.
    """
    try:
        return decode_jpeg(torch.from_numpy(data), mode=ImageReadMode.RGB)
    except RuntimeError:  # what libjpeg does not turn into RGB by itself, CMYK above all
        try:
            with Image.open(BytesIO(data.tobytes())) as picture:
                return torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1)
        except OSError as error:
            raise ImageError(f"cannot be decoded: {error}") from error
