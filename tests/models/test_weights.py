"""Our CLIP and Swin equal the published modules on the same weights."""

from pathlib import Path

import open_clip
import pytest
import timm
import torch
from safetensors.torch import save_file

from refseg.errors import CheckpointError
from refseg.model_config import FCNetConfig
from refseg.models import build_model
from refseg.models.fcnet import FCNet
from refseg.models.weights import load_pretrained
from refseg.tokenizer import encode


@pytest.fixture(scope="module")
def clip_file(tmp_path_factory: pytest.TempPathFactory) -> tuple[torch.nn.Module, Path]:
    """open_clip's ResNet-50 CLIP with random weights, and a file of them under OpenAI's names."""
    torch.manual_seed(0)
    reference = open_clip.create_model("RN50-quickgelu", pretrained=None).eval()
    with torch.no_grad():  # statistics and gains away from 0 and 1, so that a swap would be seen
        for module in reference.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(0, 0.1)
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 1.5)
    path = tmp_path_factory.mktemp("clip") / "rn50.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in reference.state_dict().items()}, path)
    return reference, path


@pytest.fixture(scope="module")
def model(clip_file: tuple[torch.nn.Module, Path]) -> FCNet:
    config = FCNetConfig(image_encoder="clip_resnet50", image_weights=str(clip_file[1]), text_weights=str(clip_file[1]))
    model = build_model(config, input_size=(64, 64))
    load_pretrained(model, config)
    return model.eval()


@torch.no_grad()
def test_text_encoder_equals_open_clip(clip_file: tuple[torch.nn.Module, Path], model: FCNet) -> None:
    sentences = ["the lady with the blue shirt", "dog", "a man, left of the 2nd car!"]
    ids = [encode(sentence) for sentence in sentences]
    token_ids = torch.zeros(3, 77, dtype=torch.long)
    for row, one in zip(token_ids, ids, strict=True):
        row[: len(one)] = torch.tensor(one)
    expected = clip_file[0].encode_text(token_ids)

    length = max(map(len, ids))
    mask = torch.arange(length) < torch.tensor([len(one) for one in ids])[:, None]
    _, sentence = model.text_encoder(token_ids[:, :length], mask)

    torch.testing.assert_close(sentence, expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_image_stages_equal_open_clip(clip_file: tuple[torch.nn.Module, Path], model: FCNet) -> None:
    visual = clip_file[0].visual
    images = torch.randn(2, 3, 96, 64)
    x = visual.layer1(visual.stem(images))
    c2 = visual.layer2(x)
    c3 = visual.layer3(c2)

    found = model.image_encoder.backbone(images)

    for ours, theirs in zip(found, (c2, c3, visual.layer4(c3)), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_dense_pool_of_uniform_maps_equals_clips_pool_without_class_token(
    clip_file: tuple[torch.nn.Module, Path], model: FCNet
) -> None:
    # With one 1x1 map the only position queries itself: softmax is 1 and the pool is W_c W_v (x + p).
    pool, reference = model.image_encoder.attnpool, clip_file[0].visual.attnpool
    x = torch.randn(1, 2048, 1, 1)
    table = reference.positional_embedding[1:].T.reshape(1, 2048, 7, 7)
    position = torch.nn.functional.interpolate(table, size=(1, 1), mode="bicubic").flatten(1)
    expected = torch.relu(reference.c_proj(reference.v_proj(x.flatten(1) + position)) + pool.connect(x).flatten(1))

    torch.testing.assert_close(pool(x).flatten(1), expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_swin_loads_timms_file_and_equals_timm(tmp_path: Path) -> None:
    torch.manual_seed(0)
    size = (96, 96)
    reference = timm.create_model("swin_base_patch4_window12_384.ms_in22k", img_size=size).eval()
    path = tmp_path / "swin.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in reference.state_dict().items()}, path)
    config = FCNetConfig(image_encoder="swin_base", image_weights=str(path))
    model = build_model(config, input_size=size).eval()
    load_pretrained(model, config)
    images = torch.randn(1, 3, *size)
    expected = reference.forward_intermediates(images, indices=[1, 2, 3], intermediates_only=True)

    for ours, theirs in zip(model.image_encoder(images), expected, strict=True):
        # A fresh LayerNorm is mean 0, variance 1 over the channels.
        normed = torch.nn.functional.layer_norm(theirs.permute(0, 2, 3, 1), theirs.shape[1:2]).permute(0, 3, 1, 2)
        torch.testing.assert_close(ours, normed, rtol=1e-3, atol=1e-3)


def test_a_file_of_another_model_is_refused_by_name(clip_file: tuple[torch.nn.Module, Path]) -> None:
    config = FCNetConfig(image_encoder="clip_resnet101", image_weights=str(clip_file[1]))
    model = build_model(config, input_size=(64, 64))

    with pytest.raises(CheckpointError, match=r"rn50.*missing, the first is backbone\.stages_2\.6"):
        load_pretrained(model, config)


def test_a_missing_weight_file_says_what_to_do(tmp_path: Path) -> None:
    config = FCNetConfig(image_encoder="clip_resnet50", text_weights=str(tmp_path / "none.safetensors"))
    model = build_model(config, input_size=(64, 64))

    with pytest.raises(CheckpointError, match="no such file; download the weights once"):
        load_pretrained(model, config)
