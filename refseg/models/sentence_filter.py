"""A filter made from the sentence and run over its image's features: how CRIS segments and LTS locates."""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F


class SentenceFilter(nn.Module):
    """One response per position: conv(x, K(s)) + b(s), where K(s) and b(s) are one linear map of the sentence.

    Source: CRIS's code (`Projector.txt`, and its order of numbers: channels, rows, columns, then the bias); LTS's
    abstract and later papers name "relevance filtering" without a formula. CRIS runs it as one grouped convolution over
    all B * C channels; here each tap is a product with all positions, and the taps are added, shifted: the same sum.
    """

    def __init__(self, *, sentence_dim: int, dim: int, size: int) -> None:
        """Build.

        Args:
            sentence_dim: Width of the sentence feature.
            dim: C, channels of the features.
            size: Side of the filter, odd.
        """
        super().__init__()
        self.size = size
        self.generate = nn.Linear(sentence_dim, dim * size**2 + 1)

    def forward(self, x: Float[Tensor, "B C h w"], sentence: Float[Tensor, "B S"]) -> Float[Tensor, "B 1 h w"]:
        """Respond; beyond the edges there are zeros."""
        made = self.generate(sentence)
        taps = made[:, :-1].unflatten(1, (x.shape[1], -1)).transpose(1, 2)  # (B, size * size, C)
        h, w = x.shape[2:]
        responses = F.pad((taps @ x.flatten(2)).unflatten(2, (h, w)), [self.size // 2] * 4)
        shifted = [
            responses[:, row * self.size + column, row : row + h, column : column + w]
            for row in range(self.size)
            for column in range(self.size)
        ]
        return (torch.stack(shifted).sum(dim=0) + made[:, -1, None, None])[:, None]
