"""CRFormer's counts, equations and equalities."""

from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torch.nn import functional as F

from refseg.config import load_recipe
from refseg.errors import RecipeError
from refseg.model_config import CRFormerConfig
from refseg.models import build_model
from refseg.models.attention import MultiHeadAttention
from refseg.models.cost import count_cost
from refseg.models.crformer import CRFormer, LanguageReconstruction, VisionLanguageFusion
from refseg.models.image_encoder import build_image_encoder
from refseg.models.mask_decoder import DecoderLayer, sine_code_1d, sine_code_2d
from refseg.models.model import TextState

TINY: dict[str, Any] = {
    "name": "crformer", "image_encoder": "tiny", "dim": 64, "ffn_dim": 48, "num_queries": 4, "num_heads": 4,
    "num_decoder_layers": 2,
}  # fmt: skip


def tiny(**changes: object) -> CRFormer:
    torch.manual_seed(0)
    return build_model(CRFormerConfig.model_validate({**TINY, **changes}), input_size=(64, 64)).double().eval()


def opened(model: CRFormer) -> CRFormer:
    """The model with gates that are no longer zero, as after some training."""
    for fusion in model.fusions:
        nn.init.normal_(fusion.gate_out.weight, std=0.5)
    return model


def sentences(lengths: list[int], columns: int | None = None) -> tuple[Tensor, Tensor]:
    """Random ids with the given lengths, padded with zeros."""
    generator = torch.Generator().manual_seed(1)
    token_mask = torch.arange(columns or max(lengths)) < torch.tensor(lengths)[:, None]
    return torch.randint(1, 49406, token_mask.shape, generator=generator) * token_mask, token_mask


def random_text(lengths: list[int], width: int) -> TextState:
    token_mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    words = torch.randn(len(lengths), max(lengths), width, dtype=torch.double)
    return TextState(words=words, sentence=words[:, 0], token_mask=token_mask)


def pictures(count: int) -> Tensor:
    return torch.randn(count, 3, 64, 64, dtype=torch.double, generator=torch.Generator().manual_seed(2))


def count(module: nn.Module | None) -> int:
    return sum(p.numel() for p in module.parameters()) if module else 0


# --- counts ---------------------------------------------------------------------------------------------------------

# A fusion of d channels: W_q, W_o, W_p, W_m, W_1, W_2 are d x d, W_k and W_v are 512 x d, six of the eight have a bias.
FUSION = {d: 6 * d * d + 2 * 512 * d + 6 * d for d in (256, 512, 1024)}
# A query generation: 3 x 3 convolution 512 -> 16, then 900 -> 512 and three times 512 -> 512, all with biases.
GENERATION = (9 * 512 * 16 + 16) + (900 * 512 + 512) + 3 * (512 * 512 + 512)
CALIBRATIONS = 3 * (GENERATION + 2 * 512)  # each with a norm
# A decoder layer: two attentions, three norms and two more on the branches, an MLP with a norm of 2048 inside.
LAYER = 2 * 4 * (512 * 512 + 512) + 5 * 2 * 512 + (2 * 512 * 2048 + 2048 + 512) + 2 * 2048
# Reconstruction: 22 positions, an attention, a norm, an MLP of 2048.
RECONSTRUCTION = 22 * 512 + 4 * (512 * 512 + 512) + 2 * 512 + (2 * 512 * 2048 + 2048 + 512)


@pytest.mark.parametrize(
    ("encoder", "channels", "image", "text", "neck", "total"),
    [
        ("clip_resnet50", (512, 1024, 1024), 40_416_096, 63_690_240, 23_089_664, 166_260_385),
        ("clip_resnet101", (512, 1024, 512), 57_309_536, 63_428_096, 22_565_376, 173_958_817 + 3_162_624),
        ("swin_base", (256, 512, 1024), 86_880_120, 63_428_096, 20_140_544, 202_823_865),
    ],
)
def test_parameters_are_the_specified_ones_to_the_last(
    encoder: str, channels: tuple[int, int, int], image: int, text: int, neck: int, total: int
) -> None:
    with torch.device("meta"):
        model = build_model(
            CRFormerConfig(name="crformer", image_encoder=encoder),  # type: ignore[arg-type]
            input_size=(480, 480),
        )

    assert {name: count(part) for name, part in model.named_children() if count(part)} == {
        "image_encoder": image, "text_encoder": text, "fusions": sum(FUSION[d] for d in channels), "neck": neck,
        "generation": GENERATION, "calibrations": CALIBRATIONS, "layers": 3 * LAYER, "final_norm": 1_024,
        "head": 1_182_465, "reconstruction": RECONSTRUCTION,
    }  # fmt: skip
    assert count(model) == total


