"""Where a picture of any size lies in one of a given size: what the build and the loader must agree on. No torch."""

from typing import Literal

GeometryKind = Literal["letterbox", "stretch"]
"""`letterbox` keeps the aspect and centres (CRIS); `stretch` fills (LAVT)."""
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
"""Mean colour, RGB from 0 to 1, with which OpenAI's CLIP was trained."""


def place(kind: GeometryKind, size: tuple[int, int], original_size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Where a picture lies: `(top, left, height, width)` in pixels.

    Args:
        kind: See `GeometryKind`.
        size: `(height, width)` of what it is put into.
        original_size: `(height, width)` of the picture.
    """
    if kind == "stretch":
        return (0, 0, *size)
    scale = min(size[0] / original_size[0], size[1] / original_size[1])
    # A picture of a pixel's height and a thousand's width still has a row.
    height, width = (max(1, round(scale * side)) for side in original_size)
    return (size[0] - height) // 2, (size[1] - width) // 2, height, width
