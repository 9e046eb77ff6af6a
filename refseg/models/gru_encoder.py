"""A bidirectional GRU over learned word vectors: the text encoder of the papers before transformers."""

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn


class BiGruTextEncoder(nn.Module):
    """Token ids to word features by two GRUs, one from each end, and their weighted mean as the sentence.

    Source: LTS names a bidirectional GRU (later papers say so; its text is not at hand). From MCN's code (Luo et al.
    2020, of the same time) are 300 numbers per word vector, the sum of both directions, and a sentence that is the
    words weighed by attention; there each channel has weights of its own, padding included, here one weight per word,
    which can be shown, and none for padding. Ours: the vectors start random, for our shards hold CLIP's byte-pair ids
    and not the words that published vectors (GloVe) are of; SOS and EOS are words among the others.

    The second GRU reads each sentence from its own end, so that padding comes last for both and changes nothing.
    """

    def __init__(self, *, dim: int, vector_dim: int = 300, vocab_size: int = 49408) -> None:
        """Build.

        Args:
            dim: Hidden width of each direction, and width of words and sentence.
            vector_dim: Of the word vectors.
            vocab_size: Rows of the table of vectors: CLIP's vocabulary.
        """
        super().__init__()
        self.width = self.output_dim = dim
        self.token_embedding = nn.Embedding(vocab_size, vector_dim)
        self.from_start = nn.GRU(vector_dim, dim, batch_first=True)
        self.from_end = nn.GRU(vector_dim, dim, batch_first=True)
        self.score = nn.Linear(dim, 1, bias=False)

    def forward(
        self, token_ids: Int64[Tensor, "B L"], token_mask: Bool[Tensor, "B L"]
    ) -> tuple[Float[Tensor, "B L W"], Float[Tensor, "B W"]]:
        """Encode sentences.

        Args:
            token_ids: SOS, words, EOS, then anything.
            token_mask: True from SOS to EOS.

        Returns:
            Word features, and the sentences' features.
        """
        vectors = self.token_embedding(token_ids)
        mirror = _mirror(token_mask)
        forth, _ = self.from_start(vectors)
        back, _ = self.from_end(_take(vectors, mirror))
        words = forth + _take(back, mirror)
        weights = self.word_weights(words, token_mask)
        return words, (weights[:, None] @ words)[:, 0]

    def word_weights(self, words: Float[Tensor, "B L W"], token_mask: Bool[Tensor, "B L"]) -> Float[Tensor, "B L"]:
        """Share of each word in its sentence: rows sum to 1, padding has 0."""
        return self.score(words)[:, :, 0].masked_fill(~token_mask, -torch.inf).softmax(dim=1)


def _mirror(token_mask: Bool[Tensor, "B L"]) -> Int64[Tensor, "B L"]:
    """Where each place lies when the words alone change their order to its reverse; its own inverse."""
    places = torch.arange(token_mask.shape[1], device=token_mask.device)
    return torch.where(token_mask, token_mask.sum(dim=1, keepdim=True) - 1 - places, places)


def _take(x: Float[Tensor, "B L W"], places: Int64[Tensor, "B L"]) -> Float[Tensor, "B L W"]:
    return x.gather(1, places[:, :, None].expand_as(x))
