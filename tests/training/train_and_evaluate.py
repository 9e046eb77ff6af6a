"""Trains, then scores a model with known masks on all processes; a test starts it by launchers."""

import sys
from pathlib import Path

from refseg.config import load_recipe
from refseg.data.index import ManifestIndex
from refseg.data.transforms import Geometry
from refseg.evaluation.evaluate import evaluate_model
from refseg.evaluation.protocols import PROTOCOLS
from refseg.training import trainer
from refseg.training.launch import start_accelerator
from tests.colour_model import ColourModel


def main(out: Path, overrides: list[str]) -> None:
    """Train into `out`, then write `rows.arrow` there: the scores of the colour model by all protocols.

    The masks of a trained model might differ, because another order of a sum may move a pixel across the threshold.
    """
    recipe = load_recipe("toy-quick", overrides)
    trainer.train(recipe, out)
    accelerator = start_accelerator(recipe.train)
    model = ColourModel()
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
    main(Path(sys.argv[1]), sys.argv[2:])
