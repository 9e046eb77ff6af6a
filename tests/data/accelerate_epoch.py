"""Started by `accelerate launch`: each rank writes what two epochs gave it, and how mistakes are refused.

Arguments: folder of the dataset, folder to write to.
"""

import json
import sys
from pathlib import Path

import torch.distributed
from accelerate import Accelerator

from refseg.data.index import ManifestIndex
from refseg.data.loader import RefLoader, prepare_loader
from refseg.data.transforms import Geometry
from refseg.errors import TrainingError

dataset, out = Path(sys.argv[1]), Path(sys.argv[2])
accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
rank, world_size = accelerator.process_index, accelerator.num_processes


def make_loader(**options: int) -> RefLoader:
    return RefLoader(
        ManifestIndex.open(dataset, ["train"]),
        geometry=Geometry(kind="stretch", size=(16, 16)),
        sampling="sentence",
        num_tokens=12,
        shuffle=True,
        remainder="pad",
        num_workers=1,
        **{"global_batch": 10, "seed": 0, "rank": rank, "world_size": world_size, **options},
    )


def refusal(**options: int) -> str:
    try:
        prepare_loader(accelerator, make_loader(**options))
    except TrainingError as error:
        return str(error)
    return ""


loader = make_loader()
prepared = prepare_loader(accelerator, loader)
epochs = []
for epoch in range(2):
    loader.set_epoch(epoch)
    batches = []
    for batch in prepared:
        with accelerator.accumulate():
            keep = ~batch.is_pad
            pairs = zip(batch.row_index[keep].tolist(), batch.sentence_index[keep].tolist(), strict=True)
            batches.append({"pairs": list(pairs), "sync": accelerator.sync_gradients})
    epochs.append(batches)
report = {
    "world_size": world_size,
    "len": len(prepared),
    "epochs": epochs,
    "same rank": refusal(rank=0),
    "other seed": refusal(seed=rank),
}
(out / f"{rank}.json").write_text(json.dumps(report))
accelerator.wait_for_everyone()
torch.distributed.destroy_process_group()
