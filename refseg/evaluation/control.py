"""The shuffled control: the same predictions, each scored against another target of the same image.

A model that finds salient objects without reading keeps its score under it; one that reads loses most of it.
"""

import numpy as np
from numpy.typing import NDArray

from refseg.data.index import ManifestIndex
from refseg.evaluation.rows import SentenceOrder


def target_rows(index: ManifestIndex, order: SentenceOrder) -> NDArray[np.int64]:
    """The row whose target each row's sentences are scored against, shape (rows,); -1: they are left out.

    Shuffled, the targets of an image move on by one in a circle, so each sentence meets a target that is not its own.
    Refs with the same mask count as one target and move together. Refs without a target, and images with a single
    one, are left out.
    """
    if order == "own":
        return np.arange(index.num_rows)
    targets = np.full(index.num_rows, -1)
    for first, end in zip(index.row_start[:-1].tolist(), index.row_start[1:].tolist(), strict=True):
        groups: dict[bytes, list[int]] = {}
        for row in range(first, end):
            if not index.no_target[row]:
                groups.setdefault(index.counts(row).tobytes(), []).append(row)
        circle = list(groups.values())
        if len(circle) > 1:
            for rows, others in zip(circle, circle[1:] + circle[:1], strict=True):
                targets[rows] = others[0]
    return targets