def test_the_counts_of_the_blocks_are_those_of_the_specification() -> None:
    assert FUSION == {256: 656_896, 512: 2_100_224, 1024: 7_346_176}
    assert GENERATION == 73_744 + 1_249_280
    assert LAYER == 4_210_176
    assert RECONSTRUCTION == 3_162_624


@pytest.mark.parametrize(
    ("changes", "fewer"),
    [
        ({"fusion": False}, FUSION[512] + FUSION[1024] + FUSION[512]),
        ({"calibration": False}, CALIBRATIONS),
        ({"residual": False}, 3 * 1_024),
        ({"num_queries": 1}, 4 * 15 * 4_609),  # four key convolutions, 9 x 512 + 1 a channel
        # The last generation feeds the reconstruction alone, and goes with it.
        ({"reconstruction_weight": 0.0}, RECONSTRUCTION + GENERATION + 1_024),
    ],
)
def test_an_ablation_does_not_build_what_it_leaves_out(changes: dict[str, Any], fewer: int) -> None:
    with torch.device("meta"):
        model = build_model(
            CRFormerConfig.model_validate({"name": "crformer", "image_encoder": "clip_resnet101", **changes}),
            input_size=(480, 480),
        )

    assert 177_121_441 - count(model) == fewer


# --- equations: written from the docstrings, independently of the code ----------------------------------------------


def linear(layer: nn.Linear, x: Tensor) -> Tensor:
    y = torch.einsum("...i,oi->...o", x, layer.weight)
    return y if layer.bias is None else y + layer.bias


