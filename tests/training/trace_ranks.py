"""Trains by a given recipe and writes which sentences each rank saw; a test starts it by `accelerate launch`."""

import json
import os
import sys
from pathlib import Path

from torch import Tensor

from refseg.config import load_recipe
from refseg.data.batch import Batch
from refseg.training import trainer


def main(recipe: str, out: Path, overrides: list[str]) -> None:
    seen: list[list[int]] = []
    train_step = trainer._Trainer._train_step

    def noted(self: trainer._Trainer, batch: Batch) -> Tensor:
        real = ~batch.is_pad
        seen.extend(
            [self.step, row, sentence]
            for row, sentence in zip(batch.row_index[real].tolist(), batch.sentence_index[real].tolist(), strict=True)
        )
        return train_step(self, batch)

    trainer._Trainer._train_step = noted  # type: ignore[method-assign]
    trainer.train(load_recipe(recipe, overrides), out)
    (out / f"seen-{os.environ['RANK']}.json").write_text(json.dumps(seen))
    trainer.leave_process_group()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3:])
