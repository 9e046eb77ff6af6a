"""The parameters and the effect of each switch of FCNet."""

from typing import Any

import pytest
import torch
from pydantic import ValidationError

from refseg.errors import RecipeError
from refseg.model_config import FCNetConfig
from refseg.models import build_model
from refseg.models.fcnet import FCNet

TINY = {"image_encoder": "tiny", "dim": 32, "ffn_dim": 32, "num_key_channels": 4, "num_heads": 4}
SWITCHES: list[dict[str, Any]] = [
    {"egm_heads": 1}, {"egm_word_code": "sine"}, {"key_conv": "norm_relu"}, {"ecm_concat": "token"},
    {"alpha": "sigmoid"}, {"sentence_projection": "clip"}, {"head": "plain"}, {"num_decoder_layers": 4},
    {"extra_norms": False}, {"ecm": False}, {"egm": False, "ecm": False},
]  # fmt: skip


def tiny(**changes: object) -> FCNet:
    torch.manual_seed(0)
    return build_model(FCNetConfig.model_validate({**TINY, **changes}), input_size=(64, 64)).double().eval()


def num_parameters(encoder: str = "clip_resnet101", **changes: object) -> int:
    with torch.device("meta"):
        config = FCNetConfig.model_validate({"image_encoder": encoder, **changes})
        return sum(p.numel() for p in build_model(config, input_size=(480, 480)).parameters())


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"ecm_concat": "token"}, 159_753_842),  # 159.75 M
        ({"head": "plain", "num_decoder_layers": 4, "ecm_concat": "token"}, 162_786_162),  # 162.79 M
        ({"head": "plain", "num_decoder_layers": 4}, 165_934_450),  # 165.93 M
        ({"egm_heads": 1}, 162_902_130),  # as the default: these three change no parameter
        ({"egm_word_code": "sine"}, 162_902_130),
        ({"alpha": "sigmoid"}, 162_902_130),
        ({"key_conv": "norm_relu"}, 162_902_130 + 16),  # scale and shift for a bias
        ({"sentence_projection": "clip"}, 162_902_130 - 262_656),
        ({"extra_norms": False}, 162_902_130 - 3 * 6_144),
        ({"ecm": False}, 162_902_130 - 4_199_425 - 262_656),
        ({"egm": False, "ecm": False}, 162_902_130 - 4_199_425 - 262_656 - 1_249_280 - 73_744),
    ],
)
def test_parameters_of_each_decomposition_are_the_specified_ones(changes: dict[str, object], expected: int) -> None:
    assert num_parameters(**changes) == expected


def test_swin_without_the_further_projection_misses_the_published_count() -> None:
    assert num_parameters("swin_base", sentence_projection="clip") == 189_785_226  # 189.79 M, published 190.04 M


@pytest.mark.parametrize("channels", [1, 2, 4, 8, 16, 24, 32])
def test_each_number_of_emphases_of_table_3_costs_its_filters_alone(channels: int) -> None:
    assert num_parameters("clip_resnet50", num_key_channels=channels) == 147_057_266 + (channels - 16) * 4_609


@pytest.mark.parametrize("changes", SWITCHES, ids=str)
def test_every_switch_changes_the_mask_and_trains_all_that_is_built(changes: dict[str, object]) -> None:
    model, images = tiny(**changes), torch.randn(2, 3, 64, 64, dtype=torch.double)
    ids, token_mask, index = torch.randint(1, 400, (2, 5)), torch.ones(2, 5, dtype=torch.bool), torch.tensor([0, 1])

    found = model(images, ids, token_mask, index).mask_logits

    default = tiny()
    default.load_state_dict({k: v for k, v in model.state_dict().items() if fits(default, k, v)}, strict=False)
    assert found.shape == (2, 1, 16, 16)
    assert (found - default(images, ids, token_mask, index).mask_logits).abs().max() > 1e-9
    found.square().sum().backward()
    assert [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None] == []


def fits(model: FCNet, name: str, value: torch.Tensor) -> bool:
    own = model.state_dict().get(name)
    return own is not None and own.shape == value.shape


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"egm_heads": 7}, "dim 512 is not a multiple of egm_heads 7"),
        ({"ecm": False, "alpha": "sigmoid"}, r"alpha\n.*has no effect with ecm = false; leave it out"),
        (
            {"ecm": False, "egm": False, "egm_heads": 1, "key_conv": "norm_relu"},
            r"key_conv\n.*has no effect with egm = false(.|\n)*egm_heads\n.*has no effect with egm = false",
        ),
    ],
)
def test_a_switch_without_its_module_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        FCNetConfig(image_encoder="clip_resnet50", **changes)


def test_a_sentence_feature_of_another_width_cannot_be_taken_as_it_is() -> None:
    expected = 'found "clip", whose feature is 1024 wide with clip_resnet50; expected "linear", or model.dim = 1024'
    with pytest.raises(RecipeError, match=expected):
        num_parameters("clip_resnet50", sentence_projection="clip")
