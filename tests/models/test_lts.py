"""LTS: counts, shapes, equations, equalities."""

from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torch.nn import functional as F

from refseg.config import load_recipe
from refseg.errors import RecipeError
from refseg.model_config import LTSConfig
from refseg.models import build_model
from refseg.models.image_encoder import DarkNet53
from refseg.models.lts import LTS, PriorSegmenter, TransformerLocator
from refseg.models.model import select_images
from refseg.models.neck import ConvNormReLU
from refseg.models.text_encoder import BiGruTextEncoder
from refseg.training.losses import LossWeights, training_loss

TINY: dict[str, Any] = {
    "name": "lts", "image_encoder": "tiny", "dim": 32, "ffn_dim": 48, "num_heads": 4, "dropout": 0.0,
}  # fmt: skip
VARIANTS = [
    {}, {"filter_size": 3}, {"locator": "transformer"}, {"text_encoder": "bigru"},
    {"text_encoder": "bigru", "locator": "transformer"},
]  # fmt: skip


def tiny(**changes: object) -> LTS:
    torch.manual_seed(0)
    model = build_model(LTSConfig.model_validate({**TINY, **changes}), input_size=(64, 64))
    assert isinstance(model, LTS)
    return model.double().eval()


def on_meta(**settings: object) -> LTS:
    """The full model on the meta device, for counts and shapes."""
    with torch.device("meta"):
        model = build_model(LTSConfig.model_validate({"name": "lts", **settings}), input_size=(480, 480))
    assert isinstance(model, LTS)
    return model.to("meta").eval()


def sentences(lengths: list[int], columns: int | None = None) -> tuple[Tensor, Tensor]:
    """Random ids with the given lengths, padded with zeros."""
    generator = torch.Generator().manual_seed(1)
    token_mask = torch.arange(columns or max(lengths)) < torch.tensor(lengths)[:, None]
    return torch.randint(1, 49406, token_mask.shape, generator=generator) * token_mask, token_mask


def pictures(count: int) -> Tensor:
    return torch.randn(count, 3, 64, 64, dtype=torch.double, generator=torch.Generator().manual_seed(2))


def same(found: Tensor | None, expected: Tensor | None) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


# By hand: neck 22,565,376 and gate 512 * 1024 + 4 * 1024. Segmenter: 513 * 256 twice and 513 * 256 * 9 three times,
# 1280 * 256, 256 * 256 * 9, a norm of 2 * 256 after each, 256 * 9 + 1.
SEGMENTER = 2 * (131_328 + 512) + 3 * (1_181_952 + 512) + (327_680 + 512) + (589_824 + 512) + 2_305


@pytest.mark.parametrize(
    ("settings", "locator", "total"),
    [
        ({}, 513 * 513, 148_826_466),
        ({"filter_size": 3}, 513 * (512 * 9 + 1), 150_927_714),
        ({"locator": "transformer"}, 4_210_176 + 513, 152_773_986),
    ],
)
def test_parameters_with_resnet_101_are_the_specified_ones(
    settings: dict[str, object], locator: int, total: int
) -> None:
    model = on_meta(image_encoder="clip_resnet101", **settings)

    assert {name: count(part) for name, part in model.named_children()} == {
        "image_encoder": 42_519_392 + 14_790_144, "text_encoder": 63_428_096, "neck": 22_565_376 + 528_384,
        "locator": locator, "segmenter": SEGMENTER,
    }  # fmt: skip
    assert count(model) == total


def test_parameters_of_the_encoders_of_its_time() -> None:
    # A direction of the GRU: 3 * 512 * (300 + 512) and 6 * 512; a vector of 300 for each of CLIP's word pieces.
    model = on_meta(image_encoder="darknet53", text_encoder="bigru")

    assert count(model.image_encoder) == 40_584_928
    assert count(model.text_encoder) == 49_408 * 300 + 2 * (1_247_232 + 3_072) + 512


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize(
    "settings",
    [
        {"image_encoder": "clip_resnet50", "locator": "transformer"},
        {"image_encoder": "darknet53", "text_encoder": "bigru"},
    ],
)
def test_shapes_at_the_sizes_of_the_papers(settings: dict[str, object]) -> None:
    model = on_meta(**settings)

    for height, width in ((480, 480), (416, 416), (480, 640)):
        h, w = height // 16, width // 16
        with torch.device("meta"):
            state = model.encode_image(torch.zeros(2, 3, height, width))
            text = model.encode_text(torch.zeros(3, 17, dtype=torch.long), torch.ones(3, 17, dtype=torch.bool))
            output = model.decode_all(state, text, torch.zeros(3, dtype=torch.long))

        assert [tuple(level.shape) for level in state] == [(2, 256, h, w), (2, 512, h, w), (2, 1024, h // 2, w // 2)]
        assert output.mask_logits.shape == (3, 1, 4 * h, 4 * w)
        assert output.location_logits is not None
        assert output.location_logits.shape == (3, 1, h, w)


@torch.no_grad()
def test_darknets_stages_in_a_row_are_timms_maps() -> None:
    encoder = DarkNet53().eval()
    images = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))

    for found, expected in zip(encoder(images), encoder.backbone(images), strict=True):
        assert torch.equal(found, expected)


