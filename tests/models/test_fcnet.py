"""FCNet's counts, shapes and equalities."""

import pytest
import torch
from torch import Tensor

from refseg.model_config import FCNetConfig
from refseg.models import build_model
from refseg.models.fcnet import EmphasisCalibration, EmphasisGeneration, FCNet
from refseg.models.mask_decoder import sine_code_1d, sine_code_2d
from refseg.models.neck import coordinate_maps

TINY = {"image_encoder": "tiny", "dim": 64, "ffn_dim": 64, "num_key_channels": 4, "num_heads": 4}


def tiny(**changes: object) -> FCNet:
    torch.manual_seed(0)
    return build_model(FCNetConfig.model_validate({**TINY, **changes}), input_size=(64, 64)).double().eval()


def sentences(lengths: list[int], columns: int | None = None) -> tuple[Tensor, Tensor]:
    """Random ids with the given lengths, padded with zeros."""
    generator = torch.Generator().manual_seed(1)
    token_mask = torch.arange(columns or max(lengths)) < torch.tensor(lengths)[:, None]
    return torch.randint(1, 49406, token_mask.shape, generator=generator) * token_mask, token_mask


def count(module: torch.nn.Module | None) -> int:
    return sum(p.numel() for p in module.parameters()) if module else 0


@pytest.mark.parametrize(
    ("encoder", "expected"),
    [
        ("clip_resnet50", {"total": 147_057_266, "image_encoder": 23_527_136 + 16_888_960, "text_encoder": 63_690_240,
                           "neck": 23_089_664, "global_projection": 524_800}),
        ("clip_resnet101", {"total": 162_902_130, "image_encoder": 42_519_392 + 14_790_144, "text_encoder": 63_428_096,
                            "neck": 22_565_376, "global_projection": 262_656}),
        ("swin_base", {"total": 190_047_882, "image_encoder": 86_876_536 + 3_584, "text_encoder": 63_428_096,
                       "neck": 20_140_544, "global_projection": 262_656}),
    ],
)  # fmt: skip
def test_parameters_are_the_specified_ones_to_the_last(encoder: str, expected: dict[str, int]) -> None:
    with torch.device("meta"):
        model = build_model(FCNetConfig(image_encoder=encoder), input_size=(480, 480))  # type: ignore[arg-type]

    found = {name: count(part) for name, part in model.named_children() if count(part)}
    shared = {"egm": 1_249_280, "ecm": 4_199_425, "key_conv": 73_744, "layers": 12_630_528, "final_norm": 1_024,
              "head": 1_182_465}  # fmt: skip
    assert {"total": count(model), **found} == {**expected, **shared}


def test_the_neck_is_counted_layer_by_layer() -> None:
    with torch.device("meta"):
        neck = build_model(FCNetConfig(image_encoder="clip_resnet101"), input_size=(480, 480)).neck

    assert {name: count(part) for name, part in neck.named_children()} == {
        "reduce5": 526_336, "reduce4": 4_719_616, "merge4": 787_456, "reduce3": 1_180_160, "merge3": 394_240,
        "smooth5": 4_719_616, "smooth4": 2_360_320, "smooth3": 2_360_320, "aggregate": 787_456,
        "coordinates": 4_729_856,
    }  # fmt: skip


