"""Encoders that are called stage by stage give the same maps as the whole backbone."""

import pytest
import torch
from torch import Tensor

from refseg.models.image_encoder import ClipResNet, SwinBase, build_image_encoder


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def test_clips_stages_are_timms_own_bit_for_bit(images: Tensor) -> None:
    encoder = ClipResNet(depth=50).eval()
    c2, c3, last = encoder.backbone(images)

    found = encoder(images)

    for ours, timms in zip(found, (c2, c3, encoder.attnpool(last)), strict=True):
        assert torch.equal(ours, timms)


@pytest.mark.slow
@torch.no_grad()
def test_swins_stages_are_timms_own_and_norms_touch_the_outputs_alone(images: Tensor) -> None:
    encoder = SwinBase(input_size=(64, 96)).eval()
    for norm in encoder.norms:
        torch.nn.init.constant_(norm.weight, 2.0)  # would change later stages if they read normalised maps
    raw = encoder.backbone(images)

    found = encoder(images)

    for ours, timms, norm in zip(found, raw, encoder.norms, strict=True):
        assert torch.equal(ours, norm(timms).permute(0, 3, 1, 2))
    c3 = encoder.to_c3(encoder.to_c2(images))
    assert torch.equal(c3, raw[1].permute(0, 3, 1, 2))
    assert torch.equal(encoder.to_c4(c3), raw[2].permute(0, 3, 1, 2))


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("name", ["clip_resnet50", "swin_base", "tiny"])
def test_a_changed_map_is_what_the_next_stage_reads(name: str, images: Tensor) -> None:
    encoder = build_image_encoder(name, (64, 96)).eval()
    c2 = encoder.to_c2(images)

    assert not torch.equal(encoder.to_c3(c2), encoder.to_c3(c2 + c2.flip(3)))
    maps = encoder.finish((c2, encoder.to_c3(c2), encoder.to_c4(encoder.to_c3(c2))))
    sizes = [(64 // stride, 96 // stride) for stride in (8, 16, 32)]
    assert [tuple(x.shape) for x in maps] == [
        (1, channels, *size) for channels, size in zip(encoder.channels, sizes, strict=True)
    ]