def norm(layer: nn.LayerNorm, x: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() * layer.weight + layer.bias


def attention(block: MultiHeadAttention, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    q, k, v = (
        linear(layer, x).reshape(*x.shape[:2], block.num_heads, -1)
        for layer, x in ((block.query, query), (block.key, key), (block.value, value))
    )
    scores = torch.einsum("bnhd,bmhd->bhnm", q, k) / q.shape[3] ** 0.5
    if mask is not None:
        scores = scores.masked_fill(~mask[:, None, None], -torch.inf)
    return linear(block.out, torch.einsum("bhnm,bmhd->bnhd", scores.softmax(3), v).flatten(2))


def generation(block: Any, features: Tensor, text: TextState) -> Tensor:
    """Q = CrossAttn(Flatten(Conv(V)), F_t, F_t) on the native grid."""
    patches = F.unfold(features, 3, padding=1)  # (B, C*9, h*w)
    keys = torch.einsum("kc,bcm->bkm", block.key_conv.weight.flatten(1), patches) + block.key_conv.bias[:, None]
    return attention(block.egm.attention, keys, text.words, text.words, text.token_mask)


def decoder_layer(layer: DecoderLayer, x: Tensor, grid: tuple[int, int], queries: Tensor) -> Tensor:
    p, p1 = sine_code_2d(grid, x.shape[2]).double(), sine_code_1d(queries.shape[1], x.shape[2]).double()
    y = norm(layer.self_norm, x)
    x = x + norm(layer.self_out_norm, attention(layer.self_attention, y + p, y + p, y, None))
    y = norm(layer.cross_norm, x)
    x = x + norm(layer.cross_out_norm, attention(layer.cross_attention, y + p, queries + p1, queries, None))
    first, _, _, inner, second = layer.mlp
    return x + linear(second, norm(inner, linear(first, norm(layer.mlp_norm, x)).relu()))


@torch.no_grad()
def test_fusion_is_its_equation() -> None:
    fusion = VisionLanguageFusion(dim=6, word_dim=5).double()
    nn.init.normal_(fusion.gate_out.weight)
    v, text = torch.randn(2, 6, 3, 4, dtype=torch.double), random_text([4, 2], 5)

    x = torch.einsum("bdhw->bhwd", v).reshape(2, 12, 6)
    query = linear(fusion.query, x)
    query = (query - query.mean(1, keepdim=True)) / (query.var(1, unbiased=False, keepdim=True) + 1e-5).sqrt()
    scores = torch.einsum("bnd,bld->bnl", query, linear(fusion.key, text.words)) / 6**0.5
    weights = scores.masked_fill(~text.token_mask[:, None], -torch.inf).softmax(2)
    heard = linear(fusion.out, torch.einsum("bnl,bld->bnd", weights, linear(fusion.value, text.words)))
    heard = (heard - heard.mean(1, keepdim=True)) / (heard.var(1, unbiased=False, keepdim=True) + 1e-5).sqrt()
    f = F.gelu(linear(fusion.mix, F.gelu(linear(fusion.pixel, x)) * heard))
    expected = x + torch.tanh(linear(fusion.gate_out, linear(fusion.gate_in, f).relu())) * f

    torch.testing.assert_close(
        fusion(v, text.words, text.token_mask), expected.mT.reshape(2, 6, 3, 4), rtol=0, atol=1e-10
    )


@torch.no_grad()
@pytest.mark.parametrize("residual", [True, False])
def test_a_step_of_the_calibration_decoder_is_its_equations(residual: bool) -> None:
    # V_1 = layer(V_0; Q_0) with Q_0 = G_0(V_0, F_t); Q_1 = LN(Q_0 + G_1(V_1, F_t)), or G_1(V_1, F_t).
    model = tiny(residual=residual)
    v0, text = torch.randn(2, 64, 4, 4, dtype=torch.double), random_text([5, 3], 64)
    for module in model.modules():  # norms that scale and shift, so that a missing one is seen
        if isinstance(module, nn.LayerNorm):
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)

    v1, q1 = model._until_last_layer(v0, text)

    q0 = generation(model.generation, v0, text)
    pixels = decoder_layer(model.layers[0], v0.flatten(2).mT, (4, 4), q0)
    torch.testing.assert_close(v1.flatten(2).mT, pixels, rtol=0, atol=1e-10)
    made = generation(model.calibrations[0].generation, pixels.mT.reshape(2, 64, 4, 4), text)
    expected = norm(model.calibrations[0].norm, q0 + made) if residual else made
    torch.testing.assert_close(q1, expected, rtol=0, atol=1e-10)


@torch.no_grad()
def test_the_rebuilt_words_are_compared_at_unit_length_over_the_sentences_own_tokens() -> None:
    module = LanguageReconstruction(dim=8, word_dim=6, num_heads=2, ffn_dim=10, num_positions=7).double()
    queries, text = torch.randn(2, 3, 8, dtype=torch.double), random_text([5, 2], 6)

    positions = module.positions[:5].expand(2, 5, 8)
    hidden = norm(module.norm, attention(module.attention, positions, queries, queries, None))
    rebuilt = linear(module.mlp[2], linear(module.mlp[0], hidden).relu())
    cosine = torch.einsum("bld,bld->bl", rebuilt, text.words) / rebuilt.norm(dim=2) / text.words.norm(dim=2)
    expected = torch.stack([(2 - 2 * cosine[0]).mean(), (2 - 2 * cosine[1, :2]).mean()])

    torch.testing.assert_close(module(queries, text.words, text.token_mask), expected, rtol=0, atol=1e-10)


@torch.no_grad()
def test_the_whole_model_is_its_parts_in_the_papers_order() -> None:
    # The encoder by its stages with a fusion after each; neck; Q_0; two layers with a calibration between; head.
    model = opened(tiny())
    images, (ids, mask) = pictures(1), sentences([5])
    words, _ = model.text_encoder(ids, mask)
    net, text = model.image_encoder.backbone, TextState(words=words, sentence=words[:, 0], token_mask=mask)

    x = net.layer1(net.maxpool(net.act1(net.bn1(net.conv1(images)))))
    c2 = model.fusions[0](net.layer2(x), words, mask)
    c3 = model.fusions[1](net.layer3(c2), words, mask)
    c4 = model.fusions[2](net.layer4(c3), words, mask)
    v0 = model.neck(c2, c3, c4)
    q0 = generation(model.generation, v0, text)
    v1 = decoder_layer(model.layers[0], v0.flatten(2).mT, (4, 4), q0)
    q1 = norm(
        model.calibrations[0].norm, q0 + generation(model.calibrations[0].generation, v1.mT.view(1, 64, 4, 4), text)
    )
    v2 = norm(model.final_norm, decoder_layer(model.layers[1], v1, (4, 4), q1))
    expected = model.head(v2.mT.reshape(1, 64, 4, 4))

    found = model(images, ids, mask, torch.tensor([0])).mask_logits
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)


