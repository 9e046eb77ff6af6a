"""Started by `accelerate launch`: each rank writes the samples of two epochs, and the errors of wrong use.

Arguments: folder of the dataset, folder of a dataset with fewer samples than ranks, output folder, global batch.
"""

import json
import multiprocessing
import sys
from pathlib import Path
from typing import Any

import torch.distributed
from accelerate import Accelerator

from refseg.data.batch import Batch
from refseg.data.index import ManifestIndex
from refseg.data.loader import RefLoader, prepare_loader
from refseg.errors import TrainingError
from refseg.reading import Reading

dataset, few, out, global_batch = Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4])
accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
rank, world_size = accelerator.process_index, accelerator.num_processes


def make_loader(folder: Path = dataset, **options: Any) -> RefLoader:
    process = {"rank": options.pop("rank", rank), "world_size": options.pop("world_size", world_size)}
    settings = {
        "geometry": "stretch", "input_size": (16, 16), "sampling": "sentence", "num_tokens": 12, "remainder": "pad",
        "global_batch": global_batch, "num_workers": 1, "worker_kind": "processes",
    }  # fmt: skip
    return RefLoader(ManifestIndex.open(folder, ["train"]), Reading(**settings | options), **process)


def pairs(batch: Batch) -> list[tuple[int, int]]:
    """Return rows and sentences without padding."""
    keep = ~batch.is_pad
    return list(zip(batch.row_index[keep].tolist(), batch.sentence_index[keep].tolist(), strict=True))


def refusal(**options: Any) -> str:
    try:
        prepare_loader(accelerator, make_loader(**options))
    except TrainingError as error:
        return str(error)
    return ""


loader = make_loader()
prepared = prepare_loader(accelerator, loader)
length = len(prepared)
epochs, workers = [], []
for epoch in range(2):
    loader.set_epoch(epoch)
    batches = []
    for batch in prepared:
        with accelerator.accumulate():
            batches.append({"pairs": pairs(batch), "sync": accelerator.sync_gradients})
    epochs.append(batches)
    workers.append(sorted(child.pid for child in multiprocessing.active_children()))
loader.load_cursor(loader.cursor(3))
resumed = [pairs(batch) for batch in prepared]
evaluation = prepare_loader(accelerator, make_loader(shuffle=False, num_workers=2, worker_kind="threads"))
less = make_loader(few, global_batch=world_size, num_workers=0)
report = {
    "world_size": world_size,
    "len": length,
    "epochs": epochs,
    "same workers": workers[0] == workers[1] and len(workers[0]),
    "resumed": resumed,
    "evaluated": [pair for batch in evaluation for pair in pairs(batch)],
    "few": [pairs(batch) for batch in prepare_loader(accelerator, less)],
    "same rank": refusal(rank=0),
    "other seed": refusal(seed=rank),
    "other split": refusal(folder=few if rank else dataset),
}
(out / f"{rank}.json").write_text(json.dumps(report))
accelerator.wait_for_everyone()
torch.distributed.destroy_process_group()
