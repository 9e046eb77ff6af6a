"""What a model attended to: weights of words, and maps over the picture."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from refseg import tokenizer
from refseg.data.transforms import Geometry
from refseg.evaluation.explanation import Explainer, SentenceExplanation, explain_sentence
from refseg.evaluation.heat_maps import draw_explanation, draw_heat_map
from refseg.model_config import MODEL_CONFIGS, FCNetConfig
from refseg.models import build_model
from refseg.models.model import Explanation, SegmentationModel, TextState

GEOMETRY = Geometry(kind="letterbox", size=(64, 64))


class Told(SegmentationModel):
    """Returns a given explanation for every sentence."""

    image_mean, image_std = (0.5, 0.5, 0.5), (1.0, 1.0, 1.0)

    def __init__(self, **parts: Tensor) -> None:
        super().__init__()
        self.parts = parts
        self.place = torch.nn.Parameter(torch.zeros(1))

    def encode_text(self, token_ids: Tensor, token_mask: Tensor) -> TextState:
        assert token_mask.all()
        return TextState(words=torch.zeros(1, 1, 1), sentence=torch.zeros(1, 1), token_mask=torch.ones(1, 1).bool())

    def explain(self, image_state: Any, text_state: Any, image_index: Tensor) -> Explanation:
        return Explanation(**self.parts)


def explained(sentence: str, picture_size: tuple[int, int] = (64, 64), **parts: Tensor) -> SentenceExplanation:
    ids = tokenizer.encode(sentence)
    return explain_sentence(Told(**parts), None, ids, geometry=GEOMETRY, picture_size=picture_size)


def test_the_pieces_of_a_word_are_heard_together() -> None:
    ids = tokenizer.encode("a leftmost")
    assert len(ids) == 5  # SOS, a, two pieces, EOS

    found = explained("a leftmost", word_attention=torch.tensor([[[0.1, 0.2, 0.3, 0.15, 0.25]]]))

    assert found.words == ("[SOS]", "a", "leftmost", "[EOS]")
    np.testing.assert_allclose(found.word_weights, [[0.1, 0.2, 0.45, 0.25]], atol=1e-6)


def test_the_table_shows_words_against_emphases_by_falling_alpha() -> None:
    weights = torch.tensor([[[0.0, 0.5, 0.25, 0.25], [0.1, 0.1, 0.8, 0.0], [0.2, 0.0, 0.75, 0.05]]])

    found = explained("red dog", word_attention=weights, alpha=torch.tensor([[0.1, -0.2, 1.5]]))

    assert found.table(num_tokens=2).splitlines() == [
        "        mean     #2     #0",
        "alpha         +1.50  +0.10",
        "[SOS]    10%    20%     0%",
        "red      20%     0%    50%",
        "dog      60%    75%    25%",
        "[EOS]    10%     5%    25%",
    ]


def test_one_distribution_over_the_words_is_one_column() -> None:
    found = explained("dog", word_attention=torch.tensor([[[0.25, 0.5, 0.25]]]))

    assert found.table().splitlines() == ["        mean", "[SOS]    25%", "dog      50%", "[EOS]    25%"]


def test_a_model_without_parts_is_explained_by_its_words_alone() -> None:
    found = explained("dog")

    assert found.table() == ""
    assert found.to_json() == {
        "words": ["[SOS]", "dog", "[EOS]"], "word_weights": None, "mean_weights": None, "alpha": None,
    }  # fmt: skip
    assert draw_explanation(np.zeros((64, 64, 3), np.uint8), found) is None


def test_maps_lie_over_the_picture_without_the_border() -> None:
    # A picture that is twice as wide as high fills the middle half of the input: map rows 1 and 2 of 4.
    key_map = torch.tensor([[9.0] * 4, [0.0, 0.0, 1.0, 1.0], [0.0, 0.0, 1.0, 1.0], [9.0] * 4])
    flat = Geometry(kind="letterbox", size=(64, 64))

    found = explain_sentence(
        Told(key_maps=key_map[None, None], location=key_map[None] / 10),
        None,
        tokenizer.encode("dog"),
        geometry=flat,
        picture_size=(20, 40),
    )

    assert found.key_maps is not None
    assert found.location is not None
    assert found.key_maps.shape == (1, 128, 256)
    assert (found.key_maps.min(), found.key_maps.max()) == (0, 1)
    middle = found.location[34:94]  # between the centres of the map's two rows inside
    np.testing.assert_allclose(middle[:, :32], 0, atol=1e-6)
    np.testing.assert_allclose(middle[:, 224:], 0.1, atol=1e-6)


def test_a_heat_map_turns_the_grey_picture_yellow() -> None:
    heat = np.zeros((4, 8))
    heat[:, 4:] = 1

    drawn = draw_heat_map(np.full((2, 4, 3), 100, np.uint8), heat)

    assert drawn.shape == (4, 8, 3)
    assert drawn[0, 0].tolist() == [70, 70, 70]
    assert drawn[0, 7].tolist() == [218, 185, 22]  # 0.2 * 70 + 0.8 * (255, 214, 10)


def test_every_map_becomes_a_tile() -> None:
    parts = {
        "word_attention": torch.full((1, 5, 3), 1 / 3),
        "key_maps": torch.rand(1, 5, 4, 4),
        "location": torch.rand(1, 4, 4),
    }
    page = draw_explanation(np.full((64, 64, 3), 200, np.uint8), explained("dog", **parts))

    # Six tiles of 256 x 256 in two rows of four and two, each with two lines of text below and 8 pixels around.
    assert page is not None
    assert page.shape == (2 * (256 + 36 + 8) + 8, 4 * (256 + 8) + 8, 3)
    assert (page[-100:, -500:] == 255).all()  # the two places left


@pytest.mark.parametrize(
    ("name", "own", "shown"),
    [
        ("fcnet", {}, {"word_weights", "alpha", "key_maps"}),
        ("fcnet", {"egm": False, "ecm": False}, set()),
        ("crformer", {}, {"word_weights", "key_maps"}),
        ("lts", {}, {"location"}),
        ("lts", {"locator": "transformer"}, {"word_weights", "location"}),
        ("cris", {}, {"word_weights"}),
    ],
)
def test_every_model_shows_the_parts_it_has(name: str, own: dict[str, object], shown: set[str]) -> None:
    sizes = {"image_encoder": "tiny", "dim": 32, "num_heads": 4, "ffn_dim": 32}
    config = MODEL_CONFIGS[name].model_validate({"name": name, **sizes, **own})
    model = build_model(config, input_size=(64, 64)).eval()  # type: ignore[arg-type]
    explain = Explainer(model=model, geometry=GEOMETRY, num_tokens=6)

    found = explain(torch.randint(0, 255, (3, 20, 40), dtype=torch.uint8), "the small red circle", (40, 80))

    parts = ("word_weights", "alpha", "key_maps", "location")
    assert {part for part in parts if getattr(found, part) is not None} == shown
    assert bool(found.table()) == ("word_weights" in shown)
    has_picture = draw_explanation(np.zeros((40, 80, 3), np.uint8), found) is not None
    assert has_picture == bool(shown & {"key_maps", "location"})


@pytest.mark.parametrize("size", [(1, 1), (4, 400), (400, 4)])
def test_pictures_of_any_shape_are_explained_by_a_real_model(size: tuple[int, int]) -> None:
    config = FCNetConfig(image_encoder="tiny", dim=32, num_heads=4, ffn_dim=32, num_key_channels=3)
    model = build_model(config, input_size=(64, 64)).eval()
    explain = Explainer(model=model, geometry=GEOMETRY, num_tokens=6)
    picture = torch.randint(0, 255, (3, *size), dtype=torch.uint8)

    found = explain(picture, "the small red circle on the left", size)

    assert found.words == ("[SOS]", "the", "small", "red", "circle", "[EOS]")
    assert found.word_weights is not None
    np.testing.assert_allclose(found.word_weights.sum(axis=1), 1, atol=1e-5)
    page = draw_explanation(picture.permute(1, 2, 0).numpy(), found)
    assert page is not None
