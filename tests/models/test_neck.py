"""The neck, gated and not, against its equations written out with einsum."""

from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.functional import unfold

from refseg.models.model import select_images
from refseg.models.neck import ConvNormReLU, TextGate, VisionNeck, upsample

Module = TypeVar("Module", bound=nn.Module)


def randomised(module: Module) -> Module:
    """Convert to float64, and change every parameter and statistic from its initial 0 or 1."""
    torch.manual_seed(0)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.3)
    for name, buffer in module.named_buffers():
        if name.endswith("running_mean"):
            nn.init.normal_(buffer)
        if name.endswith("running_var"):
            nn.init.uniform_(buffer, 0.5, 2)
    return module.double().eval()


def randn(*size: int) -> Tensor:
    return torch.randn(*size, dtype=torch.double)


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


def normalised(x: Tensor, norm: nn.Module) -> Tensor:
    """Channel by channel (x - mean) / sd * scale + shift, by the running statistics."""
    mean, scale = norm.running_mean, norm.weight / (norm.running_var + 1e-5).sqrt()  # type: ignore[operator]
    return torch.einsum("bc...,c->bc...", x, scale) + (norm.bias - mean * scale).view(-1, *[1] * (x.ndim - 2))


def cbr(x: Tensor, block: ConvNormReLU) -> Tensor:
    """A convolution as a product of kernels and patches, then norm, then ReLU."""
    conv, norm = block[0], block[1]
    side = conv.kernel_size[0]
    patches = unfold(x, side, padding=conv.padding, dilation=conv.dilation)
    made = torch.einsum("oc,bcn->bon", conv.weight.flatten(1), patches).unflatten(2, x.shape[2:])
    return normalised(made, norm).clamp(min=0)


def doubling(size: int) -> Tensor:
    """Bilinear, x2: each output lies a quarter of a pixel beside an input; at the edges the edge counts twice."""
    matrix = torch.zeros(2 * size, size, dtype=torch.double)
    for i in range(size):
        matrix[2 * i, i] += 0.75
        matrix[2 * i, max(i - 1, 0)] += 0.25
        matrix[2 * i + 1, i] += 0.75
        matrix[2 * i + 1, min(i + 1, size - 1)] += 0.25
    return matrix


def doubled(x: Tensor) -> Tensor:
    return torch.einsum("Hh,bchw,Ww->bcHW", doubling(x.shape[2]), x, doubling(x.shape[3]))


def gated(x: Tensor, sentence: Tensor, gate: TextGate) -> Tensor:
    opened = normalised(sentence @ gate.project[0].weight.T, gate.project[1]).clamp(min=0)
    return normalised(torch.einsum("bchw,bc->bchw", x, opened), gate.norm[0]).clamp(min=0)


def fused(c2: Tensor, c3: Tensor, c4: Tensor, sentence: Tensor | None, neck: VisionNeck) -> Tensor:
    """FCNet Eqs. (1) to (3); with a sentence CRIS's level 5."""
    f5 = cbr(c4, neck.reduce5)
    if sentence is not None:
        assert neck.gate is not None
        f5 = gated(f5, sentence, neck.gate)
    f4 = cbr(torch.cat([cbr(c3, neck.reduce4), doubled(f5)], 1), neck.merge4)
    pooled = cbr(c2, neck.reduce3).unflatten(2, (-1, 2)).unflatten(4, (-1, 2)).mean(dim=(3, 5))
    f3 = cbr(torch.cat([pooled, f4], 1), neck.merge3)
    joined = [cbr(f3, neck.smooth3), cbr(f4, neck.smooth4), doubled(cbr(f5, neck.smooth5))]
    f_m = cbr(torch.cat(joined, 1), neck.aggregate)
    h, w = f_m.shape[2:]
    x = torch.linspace(-1, 1, w, dtype=torch.double).expand(len(f_m), 1, h, w)
    y = torch.linspace(-1, 1, h, dtype=torch.double)[:, None].expand(len(f_m), 1, h, w)
    return cbr(cbr(torch.cat([f_m, x, y], 1), neck.coordinates[0]), neck.coordinates[1])


def maps(count: int) -> tuple[Tensor, Tensor, Tensor]:
    return randn(count, 3, 8, 12), randn(count, 5, 4, 6), randn(count, 6, 2, 3)


@torch.no_grad()
def test_the_upsampling_is_bilinear_and_the_corners_are_not_aligned() -> None:
    x = randn(2, 3, 4, 5)

    close(upsample(x), doubled(x))


@torch.no_grad()
def test_a_dilated_block_keeps_the_size_and_spreads_its_taps() -> None:
    block = randomised(ConvNormReLU(3, 4, 3, dilation=2))
    x = randn(2, 3, 5, 6)

    close(block(x), cbr(x, block))


@torch.no_grad()
def test_the_gate_multiplies_each_channel_by_the_sentence_and_normalises_again() -> None:
    gate = randomised(TextGate(sentence_dim=4, dim=6))
    x, sentence = randn(3, 6, 2, 2), randn(3, 4)

    close(gate(x, sentence), gated(x, sentence, gate))


@torch.no_grad()
def test_the_neck_is_equations_1_to_3() -> None:
    neck = randomised(VisionNeck(in_dims=(3, 5, 6), dim=4))
    c2, c3, c4 = maps(2)

    close(neck(c2, c3, c4), fused(c2, c3, c4, None, neck))


@torch.no_grad()
def test_the_gated_neck_is_the_same_but_for_the_gate_at_level_5() -> None:
    neck = randomised(VisionNeck(in_dims=(3, 5, 6), dim=4, gate=TextGate(sentence_dim=7, dim=8)))
    c2, c3, c4 = maps(2)
    sentence = randn(2, 7)

    close(neck.fuse(neck.levels(c2, c3, c4), sentence), fused(c2, c3, c4, sentence, neck))


@torch.no_grad()
def test_what_comes_before_the_gate_serves_all_sentences_of_an_image() -> None:
    neck = randomised(VisionNeck(in_dims=(3, 5, 6), dim=4, gate=TextGate(sentence_dim=7, dim=8)))
    c2, c3, c4 = maps(2)
    index = torch.tensor([1, 0, 1])
    sentence = randn(3, 7)

    levels = neck.levels(c2, c3, c4)

    assert [tuple(level.shape) for level in levels] == [(2, 2, 4, 6), (2, 4, 4, 6), (2, 8, 2, 3)]
    close(neck.fuse(select_images(levels, index), sentence), fused(c2[index], c3[index], c4[index], sentence, neck))


def test_a_gate_adds_names_and_changes_none() -> None:
    plain = list(VisionNeck(in_dims=(3, 5, 6), dim=4).state_dict())
    with_gate = list(VisionNeck(in_dims=(3, 5, 6), dim=4, gate=TextGate(sentence_dim=7, dim=8)).state_dict())

    assert [name for name in with_gate if not name.startswith("gate.")] == plain


def test_in_training_a_gate_uses_the_statistics_of_the_sentences_at_hand() -> None:
    gate = TextGate(sentence_dim=1, dim=1).double()
    nn.init.ones_(gate.project[0].weight)

    # Sentences 1 and 3 are normalised to -1 and 1, so the gates are 0 and 1. Maps of 5 become 0 and 5, are normalised
    # to -1 and 1, and become 0 and 1 by the ReLU.
    found = gate(torch.full((2, 1, 1, 1), 5.0, dtype=torch.double), torch.tensor([[1.0], [3.0]], dtype=torch.double))

    torch.testing.assert_close(found.flatten(), torch.tensor([0.0, 1.0], dtype=torch.double), rtol=0, atol=1e-4)