def test_another_native_size_changes_the_query_projection_alone() -> None:
    with torch.device("meta"):
        small, large = (
            build_model(FCNetConfig(image_encoder="clip_resnet101"), input_size=(side, side)) for side in (416, 480)
        )

    assert count(large) - count(small) == 512 * (30 * 30 - 26 * 26)
    assert large.egm is not None
    assert large.egm.attention.query.weight.shape == (512, 900)


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("size", [(480, 480), (416, 416), (480, 640)])
def test_shapes_at_the_sizes_of_the_papers(size: tuple[int, int]) -> None:
    h, w = size[0] // 16, size[1] // 16
    with torch.device("meta"):
        model = build_model(FCNetConfig(image_encoder="clip_resnet101"), input_size=(480, 480)).eval().to("meta")
        images = torch.zeros(1, 3, *size)
        maps = model.image_encoder(images)
        state = model.encode_image(images)
        text = model.encode_text(torch.zeros(3, 17, dtype=torch.long), torch.ones(3, 17, dtype=torch.bool))
        logits = model.decode(state, text, torch.zeros(3, dtype=torch.long))

    assert [tuple(m.shape) for m in maps] == [(1, 512, 2 * h, 2 * w), (1, 1024, h, w), (1, 512, h // 2, w // 2)]
    assert state.pixels.shape == (1, h, w, 512)
    assert state.key_maps.shape == (1, 16, 900)
    assert text.words.shape == (3, 17, 512)
    assert text.sentence.shape == (3, 512)
    assert logits.shape == (3, 1, size[0] // 4, size[1] // 4)


@torch.no_grad()
def test_one_image_state_serves_all_its_sentences() -> None:
    model = tiny()
    images = torch.randn(2, 3, 64, 64, dtype=torch.double)
    ids, mask = sentences([5, 7, 3])
    index = torch.tensor([0, 0, 1])

    shared = model(images, ids, mask, index).mask_logits

    alone = [
        model(images[i : i + 1], ids[b : b + 1], mask[b : b + 1], torch.tensor([0])).mask_logits
        for b, i in enumerate(index)
    ]
    torch.testing.assert_close(shared, torch.cat(alone), rtol=0, atol=1e-12)


@torch.no_grad()
def test_cutting_columns_of_padding_changes_nothing() -> None:
    model = tiny()
    images, index = torch.randn(1, 3, 64, 64, dtype=torch.double), torch.tensor([0, 0])
    ids, mask = sentences([5, 3], columns=22)

    trimmed = model(images, ids[:, :5], mask[:, :5], index).mask_logits

    torch.testing.assert_close(model(images, ids, mask, index).mask_logits, trimmed, rtol=0, atol=1e-12)


@torch.no_grad()
def test_what_stands_in_the_padding_does_not_matter() -> None:
    model = tiny()
    images, index = torch.randn(1, 3, 64, 64, dtype=torch.double), torch.tensor([0])
    ids, mask = sentences([4], columns=9)

    other = torch.where(mask, ids, 777)

    expected = model(images, ids, mask, index).mask_logits
    torch.testing.assert_close(model(images, other, mask, index).mask_logits, expected, rtol=0, atol=1e-12)


@torch.no_grad()
def test_another_sentence_gives_another_mask() -> None:
    model = tiny()
    images = torch.randn(1, 3, 64, 64, dtype=torch.double)
    ids, mask = sentences([6, 6])

    first, second = model(images, ids, mask, torch.tensor([0, 0])).mask_logits

    assert (first - second).abs().max() > 1e-6


@torch.no_grad()
def test_an_input_off_the_native_grid_is_segmented_at_its_own_size() -> None:
    model = tiny()
    ids, mask = sentences([4])

    logits = model(torch.randn(1, 3, 96, 128, dtype=torch.double), ids, mask, torch.tensor([0])).mask_logits

    assert logits.shape == (1, 1, 24, 32)
    assert logits.isfinite().all()


@torch.no_grad()
def test_calibration_with_a_zero_score_is_the_identity() -> None:
    calibration = EmphasisCalibration(dim=8, num_heads=2)
    torch.nn.init.zeros_(calibration.score.weight)
    torch.nn.init.zeros_(calibration.score.bias)
    emphasis = torch.randn(2, 4, 8)

    assert torch.equal(calibration(emphasis, torch.randn(2, 8)), emphasis)


@torch.no_grad()
def test_calibration_adds_alpha_times_the_emphasis() -> None:
    calibration = EmphasisCalibration(dim=8, num_heads=2)
    torch.nn.init.zeros_(calibration.score.weight)
    torch.nn.init.constant_(calibration.score.bias, 0.5)  # alpha = 0.5 for every token
    emphasis = torch.randn(2, 4, 8)

    torch.testing.assert_close(calibration(emphasis, torch.randn(2, 8)), 1.5 * emphasis)


@torch.no_grad()
def test_emphasis_is_a_mean_of_the_words_weighed_by_a_map_of_key_channels_by_words() -> None:
    # Values and output are the identity and one head attends: F_e = softmax(Q K^T / sqrt(4)) F_t by hand.
    generation = EmphasisGeneration(grid=(3, 3), word_dim=4, dim=4, num_heads=1)
    attention = generation.attention
    for projection in (attention.value, attention.out):
        torch.nn.init.eye_(projection.weight)
    key_maps, words = torch.randn(1, 3, 9), torch.randn(1, 5, 4)
    mask = torch.tensor([[True, True, True, True, False]])

    scores = attention.query(key_maps[0]) @ attention.key(words[0, :4]).T / 2
    assert scores.shape == (3, 4)
    expected = scores.softmax(dim=1) @ words[0, :4]

    torch.testing.assert_close(generation(key_maps, words, mask)[0], expected)


def test_every_parameter_is_trained_with_and_without_the_modules_of_table_2() -> None:
    for changes in ({}, {"ecm": False}, {"ecm": False, "egm": False}, {"extra_norms": False}):
        model = tiny(**changes).train()
        ids, mask = sentences([5, 4])
        output = model(torch.randn(2, 3, 64, 64, dtype=torch.double), ids, mask, torch.tensor([0, 1]))
        output.mask_logits.square().sum().backward()

        idle = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
        assert idle == [], changes


def test_without_generation_the_decoder_attends_to_the_words_and_not_the_padding() -> None:
    model = tiny(ecm=False, egm=False)
    ids, mask = sentences([4], columns=9)
    images, index = torch.randn(1, 3, 64, 64, dtype=torch.double), torch.tensor([0])

    with torch.no_grad():
        torch.testing.assert_close(
            model(images, ids, mask, index).mask_logits,
            model(images, ids[:, :4], mask[:, :4], index).mask_logits,
            rtol=0,
            atol=1e-12,
        )


def test_backbone_parameters_are_the_encoders_less_positions() -> None:
    groups = tiny().parameter_groups()

    assert all(name.startswith(("image_encoder.", "text_encoder.")) for name, _ in groups["backbone"])
    assert "text_encoder.positional_embedding" in [name for name, _ in groups["rest"]]
    # The small text encoder's random words are not trained.
    assert len(groups["backbone"]) + len(groups["rest"]) == len(list(tiny().parameters())) - 1


def test_sine_codes_by_hand() -> None:
    # Width 4: rates 1 and 1/100; position 2 is sin 2, cos 2, sin 0.02, cos 0.02.
    expected = torch.tensor([0.9092974, -0.4161468, 0.0199987, 0.9998000])
    torch.testing.assert_close(sine_code_1d(3, 4)[2], expected)
    # On a grid of 2 rows and 3 columns the fifth position is (row 1, column 1): x code of 1, then y code of 1.
    torch.testing.assert_close(sine_code_2d((2, 3), 8)[4], sine_code_1d(2, 4)[1].repeat(2))


def test_coordinates_run_from_edge_to_edge_x_first() -> None:
    maps = coordinate_maps(torch.zeros(1, 5, 2, 3))

    assert maps[0, 0].tolist() == [[-1, 0, 1], [-1, 0, 1]]
    assert maps[0, 1].tolist() == [[-1, -1, -1], [1, 1, 1]]
