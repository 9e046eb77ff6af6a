"""Folding batch norms does not change the function of a model."""

import pytest
import torch
from torch.nn.modules.batchnorm import _BatchNorm

from refseg.model_config import MODEL_CONFIGS
from refseg.models import build_model
from refseg.models.folding import fold_batch_norms
from refseg.models.model import SegmentationModel

SIZE = (64, 64)


def trained(name: str, encoder: str) -> SegmentationModel:
    """A model whose norms have statistics other than the initial ones."""
    torch.manual_seed(0)
    dim = 64 if encoder == "tiny" else 512  # the width of the words, to which some decoders attend without a projection
    settings = {"name": name, "image_encoder": encoder, "dim": dim, "ffn_dim": 64, "num_heads": 4}
    model = build_model(MODEL_CONFIGS[name].model_validate(settings), input_size=SIZE)  # type: ignore[arg-type]
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
            torch.nn.init.normal_(module.weight)
            torch.nn.init.normal_(module.bias)
    return model.double().eval()


@torch.no_grad()
@pytest.mark.parametrize("encoder", ["tiny", pytest.param("clip_resnet50", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", MODEL_CONFIGS)
def test_a_folded_model_gives_the_same_scores(name: str, encoder: str) -> None:
    model = trained(name, encoder)
    ids, mask = torch.randint(1, 49406, (2, 6)), torch.ones(2, 6, dtype=torch.bool)
    inputs = (torch.randn(1, 3, *SIZE, dtype=torch.double), ids, mask, torch.zeros(2, dtype=torch.int64))

    folded = fold_batch_norms(model)

    torch.testing.assert_close(folded(*inputs).mask_logits, model(*inputs).mask_logits, rtol=0, atol=1e-12)
    assert sum(isinstance(m, _BatchNorm) for m in folded.modules()) <= 3  # a gate has norms that follow no convolution
    assert sum(isinstance(m, _BatchNorm) for m in model.modules()) > 10


def test_a_model_in_training_is_refused() -> None:
    with pytest.raises(ValueError, match="found a model in training mode"):
        fold_batch_norms(trained("fcnet", "tiny").train())
