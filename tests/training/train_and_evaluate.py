"""Trains, then scores what was trained on all processes: started by launchers in a test."""

import sys
from pathlib import Path
from typing import Any

from refseg.config import load_recipe
from refseg.data.index import ManifestIndex
from refseg.data.transforms import Geometry
from refseg.evaluation.evaluate import evaluate_model
from refseg.evaluation.protocols import PROTOCOLS
from refseg.training import trainer
from refseg.training.checkpoint import load_checkpoint
from refseg.training.launch import start_accelerator


def main(out: Path, scored: Path, overrides: list[str]) -> None:
    """Train into `out`, then write `rows.arrow` there: the run in `scored` by all protocols, for all launches."""
    recipe = load_recipe("toy-quick", overrides)
    trainer.train(recipe, out)
    accelerator = start_accelerator(recipe.train)
    model: Any = load_checkpoint(scored, accelerator.device).model
    # After 20 steps it draws nothing at one half: moved to a mean of 0, each sentence has a mask with long borders.
    model.head.register_forward_hook(lambda *given: given[-1] - given[-1].mean((1, 2, 3), keepdim=True))
    rows = evaluate_model(
        model,
        ManifestIndex.open(recipe.data.root, ["val", "testA"]),
        accelerator=accelerator,
        geometry=Geometry(kind=recipe.data.geometry, size=recipe.data.input_size, mean=model.image_mean),
        num_tokens=recipe.data.num_tokens,
        images_per_batch=2,
        protocols=list(PROTOCOLS.values()),
        save_predictions=True,
    )
    if accelerator.is_main_process:
        import pyarrow.feather as feather

        feather.write_feather(rows, out / "rows.arrow", compression="uncompressed")
    trainer.leave_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
