"""A rank's batch in parts that fit its memory; the step's loss is the same sum."""

import torch

from refseg.data.batch import Batch


def split_batch(batch: Batch, parts: int) -> list[Batch]:
    """Split by images, so that expressions stay with the image they share.

    `num_global` stays that of the whole step, so the parts' losses add up to the step's. What differs from the
    whole batch is what a batch norm sees: the images of a part.

    Args:
        batch: Of one rank, `image_index` in ascending order.
        parts: How many; fewer where there are fewer images.
    """
    if parts == 1:
        return [batch]
    split = []
    for images in torch.arange(len(batch.images), device=batch.images.device).chunk(parts):
        first, last = int(images[0]), int(images[-1])
        mine = (batch.image_index >= first) & (batch.image_index <= last)
        split.append(
            Batch(
                images=batch.images[first : last + 1],
                image_index=batch.image_index[mine] - first,
                masks=batch.masks[mine],
                token_ids=batch.token_ids[mine],
                token_mask=batch.token_mask[mine],
                row_index=batch.row_index[mine],
                sentence_index=batch.sentence_index[mine],
                is_pad=batch.is_pad[mine],
                num_global=batch.num_global,
            )
        )
    return split
