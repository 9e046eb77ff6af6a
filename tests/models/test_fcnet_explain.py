"""FCNet's explanation is what the model computed."""

import pytest
import torch
from torch import Tensor

from refseg.model_config import FCNetConfig
from refseg.models import build_model
from refseg.models.fcnet import FCNet, FCNetImageState
from refseg.models.model import Explanation, TextState


def states(**changes: object) -> tuple[FCNet, FCNetImageState, TextState, Tensor]:
    """A model with two images and three sentences of 5, 3 and 4 tokens."""
    torch.manual_seed(0)
    config = {"image_encoder": "tiny", "dim": 32, "ffn_dim": 32, "num_key_channels": 6, "num_heads": 4, **changes}
    model = build_model(FCNetConfig.model_validate(config), input_size=(64, 96)).double().eval()
    token_mask = torch.arange(5) < torch.tensor([5, 3, 4])[:, None]
    image_state = model.encode_image(torch.randn(2, 3, 64, 96, dtype=torch.double))
    text_state = model.encode_text(torch.randint(1, 400, (3, 5)), token_mask)
    return model, image_state, text_state, torch.tensor([0, 0, 1])


@torch.no_grad()
def test_the_emphases_follow_from_the_shown_attention_and_alpha() -> None:
    model, image_state, text_state, index = states(egm_heads=1)
    assert model.egm is not None
    assert model.ecm is not None

    found = model.explain(image_state, text_state, index)

    assert found.word_attention is not None
    assert found.alpha is not None
    assert found.key_maps is not None
    assert found.word_attention.shape == (3, 6, 5)
    torch.testing.assert_close(found.word_attention.sum(2), torch.ones(3, 6, dtype=torch.double))
    assert found.word_attention[1, :, 3:].abs().max() == 0  # padding
    assert torch.equal(found.key_maps, image_state.key_maps[index].unflatten(2, (4, 6)))
    # One head: F_e is the shown attention over the words' values, and F_c is (1 + alpha) F_e.
    attention = model.egm.attention
    emphasis = attention.out(found.word_attention @ attention.value(text_state.words))
    calibrated = model.ecm(
        model.egm(image_state.key_maps[index], text_state.words, text_state.token_mask), text_state.sentence
    )
    torch.testing.assert_close((1 + found.alpha[:, :, None]) * emphasis, calibrated, rtol=1e-10, atol=1e-12)


@torch.no_grad()
def test_heads_are_averaged() -> None:
    model, image_state, text_state, index = states(egm_heads=4)
    assert model.egm is not None
    asked = (image_state.key_maps[index], text_state.words, text_state.token_mask)

    weights = model.egm.attention.weights(*asked)

    assert weights.shape == (3, 4, 6, 5)
    found = model.explain(image_state, text_state, index).word_attention
    assert found is not None
    torch.testing.assert_close(found, sum(weights.unbind(1)) / 4)


@torch.no_grad()
@pytest.mark.parametrize(
    ("changes", "missing"),
    [
        ({"ecm": False}, {"alpha", "location"}),
        ({"ecm": False, "egm": False}, set(Explanation._fields)),
        ({}, {"location"}),
    ],
)
def test_parts_that_an_ablation_has_not_are_none(changes: dict[str, object], missing: set[str]) -> None:
    model, *arguments = states(**changes)

    found = model.explain(*arguments)

    assert {name for name, value in found._asdict().items() if value is None} == missing
