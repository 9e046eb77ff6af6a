"""The CRIS-style baseline: counts, shapes, equations, equalities."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from refseg.config import load_recipe
from refseg.errors import RecipeError
from refseg.model_config import CRISConfig
from refseg.models import build_model
from refseg.models.cris import CRIS, Projector
from refseg.models.model import select_images

TINY: dict[str, Any] = {
    "name": "cris", "image_encoder": "tiny", "dim": 32, "ffn_dim": 48, "num_heads": 4, "num_decoder_layers": 2,
}  # fmt: skip


def tiny(**changes: object) -> CRIS:
    torch.manual_seed(0)
    model = build_model(CRISConfig.model_validate({**TINY, **changes}), input_size=(64, 64))
    assert isinstance(model, CRIS)
    return model.double().eval()


def on_meta(encoder: str) -> CRIS:
    """The full model on the meta device, for counts and shapes."""
    with torch.device("meta"):
        model = build_model(CRISConfig(name="cris", image_encoder=encoder), input_size=(480, 480))  # type: ignore
    assert isinstance(model, CRIS)
    return model.to("meta").eval()


def sentences(lengths: list[int], columns: int | None = None) -> tuple[Tensor, Tensor]:
    """Random ids with the given lengths, padded with zeros."""
    generator = torch.Generator().manual_seed(1)
    token_mask = torch.arange(columns or max(lengths)) < torch.tensor(lengths)[:, None]
    return torch.randint(1, 49406, token_mask.shape, generator=generator) * token_mask, token_mask


def pictures(count: int) -> Tensor:
    return torch.randn(count, 3, 64, 64, dtype=torch.double, generator=torch.Generator().manual_seed(2))


def same(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


# By hand, for a sentence of S: gate 1024 S + 2 norms of 2 * 1024; trunk 512 * 512 * 9 + 1024, 512 * 256 * 9 + 512,
# 256 * 256 + 256; filter (S + 1) * (256 * 9 + 1). FCNet's neck is 23,089,664 and 22,565,376.
@pytest.mark.parametrize(
    ("encoder", "parts", "total"),
    [
        ("clip_resnet50", {"image_encoder": 23_527_136 + 16_888_960, "text_encoder": 63_690_240,
                           "neck": 23_089_664 + 1_052_672, "decoder": 12_631_552,
                           "projector": 3_606_272 + 2_362_625}, 146_849_121),
        ("clip_resnet101", {"image_encoder": 42_519_392 + 14_790_144, "text_encoder": 63_428_096,
                            "neck": 22_565_376 + 528_384, "decoder": 12_631_552,
                            "projector": 3_606_272 + 1_182_465}, 161_251_681),
    ],
)  # fmt: skip
def test_parameters_are_those_of_criss_code_to_the_last(encoder: str, parts: dict[str, int], total: int) -> None:
    model = on_meta(encoder)

    assert {name: count(part) for name, part in model.named_children()} == parts
    assert count(model) == total


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("encoder", ["clip_resnet50", "swin_base"])
def test_shapes_at_the_sizes_of_the_papers(encoder: str) -> None:
    model = on_meta(encoder)

    for height, width in ((480, 480), (416, 416), (480, 640)):
        h, w = height // 16, width // 16
        with torch.device("meta"):
            state = model.encode_image(torch.zeros(2, 3, height, width))
            text = model.encode_text(torch.zeros(3, 17, dtype=torch.long), torch.ones(3, 17, dtype=torch.bool))
            logits = model.decode(state, text, torch.zeros(3, dtype=torch.long))

        assert [tuple(level.shape) for level in state] == [(2, 256, h, w), (2, 512, h, w), (2, 1024, h // 2, w // 2)]
        assert text.words.shape == (3, 17, 512)
        assert logits.shape == (3, 1, 4 * h, 4 * w)


@torch.no_grad()
def test_the_projector_is_its_convolutions_and_then_a_filter_for_each_sentence() -> None:
    torch.manual_seed(0)
    projector = Projector(sentence_dim=5, dim=4).double().eval()
    x, sentence = torch.randn(2, 4, 3, 4, dtype=torch.double), torch.randn(2, 5, dtype=torch.double)

    def grown(y: Tensor, block: nn.Module) -> Tensor:
        y = F.interpolate(y, scale_factor=2, mode="bilinear", align_corners=False)
        conv, norm, _ = block.children()
        y = F.conv2d(y, conv.weight, padding=1)
        return F.relu(F.batch_norm(y, norm.running_mean, norm.running_var, norm.weight, norm.bias))

    y = grown(grown(x, projector.refine), projector.narrow)
    y = torch.einsum("bchw,oc->bohw", y, projector.mix.weight[:, :, 0, 0]) + projector.mix.bias.view(-1, 1, 1)
    made = projector.filter.generate(sentence)
    kernel, bias = made[:, :18].view(2, 2, 3, 3), made[:, 18]
    expected = torch.cat([F.conv2d(y[i : i + 1], kernel[i : i + 1], bias[i : i + 1], padding=1) for i in range(2)])

    torch.testing.assert_close(projector(x, sentence), expected, rtol=1e-10, atol=1e-10)


@torch.no_grad()
def test_the_sentence_gates_is_heard_and_filters() -> None:
    # Language enters in three ways. If two of them are closed, the third one alone still distinguishes two sentences.
    for open_way in ("gate", "words", "filter"):
        model = tiny()
        if open_way != "gate":
            nn.init.zeros_(model.neck.gate.project[0].weight)  # type: ignore[union-attr, arg-type]
            nn.init.ones_(model.neck.gate.project[1].bias)  # type: ignore[union-attr, arg-type]
        if open_way != "words":
            for layer in model.decoder.layers:
                nn.init.zeros_(layer.cross_attention.value.weight)  # type: ignore[union-attr, arg-type]
        if open_way != "filter":
            nn.init.zeros_(model.projector.filter.generate.weight)
            nn.init.normal_(model.projector.filter.generate.bias)
        ids, mask = sentences([6, 6])

        first, second = model(pictures(1), ids, mask, torch.tensor([0, 0])).mask_logits

        assert (first - second).abs().max() > 1e-6, open_way


@torch.no_grad()
def test_one_image_state_serves_all_its_sentences_in_any_order() -> None:
    model, images = tiny(), pictures(2)
    ids, mask = sentences([5, 7, 3])
    index, order = torch.tensor([0, 0, 1]), torch.tensor([2, 0, 1])

    shared = model(images, ids, mask, index).mask_logits

    alone = [
        model(images[i : i + 1], ids[b : b + 1], mask[b : b + 1], torch.tensor([0])).mask_logits
        for b, i in enumerate(index)
    ]
    same(shared, torch.cat(alone))
    same(model(images, ids[order], mask[order], index[order]).mask_logits, shared[order])


@torch.no_grad()
def test_padding_may_be_cut_or_hold_anything() -> None:
    model, images, index = tiny(), pictures(1), torch.tensor([0, 0])
    ids, mask = sentences([5, 3], columns=22)

    full = model(images, ids, mask, index).mask_logits

    same(model(images, ids[:, :5], mask[:, :5], index).mask_logits, full)
    same(model(images, torch.where(mask, ids, 777), mask, index).mask_logits, full)


@pytest.mark.parametrize("recipe", ["cris-toy", "cris-refcoco-r101"])
def test_every_parameter_is_trained_but_the_small_encoders_words(recipe: str) -> None:
    # The recipe's switches, on small encoders and a small width.
    settings = load_recipe(recipe).model.model_dump(exclude={"image_encoder", "dim", "ffn_dim", "num_heads"})
    model = tiny(**settings).train()
    ids, mask = sentences([5, 4])
    model(pictures(2), ids, mask, torch.tensor([0, 1])).mask_logits.square().sum().backward()

    idle = [name for name, p in model.named_parameters() if p.grad is None]
    assert idle == ["text_encoder.token_embedding.weight"]
    assert not model.text_encoder.token_embedding.weight.requires_grad


@torch.no_grad()
def test_the_explanation_says_how_much_the_picture_heard_each_word() -> None:
    model = tiny()
    ids, mask = sentences([5, 3])
    text = model.encode_text(ids, mask)
    state, index = model.encode_image(pictures(1)), torch.tensor([0, 0])

    explanation = model.explain(state, text, index)

    heard = explanation.word_attention
    assert heard is not None
    assert (explanation.alpha, explanation.location) == (None, None)
    fused = model.neck.fuse(select_images(state, index), text.sentence)
    same(heard, model.decoder.word_attention(fused, text.words, mask)[:, None])
    same(heard.sum(2), torch.ones(2, 1, dtype=torch.double))
    assert (heard[:, 0][~mask] == 0).all()


def test_words_of_another_width_than_the_decoder_are_refused() -> None:
    config = CRISConfig(name="cris", image_encoder="clip_resnet101", dim=256)

    with torch.device("meta"), pytest.raises(RecipeError, match=r"model\.dim: found 256, expected 512: the decoder at"):
        build_model(config, input_size=(64, 64))


@pytest.mark.parametrize(("name", "encoder"), [("r50", "clip_resnet50"), ("r101", "clip_resnet101")])
def test_the_recipes_hold_the_settings_of_criss_code(name: str, encoder: str) -> None:
    recipe = load_recipe(f"cris-refcoco-{name}")
    model, data, train = recipe.model, recipe.data, recipe.train

    assert (model.name, model.image_encoder, model.num_decoder_layers, model.dropout) == ("cris", encoder, 3, 0.1)
    assert (data.input_size, data.geometry, data.num_tokens) == ((416, 416), "letterbox", 17)
    assert (train.optimizer, train.lr, train.epochs, train.milestones, train.global_batch, train.weight_decay) == (
        "adam", 1e-4, 50, (35,), 64, 0.0,
    )  # fmt: skip
