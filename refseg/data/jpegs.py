"""The images of a batch as compressed JPEGs, which are decoded on the device."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from refseg.data.decode import decode_plain_rgb, decode_rgb, is_plain
from refseg.data.index import ManifestIndex
from refseg.data.transforms import Geometry
from refseg.errors import DatasetError, ImageError


@dataclass(frozen=True, slots=True, kw_only=True)
class Jpegs:
    """The JPEG files of a batch in one tensor, each file once, with the data needed to decode and resize them.

    Attributes:
        data: Bytes of all files, one after the other, in the CPU's memory. The device's decoder reads them from there.
        offsets: Offset of each file in `data`, and the end of the last file.
        is_plain: For each file, True if the device's decoder can be used (see `decode.is_plain`).
        original_sizes: `(height, width)` in pixels to which each picture's annotations refer.
        image_ids: Image id of each file, for error messages.
        shown: For each image of the batch, the index of the file that contains it.
        geometry: Geometry from the original picture to the network's input.
    """

    data: UInt8[Tensor, "bytes"]
    offsets: Int64[np.ndarray, "files_and_end"]
    is_plain: tuple[bool, ...]
    original_sizes: tuple[tuple[int, int], ...]
    image_ids: tuple[int, ...]
    shown: tuple[int, ...]
    geometry: Geometry

    @classmethod
    def read(cls, index: ManifestIndex, images: Sequence[int], geometry: Geometry) -> "Jpegs":
        """Read and check the files of a batch.

        Args:
            index: Index of the dataset.
            images: Positions of the images in the index, in the order of the batch. A repeated image is read once.
            geometry: Geometry from the original picture to the network's input.

        Raises:
            DatasetError: If a file cannot be read, or differs from the one that was built.
        """
        numbers = {image: number for number, image in enumerate(dict.fromkeys(images))}
        files = [np.frombuffer(index.read_image_bytes(image), np.uint8) for image in numbers]
        return cls(
            data=torch.from_numpy(np.concatenate(files)),
            offsets=np.cumsum([0, *map(len, files)], dtype=np.int64),
            is_plain=tuple(is_plain(file) for file in files),
            original_sizes=tuple((int(index.height[image]), int(index.width[image])) for image in numbers),
            image_ids=tuple(int(index.image_id[image]) for image in numbers),
            shown=tuple(numbers[image] for image in images),
            geometry=geometry,
        )

    def decode(self, device: torch.device) -> UInt8[Tensor, "I 3 H W"]:
        """Decode and resize the images on a device, in channels_last memory.

        Raises:
            DatasetError: If a file cannot be decoded.
        """
        files = [self.data[start:end] for start, end in zip(self.offsets[:-1], self.offsets[1:], strict=True)]
        plain = [number for number, is_easy in enumerate(self.is_plain) if is_easy]
        try:
            pictures = dict(zip(plain, decode_plain_rgb([files[number] for number in plain], device), strict=True))
        except ImageError:
            pictures = {}  # the CPU's decoder accepts more files, and its error tells which file is at fault
        for number in range(len(files)):
            if number not in pictures:
                pictures[number] = self._decode_here(files[number], self.image_ids[number]).to(device)
        slots = torch.empty((len(self.shown), *self.geometry.size, 3), dtype=torch.uint8, device=device)
        done: dict[int, int] = {}
        for slot, number in enumerate(self.shown):
            if number in done:
                slots[slot] = slots[done[number]]
            else:
                self.geometry.apply_image(pictures[number], self.original_sizes[number], out=slots[slot])
            done[number] = slot
        return slots.permute(0, 3, 1, 2)

    def _decode_here(self, file: UInt8[Tensor, "_"], image_id: int) -> UInt8[Tensor, "3 _ _"]:
        try:
            return decode_rgb(file.numpy())
        except ImageError as error:
            raise DatasetError(f"image {image_id}: {error}; check the dataset with `refseg verify`") from error
