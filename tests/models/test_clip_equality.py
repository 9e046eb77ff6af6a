"""With the same random weights, the encoders equal those of open_clip and timm, in float32 and in float64."""

import open_clip
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from refseg.model_config import FCNetConfig
from refseg.models import build_model
from refseg.models.fcnet import FCNet
from refseg.models.image_encoder import SwinBase
from refseg.models.pretrained import load_pretrained
from refseg.tokenizer import encode

Pair = tuple[FCNet, torch.nn.Module]
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """FCNet with CLIP's ResNet-50, and the CLIP of open_clip from which it has its weights."""
    torch.manual_seed(0)
    clip = open_clip.create_model("RN50-quickgelu", pretrained=None).eval()
    with torch.no_grad():  # away from 0 and 1, so that a swap would be seen
        for module in clip.modules():
            if isinstance(module, (torch.nn.BatchNorm2d, torch.nn.LayerNorm)):
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(0, 0.1)
            if isinstance(module, torch.nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 1.5)
    path = tmp_path_factory.mktemp("clip") / "rn50.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in clip.state_dict().items()}, path)
    config = FCNetConfig(
        image_encoder="clip_resnet50", image_weights=str(path), text_weights=str(path), num_decoder_layers=1, ecm=False
    )
    model = build_model(config, input_size=(64, 64))
    load_pretrained(model, config)
    return model.eval(), clip


@pytest.fixture(params=list(TOLERANCE), ids=str)
def pair(single: Pair, request: pytest.FixtureRequest) -> Pair:
    """Both in one precision."""
    return single[0].to(request.param), single[1].to(request.param)


def like(pair: Pair, *size: int) -> Tensor:
    """Random numbers of the pair's precision."""
    generator = torch.Generator().manual_seed(1)
    return torch.randn(*size, generator=generator, dtype=torch.double).to(pair[0].final_norm.weight.dtype)


def close(found: Tensor, expected: Tensor) -> None:
    """Compare with the tolerance of the precision, relative to numbers of about 1."""
    assert found.dtype == expected.dtype
    scale = expected.abs().max().item()
    torch.testing.assert_close(found, expected, rtol=0, atol=TOLERANCE[found.dtype] * scale)


@pytest.mark.slow
@torch.no_grad()
def test_text_transformer_equals_open_clips_words_and_sentences(pair: Pair) -> None:
    model, clip = pair
    ids = [encode(text) for text in ("the lady with the blue shirt", "dog", "a man, left of the 2nd car!")]
    token_ids = torch.zeros(3, 77, dtype=torch.long)
    for row, one in zip(token_ids, ids, strict=True):
        row[: len(one)] = torch.tensor(one)
    x = clip.token_embedding(token_ids) + clip.positional_embedding
    expected = clip.ln_final(clip.transformer(x, attn_mask=clip.attn_mask))

    token_mask = torch.arange(12) < torch.tensor([len(one) for one in ids])[:, None]
    words, sentence = model.text_encoder(token_ids[:, :12], token_mask)

    close(words[token_mask], expected[:, :12][token_mask])
    close(sentence, clip.encode_text(token_ids))


@pytest.mark.slow
@torch.no_grad()
def test_resnet_stages_equal_open_clips(pair: Pair) -> None:
    model, clip = pair
    images, visual = like(pair, 2, 3, 96, 64), clip.visual
    c2 = visual.layer2(visual.layer1(visual.stem(images)))
    c3 = visual.layer3(c2)

    for found, expected in zip(model.image_encoder.backbone(images), (c2, c3, visual.layer4(c3)), strict=True):
        close(found, expected)


@torch.no_grad()
@pytest.mark.parametrize("grid", [(7, 7), (2, 3)])
def test_dense_pool_equals_clips_pool_asked_from_each_position(pair: Pair, grid: tuple[int, int]) -> None:
    pool, theirs, x = pair[0].image_encoder.attnpool, pair[1].visual.attnpool, like(pair, 1, 2048, *grid)
    table = theirs.positional_embedding[1:].T.reshape(1, 2048, 7, 7)  # CLIP's class row is left out
    if grid != (7, 7):
        table = F.interpolate(table, size=grid, mode="bicubic")
    tokens = (x + table).flatten(2).permute(2, 0, 1)  # (h * w, 1, 2048), the order CLIP's pool attends in

    def asked_from(position: int) -> Tensor:
        """Compute the pool as CLIP's code does, with one position as the query instead of the class token."""
        heard, _ = F.multi_head_attention_forward(
            query=tokens[position : position + 1], key=tokens, value=tokens, embed_dim_to_check=2048, num_heads=32,
            q_proj_weight=theirs.q_proj.weight, k_proj_weight=theirs.k_proj.weight, v_proj_weight=theirs.v_proj.weight,
            in_proj_weight=None, in_proj_bias=torch.cat([theirs.q_proj.bias, theirs.k_proj.bias, theirs.v_proj.bias]),
            bias_k=None, bias_v=None, add_zero_attn=False, dropout_p=0.0, out_proj_weight=theirs.c_proj.weight,
            out_proj_bias=theirs.c_proj.bias, use_separate_proj_weight=True, training=False, need_weights=False,
        )  # fmt: skip
        return heard[0]

    positions = [0, len(tokens) // 3, len(tokens) - 1]
    pooled = torch.stack([asked_from(position) for position in positions], dim=2)
    conv, norm = pool.connect
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    residual = torch.einsum("oc,bcn->bon", conv.weight[:, :, 0, 0], x.flatten(2)[:, :, positions])
    residual = (residual - norm.running_mean[:, None]) * scale[:, None] + norm.bias[:, None]

    close(pool(x).flatten(2)[:, :, positions], (pooled + residual).clamp(min=0))


@pytest.mark.slow
@torch.no_grad()
def test_swin_equals_timms_own_model_where_windows_are_shifted_and_padded() -> None:
    # With a window of 12, maps of 36 are shifted, maps of 18 also padded, and maps of 9 are smaller than a window.
    size = (144, 144)
    torch.manual_seed(0)
    theirs = timm.create_model("swin_base_patch4_window12_384.ms_in22k", img_size=size, strict_img_size=False).eval()
    ours = SwinBase(input_size=size).eval()
    published = {name.replace("layers.", "layers_", 1): value for name, value in theirs.state_dict().items()}
    ours.backbone.load_state_dict({name: published[name] for name in ours.backbone.state_dict()})
    images = torch.randn(1, 3, *size)
    for dtype in TOLERANCE:
        raw_maps = theirs.to(dtype).forward_intermediates(images.to(dtype), indices=[1, 2, 3], intermediates_only=True)

        for found, raw in zip(ours.to(dtype)(images.to(dtype)), raw_maps, strict=True):
            # A fresh LayerNorm: mean 0 and variance 1 over the channels.
            mean, variance = raw.mean(1, keepdim=True), raw.var(1, keepdim=True, correction=0)
            close(found, (raw - mean) / (variance + 1e-5).sqrt())
