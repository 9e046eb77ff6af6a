"""Resizes images and masks to the network's input, brings scores back to the original size, and normalises images.

Images are resized like Pillow's BILINEAR (antialiased, uint8) and masks like its NEAREST, as the published pipelines
do. There is no augmentation, because words such as "left" and "tall" must stay true.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from refseg.arguments import check_number, check_word
from refseg.geometry import CLIP_MEAN, GeometryKind, place
from refseg.reading import Reading

_LOWEST_BITS = np.uint64(0x0101010101010101)
_ONE = np.uint8(1)  # np.add.at would convert a Python 1 for each pixel


@dataclass(frozen=True, slots=True, kw_only=True)
class Geometry:
    """The mapping between an original image and the network's input.

    Attributes:
        kind: `letterbox` keeps the aspect ratio, centres the picture and fills the border with the mean colour (CRIS).
            `stretch` changes the aspect ratio so that the picture fills the input (LAVT).
        size: `(height, width)` of the network's input in pixels.
        mean: Colour of the border, RGB from 0 to 1. It is the mean of the normalisation, which makes the border zero.

    Raises:
        UsageError: If the kind is unknown, or a side is below 1.
    """

    kind: GeometryKind
    size: tuple[int, int]
    mean: tuple[float, float, float] = CLIP_MEAN

    def __post_init__(self) -> None:
        check_word("geometry", self.kind, GeometryKind)
        for side in self.size:
            check_number("a side of the input", side, least=1)

    @classmethod
    def of(cls, reading: Reading) -> "Geometry":
        """Return the geometry that a `Reading` specifies."""
        return cls(kind=reading.geometry, size=reading.input_size, mean=reading.image_mean)

    def placed(self, original_size: tuple[int, int]) -> tuple[int, int, int, int]:
        """Return the rectangle of the picture in the input: `(top, left, height, width)` in pixels.

        Args:
            original_size: `(height, width)` of the image in pixels.
        """
        return place(self.kind, self.size, original_size)

    def apply_image(
        self,
        image: UInt8[Tensor, "3 h w"],
        original_size: tuple[int, int] | None = None,
        *,
        out: UInt8[Tensor, "H W 3"] | None = None,
    ) -> UInt8[Tensor, "3 H W"]:
        """Resize an image to the input. This is fastest if the image's memory is in the order `(h, w, 3)`.

        Args:
            image: RGB, 0 to 255, on any device.
            original_size: `(height, width)` of the original picture, if the image is a reduced copy. The image then
                fills the rectangle that the original would fill, so that image and mask match. If None, the image's own
                size is used.
            out: Contiguous memory to write to, on the same device. If None, new memory is allocated.

        Returns:
            A view of `out`.
        """
        if out is None:
            out = torch.empty(*self.size, 3, dtype=torch.uint8, device=image.device)
        top, left, height, width = self.placed(original_size or (image.shape[1], image.shape[2]))
        # The batch axis is added to (h, w, 3) before the permutation: added afterwards, torch is half as fast.
        channels_last = image.permute(1, 2, 0)[None].permute(0, 3, 1, 2)
        rows = out[top : top + height]
        # If the picture spans whole rows, `rows` is contiguous, and torch can resize directly into it.
        if (height, width) == tuple(image.shape[1:]):
            rows[:, left : left + width] = image.permute(1, 2, 0)
        elif not image.is_cpu:
            rows[:, left : left + width] = resize_as_floats(image, (height, width)).permute(1, 2, 0)
        elif width == self.size[1] and image.permute(1, 2, 0).is_contiguous():
            resize = torch.ops.aten._upsample_bilinear2d_aa.out
            resize(channels_last, (height, width), False, None, None, out=rows[None].permute(0, 3, 1, 2))
        else:
            resized = F.interpolate(channels_last, (height, width), mode="bilinear", antialias=True)[0]
            rows[:, left : left + width] = resized.permute(1, 2, 0)
        if (height, width) != self.size:
            border = _constant(tuple(round(255 * channel) for channel in self.mean), torch.uint8, out.device)
            for band in (out[:top], out[top + height :], rows[:, :left], rows[:, left + width :]):
                band[:] = border
        return out.permute(2, 0, 1)

    def apply_mask(
        self,
        run_ends: NDArray[np.int64],
        original_size: tuple[int, int],
        out: UInt8[np.ndarray, "H W"] | None = None,
    ) -> UInt8[np.ndarray, "H W"]:
        """Draw a mask at the input's size directly from its run lengths. The border is 0.

        Each run is cut into pieces of single columns. A piece of rows 1 to 3 flips the pixel values at row 1 and again
        at row 4, so that its column of marks is [0 1 0 0 1 0]. The running XOR of the marks from top to bottom is the
        drawn column: [0 1 1 1 0 0]. Resizing only maps the rows and columns of these marks.

        Args:
            run_ends: Running sums of COCO's run lengths in column order. The first run consists of zeros.
            original_size: `(height, width)` of the mask in pixels.
            out: Memory to draw into. If None, new memory is allocated.
        """
        if out is None:
            out = np.empty(self.size, np.uint8)
        top, left, height, width = self.placed(original_size)
        columns, starts, ends = _split_runs(run_ends, original_size[0])
        # `row_edges[y]` is the first row of the input that shows row y of the original or a later one. If 4 rows are
        # reduced to 2, which show the rows 1 and 3, the edges of the rows 0 to 4 are [0 0 1 1 2].
        row_edges, column_edges = _edges(original_size[0], height), _edges(original_size[1], width)
        starts, ends = row_edges[starts], row_edges[ends]
        first = column_edges[columns]
        repeats = column_edges[columns + 1] - first
        if width > original_size[1]:  # enlarged: a column of the original may become several columns of the input
            pieces = np.repeat(np.arange(len(first)), repeats)
            first = first[pieces] + np.arange(len(pieces)) - (np.cumsum(repeats) - repeats)[pieces]
            starts, ends = starts[pieces], ends[pieces]
        else:
            is_taken = repeats > 0
            first, starts, ends = first[is_taken], starts[is_taken], ends[is_taken]
        if not len(first):
            out[:] = 0
            return out
        # `changes` counts the marks of each pixel, one byte per pixel. The XOR runs over 64-bit words, that is over
        # eight columns at once. Only the lowest bit of each byte matters (a count modulo 2); the others are cleared.
        lowest, highest = int(starts.min()), int(ends.max())
        words = -(-self.size[1] // 8)
        changes = np.zeros((highest - lowest + 1, words * 8), np.uint8)
        flat = changes.reshape(-1)
        np.add.at(flat, (starts - lowest) * (words * 8) + first + left, _ONE)
        np.add.at(flat, (ends - lowest) * (words * 8) + first + left, _ONE)
        drawn = np.bitwise_xor.accumulate(changes[:-1].view(np.uint64), axis=0)
        drawn &= _LOWEST_BITS
        out[: top + lowest] = 0
        out[top + lowest : top + highest] = drawn.view(np.uint8)[:, : self.size[1]]
        out[top + highest :] = 0
        return out

    def invert(
        self, scores: Float[Tensor, "N H W"], original_size: tuple[int, int], size: tuple[int, int] | None = None
    ) -> Float[Tensor, "N h w"]:
        """Resize scores (logits or probabilities) bilinearly from the input's size to the original size.

        Args:
            scores: Scores at the input's size. The scores of the border are removed.
            original_size: `(height, width)` of the original image in pixels.
            size: `(height, width)` of the result in pixels. None means `original_size`.
        """
        assert tuple(scores.shape[-2:]) == self.size, "scores must have the input's size"
        top, left, height, width = self.placed(original_size)
        inside = scores[None, :, top : top + height, left : left + width]
        return F.interpolate(inside, size or original_size, mode="bilinear", align_corners=False)[0]


def resize_as_floats(image: UInt8[Tensor, "3 h w"], size: tuple[int, int]) -> UInt8[Tensor, "3 H W"]:
    """Resize in float32 and round, because GPUs have no uint8 kernel.

    The result differs from that of the uint8 kernel by at most one level.
    """
    resized = F.interpolate(image[None].float(), size, mode="bilinear", antialias=True)[0]
    return resized.round_().to(torch.uint8)


def normalise(
    images: UInt8[Tensor, "I 3 H W"], mean: tuple[float, float, float], std: tuple[float, float, float]
) -> Float[Tensor, "I 3 H W"]:
    """Convert pixels from 0..255 to float32 and normalise them, on the images' device.

    Args:
        images: RGB, 0 to 255.
        mean: Mean that is subtracted, in units of 0 to 1.
        std: Standard deviation that divides the result, in units of 0 to 1.
    """
    # One multiplication and one addition; their constants are computed in double precision.
    scale = _constant(tuple(1 / (255 * s) for s in std), torch.float32, images.device)
    shift = _constant(tuple(-m / s for m, s in zip(mean, std, strict=True)), torch.float32, images.device)
    return torch.addcmul(shift[:, None, None], images.float(), scale[:, None, None])


@lru_cache(maxsize=64)
def _constant(values: tuple[float, ...] | tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return a constant on a device. Callers must not change it.

    The constant is cached, because creating it at each call would wait for the device's queued work.
    """
    return torch.tensor(values, dtype=dtype, device=device)


