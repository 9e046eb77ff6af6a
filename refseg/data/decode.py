"""JPEG bytes to RGB pixels: the one place that knows the decoder."""

from collections.abc import Sequence
from functools import cache

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor
from torchvision.io import ImageReadMode, decode_jpeg

from refseg.errors import ImageError
from refseg.jpeg_header import jpeg_size, open_stored_jpeg


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
            with open_stored_jpeg(data.tobytes(), at_most=jpeg_size(data.data)) as picture:
                return torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1)
        except (OSError, ValueError) as error:
            raise ImageError(f"cannot be decoded: {error}") from error


def is_plain(data: UInt8[np.ndarray, "bytes"]) -> bool:
    """True for what a GPU's decoder makes RGB of without doubt: three channels that are brightness and colour.

    Greyscale and CMYK are not, nor are files whose three channels are red, green and blue already.
    """
    try:
        with open_stored_jpeg(data.tobytes()) as picture:
            says = picture.info
            return picture.mode == "RGB" and ("jfif" in says or says.get("adobe_transform") == 1)
    except ImageError:
        return False


def decode_plain_rgb(files: Sequence[UInt8[Tensor, "_"]], device: torch.device) -> list[UInt8[Tensor, "3 _ _"]]:
    """Decode JPEGs together to RGB, 0 to 255, on a device; each is to be `is_plain`.

    A GPU decodes with nvJPEG, whose pixels differ from libjpeg's by a level or so, at sharp edges of colour by more:
    it enlarges the coarser colour channels in a simpler way. A CPU decodes as `decode_rgb` does.

    Args:
        files: Bytes of each file, in the CPU's memory.
        device: Where the pixels will be.

    Raises:
        ImageError: If the decoder refuses one of them; it does not say which.
    """
    decode = _decode_by_gpu if device.type == "cuda" else _decode
    try:
        return decode(files, device) if files else []
    except RuntimeError as error:
        raise ImageError(f"one of {len(files)} pictures cannot be decoded: {error}") from error


def _decode(files: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    pictures: list[Tensor] = decode_jpeg(list(files), mode=ImageReadMode.RGB, device=device)
    return pictures


def _decode_by_gpu(files: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    """Decode with nvJPEG into memory that no queued work reads, from memory that stays until it has been read.

    torchvision decodes on a stream of its own, which does not wait for the caller's stream, and nvJPEG returns before
    it has decoded. Memory of the caller's stream may still be read by kernels that are queued there, so the pixels are
    allocated on a stream of their own; `record_stream` keeps them from being allocated again before the caller's
    stream has passed. The files are kept until the next call, which begins by waiting for the decoder's stream.
    """
    caller, own = torch.cuda.current_stream(device), _decoder_stream(device)
    with torch.cuda.stream(own):
        pictures = _decode(files, device)  # `own` waits for the decoder
    caller.wait_stream(own)
    for picture in pictures:
        picture.record_stream(caller)
    _files_in_use[device] = files
    return pictures


_files_in_use: dict[torch.device, Sequence[Tensor]] = {}
"""The files of the newest call, which nvJPEG may still be reading. torchvision has one decoder in a process."""


@cache
def _decoder_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)
