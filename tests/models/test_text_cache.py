"""The cache of sentences returns the same states as the encoder."""

import pytest
import torch

from refseg.model_config import MODEL_CONFIGS
from refseg.models import build_model
from refseg.models.text_cache import TextCache

TINY = {"image_encoder": "tiny", "dim": 32, "ffn_dim": 32, "num_heads": 4}
IDS = torch.tensor([[49406, 5, 6, 49407, 0], [49406, 7, 49407, 0, 0], [49406, 5, 6, 49407, 0]])
MASK = torch.tensor([[True] * 4 + [False], [True] * 3 + [False] * 2, [True] * 4 + [False]])


@torch.no_grad()
@pytest.mark.parametrize("name", MODEL_CONFIGS)
def test_cached_sentences_give_the_same_scores(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    config = MODEL_CONFIGS[name].model_validate({"name": name, **TINY})
    model = build_model(config, input_size=(64, 64)).double().eval()  # type: ignore[arg-type]
    state, index = model.encode_image(torch.randn(1, 3, 64, 64, dtype=torch.double)), torch.zeros(3, dtype=torch.int64)
    expected = model.decode(state, model.encode_text(IDS, MASK), index)
    asked: list[int] = []
    encode_text = model.encode_text
    monkeypatch.setattr(model, "encode_text", lambda ids, mask: (asked.append(len(ids)), encode_text(ids, mask))[1])
    cache = TextCache(model)

    first, again = model.decode(state, cache(IDS, MASK), index), model.decode(state, cache(IDS, MASK), index)
    shorter = model.decode(state, cache(IDS[1:2], MASK[1:2]), index[:1])

    assert asked == [2]
    torch.testing.assert_close(first, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(again, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(shorter, expected[1:2], rtol=0, atol=1e-12)


@torch.no_grad()
def test_the_sentences_used_last_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build_model(MODEL_CONFIGS["fcnet"].model_validate(TINY), input_size=(64, 64)).eval()  # type: ignore[arg-type]
    cache = TextCache(model, max_sentences=1)
    cache(IDS, MASK)
    asked: list[int] = []
    encode_text = model.encode_text
    monkeypatch.setattr(model, "encode_text", lambda ids, mask: (asked.append(len(ids)), encode_text(ids, mask))[1])

    cache(IDS[2:], MASK[2:])
    cache(IDS[1:2], MASK[1:2])

    assert asked == [1]