def cbr(x: Tensor, block: nn.Module) -> Tensor:
    assert isinstance(block, ConvNormReLU)
    conv, norm = block[0], block[1]
    x = F.conv2d(x, conv.weight, padding=conv.padding, dilation=conv.dilation)
    return F.relu(F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias))


def doubled(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)


@torch.no_grad()
def test_the_segmenter_is_an_atrous_pyramid_over_features_and_prior() -> None:
    torch.manual_seed(0)
    segmenter = PriorSegmenter(dim=4, rates=(1, 2, 3)).double().eval()
    fused, prior = torch.randn(2, 4, 5, 6, dtype=torch.double), torch.rand(2, 1, 5, 6, dtype=torch.double)

    x = torch.cat([fused, prior], 1)
    image = torch.einsum("bchw->bc", x)[:, :, None, None] / 30
    seen = [cbr(x, branch) for branch in segmenter.branches] + [cbr(image, segmenter.image_branch).repeat(1, 1, 5, 6)]
    y = cbr(doubled(cbr(torch.cat(seen, 1), segmenter.merge)), segmenter.refine)
    expected = F.conv2d(doubled(y), segmenter.predict.weight, segmenter.predict.bias, padding=1)

    assert [branch[0].dilation[0] for branch in segmenter.branches] == [1, 1, 2, 3]  # type: ignore[index]
    assert [branch[0].dilation[0] for branch in PriorSegmenter(dim=4).branches] == [1, 6, 12, 18]  # type: ignore[index]
    torch.testing.assert_close(segmenter(fused, prior), expected, rtol=1e-10, atol=1e-10)


