"""Fixtures every test may use."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data beside the checkout; tests that need it skip where it is absent."""
    folder = Path(os.environ.get("REFSEG_SHARED_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"needs the real data beside the checkout (../shared/data or REFSEG_SHARED_DATA); not at {folder}")
    return folder


@pytest.fixture(scope="session")
def toy_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder: a tiny model trained for 12 steps on 24 toy scenes, which lie where its recipe says."""
    from pipelines.build import BuildOptions, build_dataset
    from pipelines.toy import draw_toy
    from refseg.config import load_recipe
    from refseg.training.trainer import train

    folder = tmp_path_factory.mktemp("toy_run")
    draw_toy(folder / "source", num_images=40, seed=0, image_size=(96, 96))
    build_dataset(BuildOptions(dataset="toy/refseg", annotations=folder / "source", out=folder / "shards", workers=1))
    settings = [
        f"data.root={folder / 'shards'}", "data.input_size=64", "data.expressions_per_image=3",
        "model.dim=32", "model.num_decoder_layers=1", "model.ffn_dim=64", "train.lr=1e-2",
        "train.epochs=2", "train.global_batch=4", "train.log_every_steps=1", "train.max_steps=12",
        "train.val_every_epochs=1", "train.warmup_steps=0",
    ]  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("refseg.training.launch.cpu_threads", lambda environ, **numbers: 1)
        train(load_recipe("toy-quick", settings), folder / "run")
    return folder / "run"
