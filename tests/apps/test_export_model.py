"""An exported model answers as the model does, for any number of images and sentences of any length."""

from pathlib import Path

import onnxruntime
import pytest
import torch

from refseg.apps.export_model import export_model
from refseg.config import load_recipe
from refseg.errors import UsageError
from refseg.models import build_model
from refseg.models.model import SegmentationModel

TOLERANCE = {"rtol": 0, "atol": 1e-3}
"""As `export_model` itself asks for: other kernels add in another order."""


NUM_LAYERS = {"fcnet": 1, "crformer": 2, "lts": 1, "cris": 1}
"""The fewest that use every module: CRFormer calibrates between two layers."""


def inputs() -> tuple[torch.Tensor, ...]:
    """One picture with three sentences of up to nine tokens: nothing like what the programs were traced with."""
    generator = torch.Generator().manual_seed(1)
    token_mask = torch.arange(9) < torch.tensor([9, 4, 7])[:, None]
    token_ids = torch.randint(1, 49406, (3, 9), generator=generator) * token_mask
    return torch.randn(1, 3, 128, 128, generator=generator), token_ids, token_mask, torch.zeros(3, dtype=torch.int64)


def exported(name: str, kind: str, out: Path) -> SegmentationModel:
    recipe = load_recipe("toy-quick", [f"model.name={name}", f"model.num_decoder_layers={NUM_LAYERS[name]}"])
    torch.manual_seed(0)
    model = build_model(recipe.model, input_size=recipe.data.input_size).eval()
    assert export_model(model, recipe, out, kind=kind) < 1e-3  # type: ignore[arg-type]
    return model


@torch.no_grad()
@pytest.mark.slow
def test_torch_programs_answer_as_the_model(tmp_path: Path) -> None:
    # One model is enough: the ONNX programs below are made from torch's, of every model.
    model = exported("lts", "torch", tmp_path / "out")
    images, *sentences = inputs()

    image, sentence = (torch.export.load(tmp_path / f"out/{half}.pt2").module() for half in ("image", "sentence"))
    found = sentence(image(images), *sentences)

    torch.testing.assert_close(
        found, model(images, *sentences).mask_logits, rtol=0, atol=1e-3
    )  # as `export_model` promises


@torch.no_grad()
@pytest.mark.slow
@pytest.mark.parametrize("name", NUM_LAYERS)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_onnx_programs_answer_as_the_model(tmp_path: Path, name: str) -> None:
    model = exported(name, "onnx", tmp_path / "out")
    images, *sentences = inputs()

    image, sentence = (onnxruntime.InferenceSession(tmp_path / f"out/{half}.onnx") for half in ("image", "sentence"))
    state = image.run(None, {"images": images.numpy()})
    values = [*state, *(value.numpy() for value in sentences)]
    found = sentence.run(None, {entry.name: v for entry, v in zip(sentence.get_inputs(), values, strict=True)})[0]

    torch.testing.assert_close(
        torch.from_numpy(found), model(images, *sentences).mask_logits, rtol=0, atol=1e-3
    )  # as `export_model` promises


def test_a_folder_that_is_there_is_not_written_over(tmp_path: Path) -> None:
    recipe = load_recipe("toy-quick")
    model = build_model(recipe.model, input_size=(128, 128)).eval()

    with pytest.raises(UsageError, match="already there; choose another --out"):
        export_model(model, recipe, tmp_path, kind="torch")