# --- fusion in the encoder ------------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("name", ["tiny", "clip_resnet50", pytest.param("swin_base", marks=pytest.mark.slow)])
def test_a_new_fusion_leaves_the_encoder_as_it_was_bit_for_bit(name: str) -> None:
    encoder = build_image_encoder(name, (64, 64)).eval()
    text, x = random_text([4], 5), encoder.to_c2(pictures(1).float())
    maps = []
    for dim, stage in zip(encoder.channels, (encoder.to_c3, encoder.to_c4, None), strict=True):
        x = VisionLanguageFusion(dim=dim, word_dim=5)(x, text.words.float(), text.token_mask)
        maps.append(x)
        x = stage(x) if stage else x

    for fused, plain in zip(encoder.finish((maps[0], maps[1], maps[2])), encoder(pictures(1).float()), strict=True):
        assert torch.equal(fused, plain)
        assert fused.stride() == plain.stride()  # else the next convolution would take another way, and round otherwise


def test_at_its_zero_start_the_gate_alone_has_a_gradient_and_once_open_all_of_the_fusion_has() -> None:
    torch.manual_seed(0)
    fusion = VisionLanguageFusion(dim=6, word_dim=5).double()
    v, text = torch.randn(2, 6, 3, 4, dtype=torch.double), random_text([4, 2], 5)

    def moved() -> set[str]:
        fusion.zero_grad()
        fusion(v, text.words, text.token_mask).pow(3).sum().backward()
        return {name for name, p in fusion.named_parameters() if p.grad is not None and p.grad.abs().max() > 1e-9}

    assert moved() == {"gate_out.weight"}
    torch.optim.SGD(fusion.parameters(), lr=0.1).step()
    # A shift of all positions vanishes in the norm over positions, one of all keys in the softmax.
    without_effect = {"query.bias", "key.bias", "value.bias", "out.bias"}
    assert {name for name, _ in fusion.named_parameters()} - moved() == without_effect


@torch.no_grad()
def test_each_map_is_fused_with_the_sentence_before_the_next_stage_reads_it() -> None:
    # Only one gate is open at a time: then what comes after it depends on the sentence, and what comes before does not.
    for level in range(3):
        model = tiny()
        nn.init.normal_(model.fusions[level].gate_out.weight, std=0.5)
        text = model.encode_text(*sentences([5, 5]))
        seen: list[Tensor] = []
        model.neck.register_forward_pre_hook(lambda _, maps, seen=seen: seen.extend(maps))

        model._fuse(model.encode_image(pictures(1)).features[[0, 0]], text)

        depends = [bool((x[0] - x[1]).abs().max() > 1e-9) for x in seen]
        assert depends == [number >= level for number in range(3)]


# --- invariances ----------------------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("fusion", [True, False])
def test_one_image_state_serves_all_its_sentences(fusion: bool) -> None:
    model = opened(tiny(fusion=fusion))
    images, (ids, mask), index = pictures(2), sentences([5, 7, 3]), torch.tensor([0, 0, 1])

    shared = model(images, ids, mask, index).mask_logits

    alone = [
        model(images[i : i + 1], ids[b : b + 1], mask[b : b + 1], torch.tensor([0])).mask_logits
        for b, i in enumerate(index)
    ]
    torch.testing.assert_close(shared, torch.cat(alone), rtol=0, atol=1e-12)
    assert (shared[0] - shared[1]).abs().max() > 1e-6