@torch.no_grad()
@pytest.mark.parametrize("settings", VARIANTS)
def test_the_model_is_fusion_then_prior_then_mask(settings: dict[str, object]) -> None:
    model, index = tiny(**settings), torch.tensor([0, 1])
    ids, mask = sentences([6, 4])
    state, text = model.encode_image(pictures(2)), model.encode_text(ids, mask)
    fused = model.neck.fuse(state, text.sentence)

    if isinstance(model.locator, TransformerLocator):  # each pixel's score is a product with what it is after the layer
        weight, bias = model.locator.score.weight[0, :, 0, 0], model.locator.score.bias
        heard = model.locator.decoder(fused, text.words, mask)
        located = torch.einsum("bchw,c->bhw", heard, weight)[:, None] + bias
    else:  # one convolution for each sentence, of the size that the recipe asks for
        made = model.locator.filter.generate(text.sentence)
        side = model.locator.filter.size
        assert (side, made.shape[1]) == (settings.get("filter_size", 1), 32 * side**2 + 1)
        kernels = made[:, :-1].view(2, 1, 32, side, side)
        located = torch.stack([F.conv2d(fused[i], kernels[i], made[i, -1:], padding=side // 2) for i in range(2)])
    expected = model.segmenter(fused, 1 / (1 + (-located).exp()))

    output = model.decode_all(state, text, index)
    torch.testing.assert_close(output.location_logits, located, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(output.mask_logits, expected, rtol=1e-10, atol=1e-10)


@torch.no_grad()
@pytest.mark.parametrize("settings", VARIANTS)
def test_one_image_state_serves_all_its_sentences_in_any_order(settings: dict[str, object]) -> None:
    model, images = tiny(**settings), pictures(2)
    ids, mask = sentences([5, 7, 3])
    index, order = torch.tensor([0, 0, 1]), torch.tensor([2, 0, 1])

    shared = model(images, ids, mask, index)

    alone = [model(images[i : i + 1], ids[b : b + 1], mask[b : b + 1], torch.tensor([0])) for b, i in enumerate(index)]
    same(shared.mask_logits, torch.cat([output.mask_logits for output in alone]))
    same(shared.location_logits, torch.cat([output.location_logits for output in alone]))
    same(model(images, ids[order], mask[order], index[order]).mask_logits, shared.mask_logits[order])


@torch.no_grad()
@pytest.mark.parametrize("settings", VARIANTS)
def test_padding_may_be_cut_or_hold_anything(settings: dict[str, object]) -> None:
    model, images, index = tiny(**settings), pictures(1), torch.tensor([0, 0])
    ids, mask = sentences([5, 3], columns=22)

    full = model(images, ids, mask, index).mask_logits

    same(model(images, ids[:, :5], mask[:, :5], index).mask_logits, full)
    same(model(images, torch.where(mask, ids, 777), mask, index).mask_logits, full)


@pytest.mark.parametrize("recipe", ["lts-toy", "lts-refcoco-r101", "lts-refcoco-darknet53"])
@pytest.mark.parametrize("locator", ["filter", "transformer"])
def test_every_parameter_is_trained_but_the_small_encoders_words(recipe: str, locator: str) -> None:
    # The recipe's switches and losses, on small encoders and a small width.
    settings = load_recipe(recipe)
    switches = settings.model.model_dump(exclude={"image_encoder", "dim", "ffn_dim", "num_heads"})
    model = tiny(**{**switches, "locator": locator}).train()
    ids, mask = sentences([5, 4])
    masks = torch.randint(0, 2, (2, 64, 64), dtype=torch.uint8)
    training_loss(
        model(pictures(2), ids, mask, torch.tensor([0, 1])), masks, LossWeights.of(settings),
        is_pad=torch.tensor([False, False]), num_global=torch.tensor(2), num_processes=1,
    ).backward()  # fmt: skip

    idle = [name for name, p in model.named_parameters() if p.grad is None]
    is_gru = isinstance(model.text_encoder, BiGruTextEncoder)
    assert idle == ([] if is_gru else ["text_encoder.token_embedding.weight"])
    assert is_gru or not model.text_encoder.token_embedding.weight.requires_grad


def test_the_masks_loss_reaches_the_locator_through_the_prior() -> None:
    model = tiny().train()
    ids, mask = sentences([5, 4])

    model(pictures(2), ids, mask, torch.tensor([0, 1])).mask_logits.square().sum().backward()

    assert model.locator.filter.generate.weight.grad.abs().max() > 0  # type: ignore[union-attr]


@torch.no_grad()
@pytest.mark.parametrize("settings", VARIANTS)
def test_the_explanation_is_the_prior_and_where_there_is_any_the_words_attention(settings: dict[str, object]) -> None:
    model = tiny(**settings)
    ids, mask = sentences([5, 3])
    state, text, index = model.encode_image(pictures(1)), model.encode_text(ids, mask), torch.tensor([0, 0])

    explanation = model.explain(state, text, index)

    located = model.decode_all(state, text, index).location_logits
    assert located is not None
    same(explanation.location, located[:, 0].sigmoid())
    assert explanation.alpha is None
    heard = explanation.word_attention
    if not settings.keys() & {"locator", "text_encoder"}:
        assert heard is None
        return
    if "locator" in settings:
        fused = model.neck.fuse(select_images(state, index), text.sentence)
        expected = model.locator.decoder.word_attention(fused, text.words, mask)  # type: ignore[union-attr]
    else:
        expected = model.text_encoder.word_weights(text.words, mask)  # type: ignore[operator]
    same(heard, expected[:, None])
    assert heard is not None
    same(heard.sum(2), torch.ones(2, 1, dtype=torch.double))


def test_a_gru_is_trained_at_the_full_rate_and_clips_text_encoder_is_backbone() -> None:
    gru, clip = tiny(text_encoder="bigru").parameter_groups(), tiny().parameter_groups()

    assert {name.split(".")[0] for name, _ in gru["backbone"]} == {"image_encoder"}
    assert len(gru["backbone"]) + len(gru["rest"]) == len(list(tiny(text_encoder="bigru").parameters()))
    assert {name.split(".")[0] for name, _ in clip["backbone"]} == {"image_encoder", "text_encoder"}


def test_a_transformer_refuses_words_of_another_width_and_a_filter_does_not_mind() -> None:
    on_meta(image_encoder="clip_resnet101", dim=256)

    with pytest.raises(RecipeError, match=r"model\.dim: found 256, expected 512: the locator attends to the wo"):
        on_meta(image_encoder="clip_resnet101", dim=256, locator="transformer")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"locator": "transformer", "filter_size": 3}, r"filter_size\n.*applies only to locator = "),
        ({"text_encoder": "bigru", "text_weights": "clip.safetensors"}, "a GRU .* has no published weights"),
        ({"filter_size": 2}, "filter_size"),
    ],
)
def test_settings_that_would_do_nothing_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        LTSConfig.model_validate({**TINY, **changes})
