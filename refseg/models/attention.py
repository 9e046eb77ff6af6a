"""Multi-head attention with queries, keys and values of any width."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F


class MultiHeadAttention(nn.Module):
    """Attention of queries over memory, W_o softmax(Q K^T / sqrt(d_head)) V, with concatenated heads.

    Source: Vaswani et al. 2017, "Attention Is All You Need", Sec. 3.2.2. PyTorch's fused scaled-dot-product attention
    computes it, so that the attention map (900 x 900 x 8 in FCNet's decoder) is never stored.
    """

    def __init__(
        self,
        *,
        dim: int,
        num_heads: int,
        query_dim: int | None = None,
        memory_dim: int | None = None,
        dropout: float = 0.0,
    ) -> None:
        """Create the four projections, each with a bias.

        Args:
            dim: Width of the projected queries, keys and values, and of the output.
            num_heads: Number of heads, a divisor of `dim`.
            query_dim: Width of the queries; `dim` if None.
            memory_dim: Width of keys and values; `dim` if None.
            dropout: Dropout probability of the attention weights in training, 0 to 1, as in CRIS's code.
        """
        super().__init__()
        self.num_heads = num_heads
        self.dropout = dropout
        self.query = nn.Linear(query_dim or dim, dim)
        self.key = nn.Linear(memory_dim or dim, dim)
        self.value = nn.Linear(memory_dim or dim, dim)
        self.out = nn.Linear(dim, dim)
        for projection in (self.query, self.key, self.value):
            nn.init.xavier_uniform_(projection.weight)
        for projection in (self.query, self.key, self.value, self.out):
            nn.init.zeros_(projection.bias)

    def forward(
        self,
        query: Float[Tensor, "B N Q"],
        key: Float[Tensor, "B M K"],
        value: Float[Tensor, "B M K"],
        key_mask: Bool[Tensor, "B M"] | None = None,
    ) -> Float[Tensor, "B N D"]:
        """Return the attended values of each query, projected to width D.

        Args:
            query: N queries.
            key: M keys.
            value: M values.
            key_mask: True where a key may be attended to. None means everywhere. Every row must contain at least one
                True.
        """
        attended = F.scaled_dot_product_attention(
            self._heads(self.query(query)),
            self._heads(self.key(key)),
            self._heads(self.value(value)),
            attn_mask=None if key_mask is None else key_mask[:, None, None, :],
            dropout_p=self.dropout if self.training else 0.0,
        )
        return self.out(attended.transpose(1, 2).flatten(2))

    def weights(
        self,
        query: Float[Tensor, "B N Q"],
        key: Float[Tensor, "B M K"],
        key_mask: Bool[Tensor, "B M"] | None = None,
    ) -> Float[Tensor, "B heads N M"]:
        """Return the attention map for display. Rows sum to 1, and masked keys have 0.

        `forward` never stores this map. It is computed without dropout. `forward` describes the arguments.
        """
        queries, keys = self._heads(self.query(query)), self._heads(self.key(key))
        scores = queries @ keys.transpose(2, 3) / queries.shape[3] ** 0.5
        if key_mask is not None:
            scores = scores.masked_fill(~key_mask[:, None, None, :], -torch.inf)
        return scores.softmax(dim=3)

    def _heads(self, x: Float[Tensor, "B N D"]) -> Float[Tensor, "B heads N d"]:
        return x.unflatten(2, (self.num_heads, -1)).transpose(1, 2)
