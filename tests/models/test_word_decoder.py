"""Decoder layers over words against their equations, written out with einsum."""

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm

from refseg.models.attention import MultiHeadAttention
from refseg.models.mask_decoder import DecoderLayer, SineCodes, WordDecoder, sine_code_1d, sine_code_2d

KEEP = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])


def decoder(*, num_layers: int = 2, has_final_norm: bool = True) -> WordDecoder:
    torch.manual_seed(0)
    layers = [DecoderLayer(dim=8, num_heads=2, ffn_dim=6, dropout=0.1, extra_norms=True) for _ in range(num_layers)]
    module = WordDecoder(layers=layers, codes=SineCodes(grid=(3, 2), dim=8), has_final_norm=has_final_norm)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.3)
    return module.double().eval()


def shares(a: MultiHeadAttention, query: Tensor, key: Tensor, keep: Tensor) -> Tensor:
    q = torch.einsum("bnc,hdc->bhnd", query, a.query.weight.view(2, 4, 8)) + a.query.bias.view(2, 1, 4)
    k = torch.einsum("bmc,hdc->bhmd", key, a.key.weight.view(2, 4, 8)) + a.key.bias.view(2, 1, 4)
    e = torch.einsum("bhnd,bhmd->bhnm", q, k).div(math.sqrt(4)).exp() * keep[:, None, None]
    return e / e.sum(3, keepdim=True)


def attend(a: MultiHeadAttention, query: Tensor, key: Tensor, value: Tensor, keep: Tensor) -> Tensor:
    v = torch.einsum("bmc,hdc->bhmd", value, a.value.weight.view(2, 4, 8)) + a.value.bias.view(2, 1, 4)
    heard = torch.einsum("bhnm,bhmd->bhnd", shares(a, query, key, keep), v)
    return torch.einsum("bhnd,ohd->bno", heard, a.out.weight.view(8, 2, 4)) + a.out.bias


def norm(x: Tensor, n: nn.Module) -> Tensor:
    return layer_norm(x, x.shape[-1:], n.weight, n.bias)  # type: ignore[arg-type]


def decoded(module: WordDecoder, x: Tensor, words: Tensor) -> tuple[Tensor, Tensor]:
    """Pixels row by row, and the words' mean shares: codes on queries and keys, none on values."""
    p, p1 = sine_code_2d((x.shape[2], x.shape[3]), 8).double(), sine_code_1d(words.shape[1], 8).double()
    pixels = torch.einsum("bchw->bhwc", x).reshape(len(x), len(p), -1)
    everywhere = torch.ones(len(x), len(p))
    heard = []
    for layer in module.layers:
        assert isinstance(layer, DecoderLayer)
        y = norm(pixels, layer.self_norm)
        pixels = pixels + norm(attend(layer.self_attention, y + p, y + p, y, everywhere), layer.self_out_norm)
        y = norm(pixels, layer.cross_norm)
        heard.append(shares(layer.cross_attention, y + p, words + p1, KEEP).mean(dim=(1, 2)))
        pixels = pixels + norm(attend(layer.cross_attention, y + p, words + p1, words, KEEP), layer.cross_out_norm)
        w1, _, _, ln, w2 = layer.mlp
        hidden = norm((norm(pixels, layer.mlp_norm) @ w1.weight.T + w1.bias).clamp(min=0), ln)  # type: ignore
        pixels = pixels + hidden @ w2.weight.T + w2.bias  # type: ignore
    return pixels, torch.stack(heard).mean(0)


@torch.no_grad()
@pytest.mark.parametrize("has_final_norm", [True, False])
def test_the_decoder_is_its_layers_one_after_the_other(has_final_norm: bool) -> None:
    module = decoder(has_final_norm=has_final_norm)
    x, words = torch.randn(2, 8, 2, 3, dtype=torch.double), torch.randn(2, 5, 8, dtype=torch.double)

    expected, _ = decoded(module, x, words)
    if has_final_norm:
        expected = norm(expected, module.final_norm)

    found = torch.einsum("bchw->bhwc", module(x, words, KEEP)).reshape(expected.shape)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


@torch.no_grad()
def test_attention_to_words_is_the_mean_over_layers_heads_and_pixels() -> None:
    module = decoder()
    x, words = torch.randn(2, 8, 2, 3, dtype=torch.double), torch.randn(2, 5, 8, dtype=torch.double)

    found = module.word_attention(x, words, KEEP)

    torch.testing.assert_close(found, decoded(module, x, words)[1], rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(found.sum(1), torch.ones(2, dtype=torch.double))
    assert (found[~KEEP] == 0).all()
