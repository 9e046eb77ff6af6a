"""Text encoders compute word features and a sentence feature, with CLIP's transformer or a bidirectional GRU."""

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from refseg.errors import RecipeError


class TextBlock(nn.Module):
    """A pre-norm transformer layer with a causal mask and QuickGELU, x * sigmoid(1.702 x)."""

    def __init__(self, *, width: int, num_heads: int, depth: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.ln_1 = nn.LayerNorm(width)
        self.in_proj = nn.Linear(width, 3 * width)
        self.out_proj = nn.Linear(width, width)
        self.ln_2 = nn.LayerNorm(width)
        self.c_fc = nn.Linear(width, 4 * width)
        self.c_proj = nn.Linear(4 * width, width)

        nn.init.normal_(self.in_proj.weight, std=width**-0.5)
        nn.init.normal_(self.out_proj.weight, std=(width * 2 * depth) ** -0.5)
        nn.init.normal_(self.c_fc.weight, std=(2 * width) ** -0.5)
        nn.init.normal_(self.c_proj.weight, std=(width * 2 * depth) ** -0.5)
        nn.init.zeros_(self.in_proj.bias)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, x: Float[Tensor, "B L W"]) -> Float[Tensor, "B L W"]:
        """Return the tokens after causal self-attention and the MLP."""
        q, k, v = self.in_proj(self.ln_1(x)).unflatten(2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out_proj(attended.transpose(1, 2).flatten(2))
        hidden = self.c_fc(self.ln_2(x))
        return x + self.c_proj(hidden * torch.sigmoid(1.702 * hidden))


class ClipTextEncoder(nn.Module):
    """CLIP's text transformer, which returns the features of all words besides the sentence feature.

    Source: Radford et al. 2021 (CLIP), Sec. 2.4. FCNet Sec. 3.1 uses the words as F_t and the [EOS] token as the global
    feature. No mask for padding is needed, because attention is causal and padding comes last.
    """

    def __init__(
        self,
        *,
        width: int = 512,
        num_layers: int = 12,
        num_heads: int = 8,
        output_dim: int,
        context_length: int = 77,
        vocab_size: int = 49408,
    ) -> None:
        """Create the transformer with random weights from CLIP's initial distribution.

        Args:
            width: Width of the word features.
            num_layers: Number of transformer layers.
            num_heads: Number of attention heads, a divisor of `width`.
            output_dim: Width of the sentence feature. It is 1024 for CLIP's ResNet-50 and 512 for ResNet-101.
            context_length: Number of rows of the position table, which limits the length of a sentence.
            vocab_size: Number of rows of the token table.
        """
        super().__init__()
        self.width, self.output_dim = width, output_dim
        self.token_embedding = nn.Embedding(vocab_size, width)
        self.positional_embedding = nn.Parameter(Tensor(context_length, width))
        self.resblocks = nn.ModuleList(
            TextBlock(width=width, num_heads=num_heads, depth=num_layers) for _ in range(num_layers)
        )
        self.ln_final = nn.LayerNorm(width)
        self.text_projection = nn.Parameter(Tensor(width, output_dim))

        nn.init.normal_(self.token_embedding.weight, std=0.02)
        nn.init.normal_(self.positional_embedding, std=0.01)
        nn.init.normal_(self.text_projection, std=width**-0.5)

    def forward(
        self, token_ids: Int64[Tensor, "B L"], token_mask: Bool[Tensor, "B L"]
    ) -> tuple[Float[Tensor, "B L W"], Float[Tensor, "B D"]]:
        """Encode sentences.

        Args:
            token_ids: SOS, words, EOS, then padding with any ids. L is at most `context_length`.
            token_mask: True from SOS to EOS. The last True gives the position of EOS.

        Returns:
            Word features (B, L, W), and sentence features (B, D), which are the projected features of [EOS].
        """
        x = self.token_embedding(token_ids) + self.positional_embedding[: token_ids.shape[1]]
        for block in self.resblocks:
            x = block(x)
        words = self.ln_final(x)
        eos = token_mask.sum(dim=1) - 1
        sentence = words[torch.arange(words.shape[0], device=words.device), eos] @ self.text_projection
        return words, sentence


class BiGruTextEncoder(nn.Module):
    """Encodes words by two GRUs, one in each direction, and the sentence as a weighted mean of its words.

    Source: according to later papers, LTS uses a bidirectional GRU; its own text was not available. MCN's code (Luo et
    al. 2020), of the same time, gives word vectors of 300 values, the sum of both directions, and a sentence feature
    that weights the words by attention. There, each channel has weights of its own and padding has weights, too. Here,
    each word has a single weight, which can be displayed, and padding has none.

    Two choices are not from these sources. The word vectors start random, because shards hold CLIP's byte-pair ids,
    while published vectors (GloVe) belong to whole words. SOS and EOS are treated as words.

    The second GRU reads each sentence from its last word, so that padding comes last for both GRUs and has no effect.
    """

    def __init__(self, *, dim: int, vector_dim: int = 300, vocab_size: int = 49408) -> None:
        """Create the word vectors, the two GRUs and the score of a word.

        Args:
            dim: Hidden width of each GRU, and width of word and sentence features.
            vector_dim: Width of the word vectors.
            vocab_size: Number of word vectors. The default is the size of CLIP's vocabulary.
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
            token_ids: SOS, words, EOS, then padding with any ids.
            token_mask: True from SOS to EOS.

        Returns:
            Word features (B, L, W), and sentence features (B, W).
        """
        vectors = self.token_embedding(token_ids)
        mirror = _mirror(token_mask)
        forward, _ = self.from_start(vectors)
        backward, _ = self.from_end(_take(vectors, mirror))
        words = forward + _take(backward, mirror)
        weights = self.word_weights(words, token_mask)
        return words, (weights[:, None] @ words)[:, 0]

    def word_weights(self, words: Float[Tensor, "B L W"], token_mask: Bool[Tensor, "B L"]) -> Float[Tensor, "B L"]:
        """Return the weight of each word in the sentence feature. Rows sum to 1, and padding has 0."""
        return self.score(words)[:, :, 0].masked_fill(~token_mask, -torch.inf).softmax(dim=1)


def refuse_other_width(text_encoder: ClipTextEncoder | BiGruTextEncoder, dim: int, *, reader: str) -> None:
    """Refuse word features that differ in width from a module that attends to them without a projection.

    Args:
        text_encoder: Encoder that computes the word features.
        dim: Width of the module.
        reader: Name of the module, for the message.

    Raises:
        RecipeError: If the widths differ.
    """
    if text_encoder.width != dim:
        raise RecipeError(
            f"model.dim: found {dim}, expected {text_encoder.width}: {reader} attends to the words without a projection"
        )


def build_text_encoder(image_encoder: str, dim: int) -> ClipTextEncoder:
    """Build the text transformer that is used with an image encoder, with random weights.

    FCNet does not name the text encoder for Swin. The one of CLIP's ResNet-101 is used.

    Args:
        image_encoder: Name of the image encoder.
        dim: Width of the words and the sentence with the `tiny` image encoder.
    """
    match image_encoder:
        case "tiny":
            encoder = ClipTextEncoder(width=dim, num_layers=2, num_heads=4, output_dim=dim)
            # The word vectors are random, far apart and frozen. From CLIP's small standard deviation (0.02), a large
            # learning rate changes the vectors of all colours in the same way before the image features separate
            # the colours, and training then fails.
            nn.init.normal_(encoder.token_embedding.weight)
            encoder.token_embedding.requires_grad_(False)
            return encoder
        case "clip_resnet50":
            return ClipTextEncoder(output_dim=1024)
    return ClipTextEncoder(output_dim=512)


def _mirror(token_mask: Bool[Tensor, "B L"]) -> Int64[Tensor, "B L"]:
    """Return indices that reverse the words of each sentence and keep the padding. T T T F gives 2 1 0 3.

    Applying the indices twice restores the order.
    """
    positions = torch.arange(token_mask.shape[1], device=token_mask.device)
    return torch.where(token_mask, token_mask.sum(dim=1, keepdim=True) - 1 - positions, positions)


def _take(x: Float[Tensor, "B L W"], positions: Int64[Tensor, "B L"]) -> Float[Tensor, "B L W"]:
    return x.gather(1, positions[:, :, None].expand_as(x))
