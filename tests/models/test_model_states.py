"""The states of every model hold only tensors, which have a row for each image or each sentence."""

import pytest
import torch

from refseg.config import load_recipe
from refseg.models import build_model
from refseg.models.model import SegmentationModel, TextState, select_images


def model_of(recipe: str, *overrides: str) -> SegmentationModel:
    torch.manual_seed(0)
    given = load_recipe(recipe, overrides)
    return build_model(given.model, input_size=(64, 96)).double().eval()


@torch.no_grad()
@pytest.mark.parametrize(
    ("recipe", "overrides"),
    [
        ("toy", ()),
        ("toy", ("model.egm=false", "model.ecm=false")),
        ("crformer-toy", ()),
        ("crformer-toy", ("model.fusion=false",)),
        ("lts-toy", ()),
        ("cris-toy", ()),
    ],
)
def test_states_are_tensors_with_a_row_for_each_image_or_sentence(recipe: str, overrides: tuple[str, ...]) -> None:
    model = model_of(recipe, *overrides)
    images = torch.randn(3, 3, 64, 96, dtype=torch.double)
    token_ids, token_mask = torch.randint(1, 400, (2, 5)), torch.ones(2, 5, dtype=torch.bool)

    image_state, text_state = model.encode_image(images), model.encode_text(token_ids, token_mask)

    assert isinstance(text_state, TextState)
    assert [len(tensor) for tensor in image_state] == [3] * len(image_state)
    assert [len(tensor) for tensor in text_state] == [2] * len(text_state)
    selected = select_images(image_state, torch.tensor([2, 0]))
    assert type(selected) is type(image_state)
    for row, whole in zip(selected, image_state, strict=True):
        assert torch.equal(row, whole[[2, 0]])
    pairs = model.decode_pairs(selected, text_state).mask_logits
    assert torch.equal(pairs, model.decode(image_state, text_state, torch.tensor([2, 0])))