@torch.no_grad()
def test_cutting_or_changing_the_padding_changes_nothing() -> None:
    model = opened(tiny()).train()  # the error of reconstruction is there in training alone
    for module in model.modules():
        if isinstance(module, (nn.BatchNorm2d, nn.Dropout, MultiHeadAttention)):
            module.eval()
    images, index = pictures(1), torch.tensor([0, 0])
    ids, mask = sentences([5, 3], columns=22)

    whole = model(images, ids, mask, index)
    trimmed = model(images, ids[:, :5], mask[:, :5], index)
    other = model(images, torch.where(mask, ids, 777), mask, index)

    for output in (trimmed, other):
        torch.testing.assert_close(output.mask_logits, whole.mask_logits, rtol=0, atol=1e-12)
        torch.testing.assert_close(output.reconstruction_error, whole.reconstruction_error, rtol=0, atol=1e-12)


@torch.no_grad()
def test_the_order_of_a_batch_does_not_matter() -> None:
    model = opened(tiny())
    images, (ids, mask), index = pictures(2), sentences([5, 7, 3]), torch.tensor([0, 0, 1])
    order = torch.tensor([2, 0, 1])

    found = model(images.flip(0), ids[order], mask[order], 1 - index[order]).mask_logits

    torch.testing.assert_close(found, model(images, ids, mask, index).mask_logits[order], rtol=0, atol=1e-12)


@torch.no_grad()
def test_an_input_off_the_native_grid_is_segmented_at_its_own_size() -> None:
    ids, mask = sentences([4])

    logits = tiny()(torch.randn(1, 3, 96, 128, dtype=torch.double), ids, mask, torch.tensor([0])).mask_logits

    assert logits.shape == (1, 1, 24, 32)
    assert logits.isfinite().all()


# --- training -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {}, {"fusion": False}, {"calibration": False}, {"residual": False}, {"num_queries": 1},
        {"reconstruction_weight": 0.0}, {"calibration": False, "reconstruction_weight": 0.0},
        {"num_decoder_layers": 1}, {"num_decoder_layers": 1, "reconstruction_weight": 0.0}, {"extra_norms": False},
    ],
)  # fmt: skip
def test_every_parameter_is_trained_or_named_as_frozen(changes: dict[str, Any]) -> None:
    model = tiny(**changes).train()
    ids, mask = sentences([5, 4])

    output = model(pictures(2), ids, mask, torch.tensor([0, 1]))
    loss = output.mask_logits.square().sum()
    if output.reconstruction_error is not None:
        loss = loss + output.reconstruction_error.sum()
    loss.backward()

    assert [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None] == []
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    # No sentence feature is used; the small text encoder's random words are kept.
    assert frozen == {"text_encoder.text_projection", "text_encoder.token_embedding.weight"}
    assert (output.reconstruction_error is None) == (model.reconstruction is None)


def test_the_last_queries_are_made_in_training_alone() -> None:
    model, (ids, mask) = tiny(), sentences([5])
    calls: list[bool] = []
    model.calibrations[-1].register_forward_hook(lambda *_: calls.append(model.training))

    assert model(pictures(1), ids, mask, torch.tensor([0])).reconstruction_error is None
    assert calls == []
    model.train()(pictures(2), ids[[0, 0]], mask[[0, 0]], torch.tensor([0, 1]))
    assert calls == [True]


def test_rebuilding_gives_its_target_no_gradient_and_its_queries_one() -> None:
    module = LanguageReconstruction(dim=8, word_dim=6, num_heads=2, ffn_dim=10, num_positions=7)
    queries = torch.randn(1, 3, 8, requires_grad=True)
    words = torch.randn(1, 4, 6, requires_grad=True)

    module(queries, words, torch.ones(1, 4, dtype=torch.bool)).sum().backward()

    assert words.grad is None
    assert queries.grad is not None
    assert queries.grad.abs().max() > 0


