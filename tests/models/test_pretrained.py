"""CLIP and Swin here equal the published modules with the same weights."""

import logging
import warnings
from collections.abc import Callable
from pathlib import Path

import huggingface_hub
import open_clip
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from refseg.errors import CheckpointError
from refseg.model_config import FCNetConfig
from refseg.models import build_model
from refseg.models.convert import convert_weights
from refseg.models.fcnet import FCNet
from refseg.models.model import SegmentationModel
from refseg.models.pretrained import load_pretrained
from refseg.models.weight_files import file_sha256


@pytest.fixture(scope="module")
def clip_file(tmp_path_factory: pytest.TempPathFactory) -> tuple[torch.nn.Module, Path]:
    """open_clip's ResNet-50 CLIP with random weights, and the file that is converted from its archive."""
    torch.manual_seed(0)
    reference = open_clip.create_model("RN50-quickgelu", pretrained=None).eval()
    with torch.no_grad():  # statistics and gains away from 0 and 1, so that a swap would be seen
        for module in reference.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(0, 0.1)
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 1.5)
    folder = tmp_path_factory.mktemp("clip")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch calls TorchScript deprecated
        torch.jit.script(reference).save(str(folder / "RN50.pt"))
    sha256 = file_sha256(folder / "RN50.pt")
    convert_weights("clip", folder / "RN50.pt", folder / "rn50.safetensors", accepted_sha256=sha256)
    (folder / "RN50.pt").unlink()
    return reference, folder / "rn50.safetensors"


@pytest.fixture(scope="module")
def model(clip_file: tuple[torch.nn.Module, Path]) -> FCNet:
    config = FCNetConfig(image_encoder="clip_resnet50", image_weights=str(clip_file[1]), text_weights=str(clip_file[1]))
    model = build_model(config, input_size=(64, 64))
    load_pretrained(model, config)
    return model.eval()


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Hugging Face's cache of a machine without network."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    return tmp_path


@pytest.mark.slow
@torch.no_grad()
def test_swin_loads_timms_file_by_its_name_and_equals_timm(hub_cache: Path) -> None:
    torch.manual_seed(0)
    size = (96, 96)
    reference = timm.create_model("swin_base_patch4_window12_384.ms_in22k", img_size=size).eval()
    folder = hub_cache / "models--timm--swin_base_patch4_window12_384.ms_in22k"
    (folder / "snapshots" / "0a").mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("0a")
    weights = {name: tensor.contiguous() for name, tensor in reference.state_dict().items()}
    save_file(weights, folder / "snapshots" / "0a" / "model.safetensors")
    config = FCNetConfig(image_encoder="swin_base", image_weights="timm:swin_base_patch4_window12_384.ms_in22k")
    model = build_model(config, input_size=size).eval()
    load_pretrained(model, config)
    images = torch.randn(1, 3, *size)
    expected = reference.forward_intermediates(images, indices=[1, 2, 3], intermediates_only=True)

    for ours, theirs in zip(model.image_encoder(images), expected, strict=True):
        # A fresh LayerNorm is mean 0, variance 1 over the channels.
        normed = torch.nn.functional.layer_norm(theirs.permute(0, 2, 3, 1), theirs.shape[1:2]).permute(0, 3, 1, 2)
        torch.testing.assert_close(ours, normed, rtol=1e-3, atol=1e-3)


@pytest.fixture
def text_file(tmp_path: Path) -> Path:
    """Weights of a small CLIP that fit the text encoder of the `tiny` models, 32 wide."""
    torch.manual_seed(0)
    reference = open_clip.model.CLIP(
        embed_dim=32,
        vision_cfg=open_clip.model.CLIPVisionCfg(layers=(1, 1, 1, 1), width=8, image_size=32, head_width=16),
        text_cfg=open_clip.model.CLIPTextCfg(width=32, heads=4, layers=2),
    )
    save_file({name: tensor.contiguous() for name, tensor in reference.state_dict().items()}, tmp_path / "text.st")
    return tmp_path / "text.st"


def load(path: Path | str, key: str, image_encoder: str) -> SegmentationModel:
    config = FCNetConfig.model_validate({"image_encoder": image_encoder, "dim": 32, key: str(path)})
    with torch.device("cpu" if image_encoder == "tiny" else "meta"):  # refused before anything is copied
        model = build_model(config, input_size=(64, 64))
    load_pretrained(model, config)
    return model


def test_where_the_weights_are_from_is_logged(text_file: Path, caplog: pytest.LogCaptureFixture) -> None:
    save_file(load_file(text_file), text_file, metadata={"kind": "clip", "source": "RN50.pt", "source_sha256": "af"})
    caplog.set_level(logging.INFO, logger="refseg")

    model = load(text_file, "text_weights", "tiny")

    assert torch.equal(model.text_encoder.token_embedding.weight, load_file(text_file)["token_embedding.weight"])
    assert f"ClipTextEncoder starts from {text_file} (kind clip, source RN50.pt, source_sha256 af)" in caplog.text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("ln_final.bias"), r"1 weight missing, the first is ln_final\.bias; expected"),
        (lambda w: w.update({"ln_post.bias": torch.ones(1)}), r"1 weight unknown, the first is ln_post\.bias;"),
        (
            lambda w: w.update({"transformer.resblocks.2.mlp.c_fc.bias": torch.ones(1)}),
            r"unknown, the first is transformer\.resblocks\.2\.mlp\.c_fc\.bias;",
        ),
        (
            lambda w: w.update({"positional_embedding": torch.ones(76, 32)}),
            r"of another shape, the first is positional_embedding \(\(76, 32\), expected \(77, 32\)\)",
        ),
        (
            lambda w: w.update({"resblocks.0.ln_1.bias": torch.ones(32)}),
            r"unknown, the first is resblocks\.0\.ln_1\.bias;",
        ),
        (
            lambda w: w.update({"ln_final.bias": torch.ones(32, dtype=torch.int64)}),
            r"of another type, the first is ln_final\.bias \(torch\.int64, expected torch\.float32\)",
        ),
    ],
)
def test_one_name_too_few_or_too_many_is_refused_by_name(
    text_file: Path, change: Callable[[dict[str, torch.Tensor]], None], message: str
) -> None:
    weights = load_file(text_file)
    change(weights)
    save_file(weights, text_file)

    with pytest.raises(CheckpointError, match=message):
        load(text_file, "text_weights", "tiny")


