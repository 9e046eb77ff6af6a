"""`torch.compile` of a model's two regions of fixed shape: the image side, and the decoder."""

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from refseg.models.model import ModelOutput, SegmentationModel


class CompiledModel(nn.Module):
    """A model's forward pass with `encode_image` and `decode_all` compiled, each as one graph without a break.

    The sentence side stays as it is: it is 4 % of a pair's work. Shapes are taken as fixed, so recipes with
    `train.compile` do not trim tokens. The model itself is not changed: validation runs it uncompiled, with batches of
    other sizes.
    """

    def __init__(self, model: SegmentationModel, *, fixed_sentences: bool, backend: str = "inductor") -> None:
        """Wrap; compilation comes with the first call.

        Args:
            model: Holds the parameters.
            fixed_sentences: Each batch has as many sentences; False compiles the decoder for any number of them.
            backend: As of `torch.compile`; tests take one that needs no C++ compiler.
        """
        super().__init__()
        self.model = model
        self._encode_image = torch.compile(model.encode_image, fullgraph=True, dynamic=False, backend=backend)
        self._decode_all = torch.compile(
            model.decode_all, fullgraph=True, dynamic=False if fixed_sentences else None, backend=backend
        )

    def forward(
        self,
        images: Float[Tensor, "I 3 H W"],
        token_ids: Int64[Tensor, "B L"],
        token_mask: Bool[Tensor, "B L"],
        image_index: Int64[Tensor, "B"],
    ) -> ModelOutput:
        """As the model's own."""
        text_state = self.model.encode_text(token_ids, token_mask)
        output: ModelOutput = self._decode_all(self._encode_image(images), text_state, image_index)
        return output