def test_new_parts_are_trained_at_the_full_rate() -> None:
    groups = tiny().parameter_groups()

    rest = {name.split(".")[0] for name, _ in groups["rest"]}
    assert rest >= {"fusions", "neck", "generation", "calibrations", "layers", "reconstruction"}
    assert {name.split(".")[0] for name, _ in groups["backbone"]} == {"image_encoder", "text_encoder"}


# --- explanations and errors ----------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("changes", [{}, {"calibration": False}, {"num_decoder_layers": 1}])
def test_the_explanation_is_of_the_queries_that_the_last_layer_attends_to(changes: dict[str, Any]) -> None:
    model = opened(tiny(num_heads=1, **changes))
    (ids, mask), index = sentences([5, 3]), torch.tensor([0, 0])
    state, text = model.encode_image(pictures(1)), model.encode_text(ids, mask)
    made: list[tuple[Tensor, Tensor]] = []
    for module in model.modules():
        if type(module).__name__ == "EmphasisGeneration":
            module.register_forward_hook(lambda m, args, out: made.append((m.attention, out)))

    model.decode(state, text, index)
    attention_block, queries = made[-1]
    explanation = model.explain(state, text, index)

    weights = explanation.word_attention
    assert weights is not None
    assert weights.shape == (2, 4, 5)
    torch.testing.assert_close(weights.sum(dim=2), torch.ones(2, 4, dtype=torch.double))
    assert not weights[1, :, 3:].any()
    # One head: the weights and the words give the very queries.
    rebuilt = attention_block.out(weights @ attention_block.value(text.words))
    torch.testing.assert_close(rebuilt, queries, rtol=0, atol=1e-12)
    assert explanation.key_maps is not None
    assert explanation.key_maps.shape == (2, 4, 4, 4)


def test_a_sentence_longer_than_the_table_of_positions_is_refused_with_the_remedy() -> None:
    model = tiny(reconstruction_positions=5).train()
    ids, mask = sentences([6, 6])

    with pytest.raises(RecipeError, match=r"reconstruction_positions: found 5, expected 6 or more.*data\.num_tokens"):
        model(pictures(2), ids, mask, torch.tensor([0, 1]))


def test_a_residual_between_queries_that_are_not_calibrated_is_refused() -> None:
    with pytest.raises(ValidationError, match=r"residual\n.*has no effect with calibration = false"):
        CRFormerConfig(name="crformer", image_encoder="tiny", calibration=False, residual=False)


# --- recipes and cost -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dataset", ["refcoco", "refcocoplus", "refcocog"])
@pytest.mark.parametrize("encoder", ["r101", "swin"])
def test_recipes_train_as_fcnets_do_with_another_model(dataset: str, encoder: str) -> None:
    ours, fcnets = (load_recipe(f"{model}-{dataset}-{encoder}") for model in ("crformer", "fcnet"))

    assert (ours.data, ours.train, ours.eval) == (fcnets.data, fcnets.train, fcnets.eval)
    assert (ours.model.name, ours.model.image_encoder) == ("crformer", fcnets.model.image_encoder)
    assert ours.model.reconstruction_positions >= ours.data.num_tokens


@pytest.mark.slow
def test_work_at_480_pixels_is_the_specified_and_an_eighth_of_it_is_shared_by_an_images_sentences() -> None:
    config = CRFormerConfig(name="crformer", image_encoder="clip_resnet101")

    cost = count_cost(config, input_size=(480, 480), num_tokens=17)

    assert cost.total_macs == pytest.approx(94.7e9, rel=0.005)
    assert cost.image_macs == pytest.approx(11.0e9, rel=0.005)  # stem to the second stage
    # Six d x d maps and both products with 17 words on 3600, 900 and 225 positions; keys and values of the words.
    positions = {3600: 512, 900: 1024, 225: 512}
    assert cost.macs["fusions"] == sum(n * (6 * d * d + 2 * 17 * d) + 2 * 17 * 512 * d for n, d in positions.items())
