"""An exponential moving average of the weights, which is what is validated and kept as the result."""

import copy
from collections.abc import Iterator
from itertools import chain

import torch
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from refseg.models.model import SegmentationModel


class WeightAverage:
    """After each step: average = decay * average + (1 - decay) * weights.

    Parameters are averaged, and so are the floating-point buffers that are saved with them: the statistics of batch
    norms, which belong to the averaged weights. All other buffers are copied. Whole numbers (a grid, an index, a
    counter) have no mean, and a buffer that is not saved is built anew by a reader of the weights, so that only a copy
    gives the model that is read from a checkpoint.

    Attributes:
        model: The averaged model.
    """

    def __init__(self, model: SegmentationModel, *, decay: float) -> None:
        """Begin with the weights as they are.

        Args:
            model: Stays as it is; the average is a copy of it.
            decay: Between 0 and 1.
        """
        self.model = copy.deepcopy(model)
        self._average = get_ema_multi_avg_fn(decay)
        self._saved = frozenset(model.state_dict())

    @torch.no_grad()
    def update(self, model: SegmentationModel) -> None:
        """Take in the weights after a step that was taken."""
        averages: list[Tensor] = []
        values: list[Tensor] = []
        for (name, average), (_, value) in zip(_tensors(self.model), _tensors(model), strict=True):
            if name in self._saved and average.is_floating_point():
                averages.append(average)
                values.append(value)
            else:
                average.copy_(value)
        self._average(averages, values, None)


def _tensors(model: SegmentationModel) -> Iterator[tuple[str, Tensor]]:
    return chain(model.named_parameters(), model.named_buffers())
