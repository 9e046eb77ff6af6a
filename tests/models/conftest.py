"""Fixtures of the tests of models."""

import warnings
from pathlib import Path

import open_clip
import pytest
import torch


@pytest.fixture(scope="session")
def small_clip_archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random CLIP ResNet with one block per stage, in the form of OpenAI's models: half precision, TorchScript."""
    torch.manual_seed(0)
    model = open_clip.model.CLIP(
        embed_dim=16,
        vision_cfg=open_clip.model.CLIPVisionCfg(layers=(1, 1, 1, 1), width=8, image_size=32, head_width=16),
        text_cfg=open_clip.model.CLIPTextCfg(context_length=8, vocab_size=20, width=16, heads=2, layers=2),
        quick_gelu=True,
    )
    for module in model.modules():
        if isinstance(module, torch.nn.Conv2d | torch.nn.Linear | torch.nn.MultiheadAttention):
            module.half()
    path = tmp_path_factory.mktemp("clip") / "small.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch calls TorchScript deprecated
        torch.jit.script(model.eval()).save(str(path))
    return path
