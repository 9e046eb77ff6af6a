"""What a position prior is to learn: where the object is, coarsely."""

from typing import Literal

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor
from torch.nn import functional as F

LocationTarget = Literal["area", "gaussian", "ellipse"]


def location_target(
    masks: UInt8[Tensor, "B H W"], grid: tuple[int, int], kind: LocationTarget
) -> Float[Tensor, "B h w"]:
    """Targets on a coarse grid, 0 to 1; zero everywhere for an empty mask.

    Source: ours, for no source says which LTS takes. `area` is the object's share of each cell. On the box around
    the mask, `ellipse` is 1 at cells whose centre lies in the ellipse that the box holds, and `gaussian` falls from 1
    at the box's centre, its standard deviation a quarter of the box's side.

    Args:
        masks: 1 where the object is, else 0.
        grid: `(h, w)`, which divide H and W.
        kind: Of the blob.
    """
    height, width = masks.shape[1:]
    h, w = grid
    if kind == "area":
        return F.avg_pool2d(masks[:, None].float(), (height // h, width // w))[:, 0]
    occupied = masks.bool()
    squared = _squared_distance(occupied.any(2), h)[:, :, None] + _squared_distance(occupied.any(1), w)[:, None, :]
    blob = (squared <= 1).float() if kind == "ellipse" else torch.exp(-2 * squared)
    return blob * occupied.any(2).any(1)[:, None, None]


def _squared_distance(occupied: Bool[Tensor, "B N"], cells: int) -> Float[Tensor, "B n"]:
    """Of each cell's centre from the middle of the occupied range along one side, in half lengths of that range."""
    size = occupied.shape[1]
    first = occupied.int().argmax(1)
    end = size - occupied.flip(1).int().argmax(1)
    middle, half = (first + end) / 2, (end - first) / 2
    centres = (torch.arange(cells, device=occupied.device) + 0.5) * (size / cells)
    return ((centres - middle[:, None]) / half[:, None]) ** 2
