"""Started by `test_soak`: reads epochs with newly started workers each, and reports descriptors and memory.

Arguments: folder of the dataset, kind of workers, epochs. Writes JSON to stdout.
"""

import gc
import json
import multiprocessing
import os
import sys
import threading
import time
from pathlib import Path

import torch

from refseg.data.index import ManifestIndex
from refseg.data.loader import RefLoader
from refseg.reading import Reading

RESTART_EVERY = 4


def num_files() -> int:
    """Return the number of file descriptors of this process."""
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def memory(processes: list[int]) -> int:
    """Return the bytes of this process and its workers, without mapped files; shared memory counts once."""
    total = 0
    for process in ("self", *processes):
        lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
        total += sum(int(line.split()[1]) for line in lines if line.startswith(("Pss_Anon:", "Pss_Shmem:"))) * 1024
    return total


def main(folder: Path, kind: str, epochs: int) -> None:
    torch.set_num_threads(1)
    index = ManifestIndex.open(folder, ["train"])
    held, files, workers = [], [], []
    for image in (0, index.num_images - 1):  # opens both tars, which stay open
        index.read_image_bytes(image)
    before = num_files()
    loader: RefLoader | None = None
    for epoch in range(epochs):
        if epoch % RESTART_EVERY == 0:
            loader = None  # ends the workers
            reading = Reading(
                geometry="letterbox", input_size=(96, 96), sampling="sentence", global_batch=6, num_tokens=12,
                remainder="pad", num_workers=2, worker_kind=kind,  # type: ignore[arg-type]
            )  # fmt: skip
            loader = RefLoader(index, reading)
        assert loader is not None
        loader.set_epoch(epoch)
        seen = sum(int((~batch.is_pad).sum()) for batch in loader)
        assert seen == index.num_sentences
        children = [child.pid for child in multiprocessing.active_children() if child.pid]
        workers += children
        gc.collect()
        held.append(memory(children))
        files.append(num_files())
    loader = None
    gc.collect()
    deadline = time.monotonic() + 60
    while num_files() > before and time.monotonic() < deadline:
        time.sleep(0.1)  # threads of the queues close the last pipes, after the workers have ended
    report = {
        "pid": os.getpid(),
        "memory": held,
        "files": [before, *files, num_files()],
        "workers": sorted(set(workers)),
        "left": [child.pid for child in multiprocessing.active_children()],
        "threads": [thread.name for thread in threading.enumerate() if "refseg" in thread.name],
    }
    sys.stdout.write(json.dumps(report))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
