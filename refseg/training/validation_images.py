"""The part of a split that is scored while training goes on: the same images in every run."""

import numpy as np
import xxhash
from numpy.typing import NDArray

from refseg.data.index import ManifestIndex


def choose_images(index: ManifestIndex, num_images: int) -> NDArray[np.int64] | None:
    """Choose images by a hash of their ids, so that neither seed nor order nor processes move them.

    Of two numbers the smaller one's images are among the larger one's.

    Args:
        index: Of the split.
        num_images: How many; 0 or more than there are: all.

    Returns:
        Their positions in the index, ascending; None: all.
    """
    if not 0 < num_images < index.num_images:
        return None
    hashes = [xxhash.xxh3_64_intdigest(str(image_id).encode()) for image_id in index.image_id.tolist()]
    return np.sort(np.argsort(np.array(hashes, np.uint64), kind="stable")[:num_images])
