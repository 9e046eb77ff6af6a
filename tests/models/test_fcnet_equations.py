"""FCNet's blocks against the paper's equations, written out with einsum."""

import math
from typing import TypeVar

import pytest
import torch
from torch import Tensor
from torch.nn.functional import layer_norm

from refseg.models.attention import MultiHeadAttention
from refseg.models.fcnet import EmphasisCalibration, EmphasisGeneration
from refseg.models.mask_decoder import DecoderLayer, sine_code_1d, sine_code_2d

Module = TypeVar("Module", bound=torch.nn.Module)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def randomised(module: Module) -> Module:
    """Convert to float64, and change every parameter from its initial 0 or 1."""
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return module.double().eval()


def randn(*size: int) -> Tensor:
    return torch.randn(*size, dtype=torch.double)


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


def attend(a: MultiHeadAttention, query: Tensor, key: Tensor, value: Tensor, keep: Tensor | None = None) -> Tensor:
    """Vaswani et al., Sec. 3.2.2: per head softmax(Q K^T / sqrt(d)) V, joined, projected."""
    heads, width = a.num_heads, a.out.in_features
    w_q, w_k, w_v = (p.weight.view(heads, width // heads, -1) for p in (a.query, a.key, a.value))
    b_q, b_k, b_v = (p.bias.view(heads, 1, -1) for p in (a.query, a.key, a.value))
    q = torch.einsum("bnc,hdc->bhnd", query, w_q) + b_q
    k = torch.einsum("bmc,hdc->bhmd", key, w_k) + b_k
    v = torch.einsum("bmc,hdc->bhmd", value, w_v) + b_v
    e = torch.einsum("bhnd,bhmd->bhnm", q, k).div(math.sqrt(width // heads)).exp()
    if keep is not None:
        e = e * keep[:, None, None]
    heard = torch.einsum("bhnm,bhmd->bhnd", e / e.sum(3, keepdim=True), v)
    return torch.einsum("bhnd,ohd->bno", heard, a.out.weight.view(width, heads, -1)) + a.out.bias


def norm(x: Tensor, n: torch.nn.Module) -> Tensor:
    return layer_norm(x, x.shape[-1:], n.weight, n.bias)  # type: ignore[arg-type]


KEEP = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])


@torch.no_grad()
@pytest.mark.parametrize("num_heads", [1, 4])
def test_generation_is_equation_4(num_heads: int) -> None:
    egm = randomised(EmphasisGeneration(grid=(3, 4), word_dim=6, dim=8, num_heads=num_heads))
    key_maps, words = randn(2, 5, 3, 4), randn(2, 5, 6)

    # F'_vk is (h w) x N_k: channel j is a token, the vector of its positions row by row.
    tokens = torch.einsum("bkhw->bhwk", key_maps).reshape(2, 12, 5).transpose(1, 2)

    close(egm(egm.flatten(key_maps), words, KEEP.bool()), attend(egm.attention, tokens, words, words, KEEP))


@torch.no_grad()
def test_the_word_code_is_on_the_keys_and_not_on_the_values() -> None:
    egm = randomised(EmphasisGeneration(grid=(2, 2), word_dim=6, dim=8, num_heads=2, word_code=True))
    keys, words = randn(2, 3, 4), randn(2, 5, 6)

    coded = words + sine_code_1d(5, 6)

    close(egm(keys, words, KEEP.bool()), attend(egm.attention, keys, coded, words, KEEP))


@torch.no_grad()
@pytest.mark.parametrize("alpha", ["linear", "sigmoid"])
@pytest.mark.parametrize("concat", ["channel", "token"])
def test_calibration_is_figure_3(concat: str, alpha: str) -> None:
    ecm = randomised(EmphasisCalibration(dim=8, num_heads=2, concat=concat, alpha=alpha))  # type: ignore[arg-type]
    f_e, f_tg = randn(2, 3, 8), randn(2, 8)

    copies = torch.stack([f_tg] * 3, dim=1)
    joined = torch.cat([f_e, copies], dim=2 if concat == "channel" else 1)
    heard = attend(ecm.attention, joined, joined, joined)[:, :3]  # the emphases' own rows
    weights = torch.einsum("bkc,c->bk", heard, ecm.score.weight[0]) + ecm.score.bias
    if alpha == "sigmoid":
        weights = 1 / (1 + (-weights).exp())

    close(ecm(f_e, f_tg), f_e + torch.einsum("bk,bkc->bkc", weights, f_e))


@torch.no_grad()
@pytest.mark.parametrize("extra_norms", [False, True])
def test_a_decoder_layer_is_equation_5(extra_norms: bool) -> None:
    layer = randomised(DecoderLayer(dim=8, num_heads=2, ffn_dim=12, dropout=0.1, extra_norms=extra_norms))
    f_v, f_c = randn(2, 6, 8), randn(2, 5, 8)
    p, p1 = sine_code_2d((2, 3), 8).double(), sine_code_1d(5, 8).double()

    def extra(x: Tensor, n: torch.nn.Module) -> Tensor:
        return norm(x, n) if extra_norms else x

    x = norm(f_v, layer.self_norm)
    f_1 = f_v + extra(attend(layer.self_attention, x + p, x + p, x), layer.self_out_norm)
    x = norm(f_1, layer.cross_norm)
    f_q = f_1 + extra(attend(layer.cross_attention, x + p, f_c + p1, f_c, KEEP), layer.cross_out_norm)
    first, *_, inner_norm, second = layer.mlp
    hidden = (torch.einsum("bnc,fc->bnf", norm(f_q, layer.mlp_norm), first.weight) + first.bias).clamp(min=0)
    expected = f_q + torch.einsum("bnf,cf->bnc", extra(hidden, inner_norm), second.weight) + second.bias

    close(layer.attend_to_tokens(layer.attend_to_pixels(f_v, p), p, f_c, p1, KEEP.bool()), expected)


@torch.no_grad()
def test_the_shown_attention_is_the_one_that_is_used() -> None:
    attention = randomised(MultiHeadAttention(dim=8, num_heads=2, query_dim=6, memory_dim=5))
    query, memory = randn(2, 3, 6), randn(2, 5, 5)

    weights = attention.weights(query, memory, KEEP.bool())

    close(weights.sum(3), torch.ones(2, 2, 3, dtype=torch.double))
    assert weights[1, :, :, 3:].abs().max() == 0
    values = attention.value(memory).view(2, 5, 2, 4)
    heard = torch.einsum("bhnm,bmhd->bnhd", weights, values).reshape(2, 3, 8)
    close(attention.out(heard), attention(query, memory, memory, KEEP.bool()))
