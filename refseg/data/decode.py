"""Decodes JPEG bytes to RGB pixels, on the CPU or a GPU. No other file calls a decoder for training images."""

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
    """Decode a JPEG to RGB, 0 to 255. The memory order is `(h, w, 3)`, for which `Geometry.apply_image` is fastest.

    A greyscale value is repeated in all channels. An EXIF rotation is not applied, because annotations refer to the
    stored pixels.

    Args:
        data: Bytes of the file. The array must be writable, because torch shares the memory.

    Raises:
        ImageError: If the bytes are not a complete JPEG.
    """
    try:
        return decode_jpeg(torch.from_numpy(data), mode=ImageReadMode.RGB)
    except RuntimeError:  # formats that libjpeg does not convert to RGB, mostly CMYK
        try:
            with open_stored_jpeg(data.tobytes(), at_most=jpeg_size(data.data)) as picture:
                return torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1)
        except (OSError, ValueError) as error:
            raise ImageError(f"cannot be decoded: {error}") from error


def is_plain(data: UInt8[np.ndarray, "bytes"]) -> bool:
    """Return True if a GPU's decoder certainly gives the right RGB values. This is the case for YCbCr files.

    The result is False for greyscale and CMYK files, and for files that store red, green and blue.
    """
    try:
        with open_stored_jpeg(data.tobytes()) as picture:
            info = picture.info
            return picture.mode == "RGB" and ("jfif" in info or info.get("adobe_transform") == 1)
    except ImageError:
        return False


def decode_plain_rgb(files: Sequence[UInt8[Tensor, "_"]], device: torch.device) -> list[UInt8[Tensor, "3 _ _"]]:
    """Decode several JPEGs to RGB, 0 to 255, on a device. `is_plain` must be True for each file.

    A GPU decodes with nvJPEG. The pixels differ from those of libjpeg by about one level, and by more at sharp colour
    edges. The reason is that nvJPEG upsamples the colour channels in a simpler way. A CPU decodes as `decode_rgb` does.

    Args:
        files: Bytes of each file, in the CPU's memory.
        device: The device that decodes and receives the pixels.

    Raises:
        ImageError: If the decoder refuses one of the files. The decoder does not report which file it is.
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
    """Decode with nvJPEG. Input and output memory remain valid while the decoder runs.

    torchvision decodes on its own stream, which does not wait for the caller's stream. nvJPEG returns before it has
    finished. Two rules follow:

    - Output: memory allocated on the caller's stream may still be read by kernels queued there. So the pixels are
      allocated on a separate stream, and `record_stream` keeps them allocated until the caller's stream is done.
    - Input: the files are kept until the next call, which begins by waiting for the decoder's stream.
    """
    caller, own = torch.cuda.current_stream(device), _decoder_stream(device)
    with torch.cuda.stream(own):
        pictures = _decode(files, device)  # torchvision makes `own` wait for the decoder's stream
    caller.wait_stream(own)
    for picture in pictures:
        picture.record_stream(caller)
    _files_in_use[device] = files
    return pictures


_files_in_use: dict[torch.device, Sequence[Tensor]] = {}
"""The files of the last call, which nvJPEG may still be reading. torchvision has one decoder per process."""


@cache
def _decoder_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)
