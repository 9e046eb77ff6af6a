"""Traces the outline of a mask as an SVG path. A page can stroke or fill the path, and enlarging keeps it sharp."""

import numpy as np
from jaxtyping import Bool


def outline_path(mask: Bool[np.ndarray, "H W"]) -> str:
    """Trace the border of a mask along the edges of its pixels.

    A grid point is a corner of the outline where an odd number of the four pixels around it belong to the mask. The
    corners of one row of grid points, from left to right, are the ends of horizontal edges. The first corner is joined
    to the second, and the third to the fourth. The corners of one column are the ends of vertical edges in the same
    way. A walk that takes a horizontal and a vertical edge in turn closes one ring of the outline:

        . # #      corners (1, 0) (3, 0)     the rows join    (1, 0)-(3, 0), (0, 1)-(1, 1), (0, 2)-(3, 2)
        # # #              (0, 1) (1, 1)     the columns join (0, 1)-(0, 2), (1, 0)-(1, 1), (3, 0)-(3, 2)
                           (0, 2) (3, 2)

    `outlinePath` of `viewer.js` does the same in a page that holds run lengths.

    Returns:
        Path data whose interior, by the even-odd rule, is the mask. One unit is one pixel, and the origin is the upper
        left corner. An empty mask gives an empty path.
    """
    padded = np.pad(mask, 1)
    y, x = np.nonzero(padded[:-1, :-1] ^ padded[:-1, 1:] ^ padded[1:, :-1] ^ padded[1:, 1:])
    by_column = np.lexsort((y, x))
    below = np.empty(len(x), np.int64)
    below[by_column] = by_column.reshape(-1, 2)[:, ::-1].reshape(-1)
    columns, rows, across = x.tolist(), y.tolist(), below.tolist()
    is_open, rings = [True] * len(columns), []
    for first in range(len(columns)):
        if not is_open[first]:
            continue
        corner, steps = first, [f"M{columns[first]} {rows[first]}"]
        while is_open[corner]:
            beside = corner ^ 1  # corners are sorted by row, then by column: an edge joins 2n and 2n + 1
            is_open[corner] = is_open[beside] = False
            steps.append(f"h{columns[beside] - columns[corner]}")
            corner = across[beside]
            steps.append(f"v{rows[corner] - rows[beside]}")
        rings.append("".join(steps) + "z")
    return "".join(rings)
