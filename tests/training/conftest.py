from pathlib import Path

import pytest

from pipelines.build import build_dataset
from pipelines.options import BuildOptions
from pipelines.toy import draw_toy
from refseg.config import Recipe, load_recipe


@pytest.fixture(scope="session")
def toy_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 scenes of 96 pixels, built."""
    folder = tmp_path_factory.mktemp("toy")
    draw_toy(folder / "source", num_images=40, seed=0, image_size=(96, 96))
    build_dataset(BuildOptions(dataset="toy/refseg", annotations=folder / "source", out=folder / "shards", workers=1))
    return folder / "shards"


@pytest.fixture
def overrides(toy_shards: Path) -> list[str]:
    """Overrides that make the quick toy recipe train in seconds: 24 images, 6 steps per epoch, 2 epochs."""
    return [
        f"data.root={toy_shards}", "data.input_size=64", "data.num_workers=0", "data.expressions_per_image=3",
        "model.dim=32", "model.num_decoder_layers=1", "model.ffn_dim=64", "model.num_heads=4", "model.dropout=0.1",
        "train.epochs=2", "train.global_batch=4", "train.log_every_steps=1", "train.checkpoint_every_steps=4",
        "train.keep_checkpoints=2", "train.val_every_epochs=2", "train.warmup_steps=0", "train.max_steps=12",
    ]  # fmt: skip


@pytest.fixture
def recipe(overrides: list[str]) -> Recipe:
    return load_recipe("toy-quick", overrides)