def _split_runs(
    run_ends: NDArray[np.int64], height: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Cut runs of ones into pieces of single columns.

    The result gives, for each piece, the column, the first row and the row after the last row.

    For example, the height is 4 and the run ends are [2, 7, 8]. The ones are the pixels 2 to 6 in column order. These
    are rows 2 and 3 of column 0, and rows 0 to 2 of column 1. The result is the columns [0, 1], first rows [2, 0] and
    ends [4, 3].
    """
    num_runs = len(run_ends) // 2
    starts, lasts = run_ends[: 2 * num_runs : 2], run_ends[1::2] - 1
    columns, last_columns = starts // height, lasts // height
    rows, end_rows = starts - columns * height, lasts - last_columns * height + 1
    num_pieces = last_columns - columns + 1
    if num_runs and num_pieces.max() > 1:
        runs = np.repeat(np.arange(num_runs), num_pieces)
        number = np.arange(len(runs)) - (np.cumsum(num_pieces) - num_pieces)[runs]
        rows = np.where(number == 0, rows[runs], 0)
        end_rows = np.where(number == num_pieces[runs] - 1, end_rows[runs], height)
        columns = columns[runs] + number
    return columns, rows, end_rows


@lru_cache(maxsize=4096)
def _edges(length: int, resized: int) -> NDArray[np.int64]:
    """Return, for each original pixel, the first resized pixel that shows it or a later one, shape `(length + 1,)`."""
    return np.searchsorted(_nearest(length, resized), np.arange(length + 1))


@lru_cache(maxsize=4096)
def _nearest(length: int, resized: int) -> NDArray[np.int32]:
    """Return the original pixel that each resized pixel shows.

    Pillow itself is used for this, because no formula reproduces how Pillow rounds ties.
    """
    line = Image.fromarray(np.arange(length, dtype=np.int32)[None])
    return np.array(line.resize((resized, 1), Image.Resampling.NEAREST))[0]
