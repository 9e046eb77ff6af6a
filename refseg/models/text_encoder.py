"""Text encoders: token ids to word features and one sentence feature, by CLIP's transformer or a bidirectional GRU."""

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
        """Let each token attend to itself and to those before it."""
        q, k, v = self.in_proj(self.ln_1(x)).unflatten(2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out_proj(attended.transpose(1, 2).flatten(2))
        hidden = self.c_fc(self.ln_2(x))
        return x + self.c_proj(hidden * torch.sigmoid(1.702 * hidden))


class ClipTextEncoder(nn.Module):
    """CLIP's text transformer, with the features of all words given out beside the sentence's.

    Source: Radford et al. 2021 Sec. 2.4; FCNet Sec. 3.1 takes its words as F_t and its [EOS] token as the
    global feature. Padding needs no mask inside: attention is causal and padding comes last.
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
        """Build with CLIP's initial distribution.

        Args:
            width: Of the word features.
            num_layers: Transformer layers.
            num_heads: Must divide `width`.
            output_dim: Of the sentence feature: 1024 beside CLIP's ResNet-50, 512 beside ResNet-101.
            context_length: Rows of the position table, the longest sentence that can be read.
            vocab_size: Rows of the token table.
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
            token_ids: SOS, words, EOS, then anything; L up to `context_length`.
            token_mask: True from SOS to EOS; says where EOS is.

        Returns:
            Word features (B, L, W), and the sentence features (B, D): the [EOS] token's, projected.
        """
        x = self.token_embedding(token_ids) + self.positional_embedding[: token_ids.shape[1]]
        for block in self.resblocks:
            x = block(x)
        words = self.ln_final(x)
        eos = token_mask.sum(dim=1) - 1
        sentence = words[torch.arange(words.shape[0], device=words.device), eos] @ self.text_projection
        return words, sentence


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
            vector_dim: Width of the word vectors.
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


def refuse_other_width(text_encoder: ClipTextEncoder | BiGruTextEncoder, dim: int, *, reader: str) -> None:
    """Refuse words that a module attends to as they are, without a projection, although it has another width.

    Args:
        text_encoder: Gives the words.
        dim: Width of the module.
        reader: The module, for the message.

    Raises:
        RecipeError: If the widths differ.
    """
    if text_encoder.width != dim:
        raise RecipeError(
            f"model.dim: found {dim}, expected {text_encoder.width}: {reader} attends to the words as they are"
        )


def build_text_encoder(image_encoder: str, dim: int) -> ClipTextEncoder:
    """The text transformer that goes with an image encoder: FCNet does not name Swin's, we take ResNet-101's."""
    match image_encoder:
        case "tiny":
            encoder = ClipTextEncoder(width=dim, num_layers=2, num_heads=4, output_dim=dim)
            # Random words, far apart, and kept so. From CLIP's small start (0.02) a large learning rate moves all
            # colours alike before the pixels tell them apart, and then neither side ever does.
            nn.init.normal_(encoder.token_embedding.weight)
            encoder.token_embedding.requires_grad_(False)
            return encoder
        case "clip_resnet50":
            return ClipTextEncoder(output_dim=1024)
    return ClipTextEncoder(output_dim=512)


def _mirror(token_mask: Bool[Tensor, "B L"]) -> Int64[Tensor, "B L"]:
    """Where each place lies when the words alone change their order to its reverse; its own inverse."""
    places = torch.arange(token_mask.shape[1], device=token_mask.device)
    return torch.where(token_mask, token_mask.sum(dim=1, keepdim=True) - 1 - places, places)


def _take(x: Float[Tensor, "B L W"], places: Int64[Tensor, "B L"]) -> Float[Tensor, "B L W"]:
    return x.gather(1, places[:, :, None].expand_as(x))
