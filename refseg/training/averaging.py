"""An exponential moving average of the weights, which is what is validated and kept as the result."""

from typing import cast

from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from refseg.models.model import SegmentationModel


class WeightAverage:
    """After each step: average = decay * average + (1 - decay) * weights; batch statistics are averaged likewise."""

    def __init__(self, model: SegmentationModel, *, decay: float) -> None:
        """Begin with the weights as they are.

        Args:
            model: Stays as it is; the average is a copy of it.
            decay: Between 0 and 1.
        """
        self._averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)
        self._averaged.n_averaged.fill_(1)

    @property
    def model(self) -> SegmentationModel:
        """The averaged model."""
        return cast("SegmentationModel", self._averaged.module)

    def update(self, model: SegmentationModel) -> None:
        """Take in the weights after a step."""
        self._averaged.update_parameters(model)
