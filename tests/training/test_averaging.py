"""The average of the weights: what is averaged, what is copied, and which steps count."""

from pathlib import Path

import pytest
import timm
import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from torch import nn

from refseg.config import Recipe, load_recipe
from refseg.data.batch import Batch
from refseg.data.index import ManifestIndex
from refseg.data.transforms import Geometry
from refseg.models import build_model
from refseg.models.fcnet import EmphasisGeneration
from refseg.models.model import SegmentationModel
from refseg.training import trainer
from refseg.training.checkpoint import load_checkpoint
from refseg.training.setup import build_loader
from refseg.training.step import OptimizerStep, WeightAverage
from refseg.training.validation import Validation


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("refseg.training.launch.cpu_threads", lambda environ, **numbers: 1)


class Small(SegmentationModel):
    """A grid, a norm, windows of 12 x 12 as Swin-Base has, whose indices a state dict does not hold, and a mask."""

    def __init__(self, grid: int) -> None:
        super().__init__()
        self.egm = EmphasisGeneration(grid=(grid, grid), word_dim=4, dim=4, num_heads=1)
        self.windows = timm.models.swin_transformer.SwinTransformer(
            img_size=48, window_size=12, embed_dim=4, depths=(1,), num_heads=(1,), num_classes=0
        )
        self.norm = nn.BatchNorm2d(2)
        self.register_buffer("causal_mask", torch.tensor([0.0, -torch.inf]), persistent=False)


@pytest.mark.parametrize("decay", [0.9, 0.9995, 0.9999])
@pytest.mark.parametrize("grid", [30, 26])
def test_buffers_that_are_no_statistics_are_those_of_the_model_after_many_steps(decay: float, grid: int) -> None:
    model = Small(grid)
    average = WeightAverage(model, decay=decay)
    for _ in range(50):
        model.norm.num_batches_tracked += 1
        average.update(model)

    averaged = dict(average.model.named_buffers())
    assert averaged["egm.native_grid"].tolist() == [grid, grid]
    assert averaged["norm.num_batches_tracked"] == 50
    assert averaged["windows.layers.0.blocks.0.attn.relative_position_index"].numel() == 20_736
    for name, buffer in model.named_buffers():
        assert torch.equal(averaged[name], buffer), name


def test_weights_and_statistics_of_batch_norms_are_averaged() -> None:
    model = Small(2)
    for tensor in (model.norm.weight, model.norm.running_mean):
        nn.init.constant_(tensor, 1.0)
    average = WeightAverage(model, decay=0.75)
    for tensor in (model.norm.weight, model.norm.running_mean):
        nn.init.constant_(tensor, 5.0)
    average.update(model)

    assert average.model.norm.weight.tolist() == [0.75 * 1 + 0.25 * 5] * 2
    assert average.model.norm.running_mean.tolist() == [0.75 * 1 + 0.25 * 5] * 2


def test_a_run_with_an_average_resumes_and_its_checkpoint_scores_as_its_validation_did(
    overrides: list[str], tmp_path: Path
) -> None:
    # A grid of 6 x 6: in floating point, 6 * 0.9995 + 6 * 0.0005 is below 6.
    settings = [*overrides, "data.input_size=96", "train.ema_decay=0.9995", "train.val_every_epochs=1",
                "train.trackers=[]"]  # fmt: skip
    trainer.train(load_recipe("toy-quick", [*settings, "train.max_steps=4"]), tmp_path)
    recipe = load_recipe("toy-quick", [*settings, "train.max_steps=6"])
    result = trainer.train(recipe, tmp_path)

    model = load_checkpoint(result.checkpoint).model
    assert load_file(result.checkpoint / "average.safetensors")["egm.native_grid"].tolist() == [6, 6]
    geometry = Geometry(kind=recipe.data.geometry, size=recipe.data.input_size, mean=model.image_mean)
    scores, _ = Validation(recipe, Accelerator(cpu=True)).score(model, geometry)
    assert result.best is not None
    assert scores.overall_iou == result.best.overall_iou


def test_a_step_that_the_scaler_leaves_out_does_not_count_in_the_average(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    accelerator = Accelerator(cpu=True)
    accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    recipe = recipe.model_copy(update={"train": recipe.train.model_copy(update={"ema_decay": 0.5, "clip_norm": 0.0})})
    model = build_model(recipe.model, input_size=recipe.data.input_size)
    index = ManifestIndex.open(Path(recipe.data.root), ["train"])
    geometry = Geometry(kind=recipe.data.geometry, size=recipe.data.input_size, mean=model.image_mean)
    batch = next(iter(build_loader(recipe, index, geometry, accelerator)))
    # As on a GPU: torch's scaler always calls a fused optimiser, which itself decides whether to take the step.
    fused = torch.optim.AdamW([{"params": list(model.parameters()), "base_lr": 0.1}], lr=0.1, fused=True)
    monkeypatch.setattr("refseg.training.step.build_optimizer", lambda *_, **__: fused)
    stepping = OptimizerStep(recipe, model, accelerator, steps_per_epoch=6)
    assert stepping.average is not None

    def moved_by(batch: Batch, step: int) -> tuple[bool, bool]:
        before = [tensor.clone() for tensor in (weight, averaged)]
        stepping.take(batch, step)
        return not torch.equal(weight, before[0]), not torch.equal(averaged, before[1])

    weight, averaged = (module.get_parameter("head.predict.weight") for module in (model, stepping.average.model))
    assert moved_by(batch, 0) == (True, True)
    handle = weight.register_hook(lambda gradient: gradient * torch.inf)
    assert moved_by(batch, 1) == (False, False)
    handle.remove()
    assert moved_by(batch, 2) == (True, True)
