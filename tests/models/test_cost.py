"""Multiply-accumulates against the specification's tables."""

from functools import cache

import pytest

from refseg.model_config import MODEL_CONFIGS
from refseg.models.cost import Cost, count_cost


@cache
def cost_of(name: str, encoder: str, side: int) -> Cost:
    config = MODEL_CONFIGS[name].model_validate({"name": name, "image_encoder": encoder})
    return count_cost(config, input_size=(side, side), num_tokens=17)  # type: ignore[arg-type]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "encoder", "side", "giga_macs"),
    [
        ("fcnet", "clip_resnet101", 480, 82.693),
        ("fcnet", "clip_resnet101", 416, 61.80),
        ("fcnet", "swin_base", 480, 118.61),
        ("lts", "clip_resnet101", 480, 71.6),
        ("cris", "clip_resnet101", 480, 104.72),
        ("cris", "clip_resnet50", 416, 65.96),
    ],
)
# CRFormer by CLIP ResNet-101 stands in `test_crformer`, with its parts.
def test_a_model_costs_what_the_specification_says(name: str, encoder: str, side: int, giga_macs: float) -> None:
    assert cost_of(name, encoder, side).total_macs == pytest.approx(giga_macs * 1e9, rel=0.005)


@pytest.mark.slow
def test_the_parts_of_fcnet_cost_what_the_specification_says() -> None:
    cost = cost_of("fcnet", "clip_resnet101", 480)

    expected = {
        "image_encoder": 41.692 + 3.510, "text_encoder": 0.646, "neck": 19.944, "key_conv": 0.066, "egm": 0.021,
        "global_projection": 0.0003, "ecm": 0.068, "layers": 12.467, "final_norm": 0, "head": 4.280, "other": 0,
    }  # fmt: skip
    assert {part: macs / 1e9 for part, macs in cost.macs.items()} == pytest.approx(expected, abs=0.0006)
    assert cost.total_macs == 82_693_304_320


def test_what_is_done_once_per_image_is_told_apart() -> None:
    cost = cost_of("fcnet", "clip_resnet101", 480)

    assert cost.image_macs / 1e9 == pytest.approx(66.99, abs=0.01)
    assert (cost.text_macs + cost.expression_macs) / 1e9 == pytest.approx(15.71, abs=0.01)
    assert cost.total_macs == sum(cost.macs.values())
    # RefCOCO has 7.11 expressions an image: 3.29 times less to do.
    assert cost.total_macs / cost.macs_per_expression(7.11) == pytest.approx(3.29, abs=0.005)