@pytest.mark.slow
def test_a_file_of_another_model_is_refused_by_name(clip_file: tuple[torch.nn.Module, Path]) -> None:
    with pytest.raises(CheckpointError, match=r"rn50.*missing, the first is backbone\.stages_2\.6"):
        load(clip_file[1], "image_weights", "clip_resnet101")


@pytest.mark.slow
def test_the_residual_branch_of_cris_is_loaded_where_a_file_has_it(
    clip_file: tuple[torch.nn.Module, Path], tmp_path: Path
) -> None:
    published = {f"visual.{name}": tensor for name, tensor in clip_file[0].visual.state_dict().items()}
    connect = torch.full((1024, 2048, 1, 1), 0.5)
    state = {f"module.backbone.{name}": tensor for name, tensor in published.items()}
    norm = {"weight": 1.0, "bias": 2.0, "running_mean": 3.0, "running_var": 4.0}
    state |= {"module.backbone.visual.attnpool.connect.0.weight": connect, "module.neck.f1.weight": torch.ones(1)}
    state |= {
        f"module.backbone.visual.attnpool.connect.1.{name}": torch.full((1024,), value) for name, value in norm.items()
    }
    torch.save({"state_dict": state}, tmp_path / "best_model.pth")
    convert_weights("cris", tmp_path / "best_model.pth", tmp_path / "cris.safetensors")
    config = FCNetConfig(image_encoder="clip_resnet50", image_weights=str(tmp_path / "cris.safetensors"))
    model = build_model(config, input_size=(64, 64))

    load_pretrained(model, config)

    pool = model.image_encoder.attnpool
    assert torch.equal(pool.connect[0].weight, connect)
    assert [getattr(pool.connect[1], name)[0].item() for name in norm] == [1, 2, 3, 4]
    assert torch.equal(pool.c_proj.weight, published["visual.attnpool.c_proj.weight"])


@pytest.mark.parametrize(
    ("key", "image_encoder", "remedy"),
    [
        (
            "image_weights",
            "clip_resnet50",
            r"fetch https://openaipublic\S+/afeb0e\w+/RN50\.pt by hand, then refseg conv",
        ),
        ("image_weights", "clip_resnet101", r"fetch https://openaipublic\S+/8fa856\w+/RN101\.pt by hand"),
        ("text_weights", "swin_base", r"fetch https://openaipublic\S+/8fa856\w+/RN101\.pt by hand"),
        (
            "image_weights",
            "swin_base",
            r'name it "timm:swin_base_patch4_window12_384\.ms_in22k", or fetch https://hugg',
        ),
    ],
)
def test_a_missing_or_unconverted_file_is_told_with_its_address(
    tmp_path: Path, key: str, image_encoder: str, remedy: str
) -> None:
    with pytest.raises(CheckpointError, match=rf"none\.safetensors: no such file; {remedy}"):
        load(tmp_path / "none.safetensors", key, image_encoder)

    (tmp_path / "RN50.pt").write_bytes(b"PK" * 100)
    with pytest.raises(CheckpointError, match=rf"RN50\.pt: not a safetensors file \(.*\); {remedy}"):
        load(tmp_path / "RN50.pt", key, image_encoder)


def test_timms_weights_that_are_not_at_hand_are_told_with_their_address(hub_cache: Path) -> None:
    address = "https://huggingface.co/timm/swin_base_patch4_window12_384.ms_in1k/resolve/main/model.safetensors"
    with pytest.raises(CheckpointError, match=rf"not on this machine.*; fetch {address} by hand and give the file's p"):
        load("timm:swin_base_patch4_window12_384.ms_in1k", "image_weights", "swin_base")


@pytest.mark.parametrize(
    ("weights", "key", "image_encoder", "message"),
    [
        (
            "timm:swin_tiny",
            "image_weights",
            "swin_base",
            r"fit a SwinBase; expected timm:swin_base_patch4_window12_384",
        ),
        ("timm:resnet50", "image_weights", "clip_resnet50", "fit a ClipResNet; expected a safetensors file of"),
        ("x.safetensors", "image_weights", "tiny", "the tiny encoder has no published weights; leave it empty"),
    ],
)
def test_weights_that_no_encoder_has_are_refused(weights: str, key: str, image_encoder: str, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        load(weights, key, image_encoder)


def test_a_text_encoder_that_is_not_clips_has_no_published_weights() -> None:
    config = FCNetConfig(image_encoder="tiny", dim=32, text_weights="x.safetensors")
    model = build_model(config, input_size=(64, 64))
    model.text_encoder = torch.nn.GRU(1, 1)

    with pytest.raises(CheckpointError, match="a GRU has no published weights; leave it empty"):
        load_pretrained(model, config)
