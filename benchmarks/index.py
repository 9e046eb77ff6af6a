"""Opening a dataset of any size, beginning and resuming an epoch of it: seconds, and memory of each worker.

    python benchmarks/index.py [--images 2000000] [--shared FOLDER] [--work FOLDER]

Builds one shard of 510 images with RefCOCO's numbers of refs and sentences (see `corpus.py`), then writes its manifest
again and again with other ids; all tars are links to that one, so that every sample can be read. Annotations, which
reading does not need, are left out. Each measurement is a process of its own, timed without its imports; batches are of
32 sentences at 480 x 480 from two workers. 2 million images are 14 million sentences: 2.4 GB of manifests, 1.2 GB of
index, and 10 GB more once all masks were asked for.
"""

import argparse
import json
import multiprocessing
import os
import pickle
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from corpus import DATASET, copy_images, find_material, write_annotations

from pipelines.build import build_dataset
from pipelines.options import BuildOptions
from refseg.data.index import ManifestIndex
from refseg.data.loader import RefLoader, WorkerKind
from refseg.data.order import EpochOrder
from refseg.dataset.descriptor import DESCRIPTOR_NAME, ShardEntry, load_descriptor
from refseg.reading import Reading

BLOCK_IMAGES = 600  # 17 of 20 are train, and fill a shard
REFCOCO_IMAGES = 19_994
AIMS = {REFCOCO_IMAGES: "1.5 s", 2_000_000: "5 s"}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=2_000_000)
    parser.add_argument("--shared", type=Path, help="folder of real data")
    parser.add_argument("--work", type=Path, help="folder for the datasets, which are used again if they are there")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measure(args.measure)))
        return 0
    with tempfile.TemporaryDirectory() as temporary:
        work = args.work or Path(temporary)
        block = work / "block"
        if not (block / DESCRIPTOR_NAME).is_file():
            build_block(block, args.shared)
        for images in sorted({REFCOCO_IMAGES, args.images}):
            folder = work / f"images-{images}"
            if not (folder / DESCRIPTOR_NAME).is_file():
                repeat_block(block, folder, images)
            report(folder, AIMS.get(images, "none"))
    return 0


def report(folder: Path, aim: str) -> None:
    """Measure in processes of their own: three times with an empty cache and once more as each left it.

    Before the first of all, the manifests are on the disk alone.
    """
    command = [sys.executable, __file__, "--measure", str(folder)]
    first, later = [], []
    forget(folder)
    for _ in range(3):
        with tempfile.TemporaryDirectory(dir=folder.parent) as cache:
            env = {**os.environ, "REFSEG_CACHE": cache}
            for runs in (first, later):
                runs.append(json.loads(subprocess.run(command, env=env, stdout=subprocess.PIPE, check=True).stdout))

    def median(name: str) -> float:
        return statistics.median(run[name] for run in later)

    def of_first(name: str) -> str:
        cold, *warm = (run[name] for run in first)
        return f"{statistics.median(warm):8.2f} s, {cold:.2f} s from the disk"

    one = first[0]
    print(f"{one['images']:,} images, {one['refs']:,} refs, {one['sentences']:,} sentences")
    print(f"  opened for the first time           {of_first('open')}, {one['peak'] / 1e6:,.0f} MB at most")
    print(f"  ... of which CPU                    {of_first('cpu')}")
    print(f"  first time, with the first batch    {of_first('first batch')} (aim: {aim})")
    print(f"  opened later                        {median('open'):8.2f} s")
    print(f"  opened later, with the first batch  {median('first batch'):8.2f} s (aim: {aim})")
    print(f"  resumed at 90 %, with a batch       {median('resume'):8.2f} s (aim: 1 s)")
    print(f"  three batches of another epoch      {median('plan') * 1e3:8.2f} ms")
    print(f"  a worker process more               {median('worker') / 1e6:8.1f} MB (aim: 100 MB)")
    print(f"  an index sent to a process          {median('pickled') / 1e6:8.1f} MB")


def forget(folder: Path) -> None:
    """Let the system drop the manifests from its memory."""
    for path in folder.glob("*.parquet"):
        with path.open("rb") as file:
            os.fsync(file.fileno())  # what is not on the disk yet cannot be dropped
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def measure(folder: Path) -> dict[str, float]:
    """Seconds and bytes of opening, beginning and resuming."""
    torch.set_num_threads(1)
    start, start_cpu = time.perf_counter(), time.process_time()
    index = ManifestIndex.open(folder, ["train"])
    opened, cpu = time.perf_counter() - start, time.process_time() - start_cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    next(iter(make_loader(index)))
    first_batch = time.perf_counter() - start

    start = time.perf_counter()
    loader = make_loader(index)
    steps = 9 * loader.steps_per_epoch // 10
    loader.load_cursor(loader.cursor(steps))
    next(iter(loader))
    resume = time.perf_counter() - start

    start = time.perf_counter()
    order = EpochOrder(index, Reading(sampling="sentence", global_batch=256), epoch=1)
    for step in range(3):
        order.plan(step, rank=0, world_size=8)
    plan = time.perf_counter() - start
    return {
        "images": index.num_images, "refs": index.num_rows, "sentences": index.num_sentences, "open": opened,
        "cpu": cpu,
        "first batch": first_batch, "resume": resume, "plan": plan, "peak": peak,
        "pickled": len(pickle.dumps(index)), "worker": worker_memory(index),
    }  # fmt: skip


def make_loader(index: ManifestIndex, kind: WorkerKind = "threads") -> RefLoader:
    reading = Reading(sampling="sentence", global_batch=32, num_tokens=20, num_workers=2, worker_kind=kind)
    return RefLoader(index, reading)


def worker_memory(index: ManifestIndex) -> int:
    """Bytes that a worker process alone holds after 40 batches, mapped files apart: they are the machine's."""
    loader = make_loader(index, "processes")
    for _, _batch in zip(range(40), loader, strict=False):
        pass
    worker = multiprocessing.active_children()[0]
    total, is_file = 0, False
    for line in Path(f"/proc/{worker.pid}/smaps").read_text().splitlines():
        first, *rest = line.split()
        if not first.endswith(":"):  # begins a mapping: addresses, rights, offset, device, inode, and a file's path
            is_file = len(rest) > 4 and rest[4].startswith("/") and not rest[4].startswith("/dev/shm/")
        elif first == "Private_Dirty:" and not is_file:
            total += int(rest[0]) * 1024
    return total


def build_block(out: Path, shared: Path | None) -> None:
    """A dataset whose first shard of train is full."""
    material = find_material(shared)
    with tempfile.TemporaryDirectory() as source:
        images = copy_images(material, Path(source), BLOCK_IMAGES)
        write_annotations(material, Path(source), BLOCK_IMAGES)
        build_dataset(BuildOptions(dataset=DATASET, annotations=Path(source), images=images, out=out, workers=1))


def repeat_block(block: Path, out: Path, images: int) -> None:
    """Write a dataset of one split with so many images, or a few more: of whole shards."""
    start = time.perf_counter()
    out.mkdir(parents=True)
    load_block(block)
    num_shards = -(-images // block_entry.num_images)
    with ProcessPoolExecutor(2, initializer=load_block, initargs=(block,)) as pool:
        entries = list(pool.map(write_shard, range(num_shards), [out] * num_shards, chunksize=8))
    descriptor = replace(load_descriptor(block), shards=tuple(entries), source_counts={})
    (out / DESCRIPTOR_NAME).write_text(descriptor.to_json(), encoding="utf-8")
    print(f"{out}: written in {time.perf_counter() - start:.0f} s", file=sys.stderr)


def load_block(folder: Path) -> None:
    global block_folder, block_entry, block_table
    block_folder = folder
    block_entry = next(entry for entry in load_descriptor(folder).shards if entry.name == "train-00000")
    table = pq.read_table(folder / "train-00000.parquet")
    nothing = pa.array([[]] * table.num_rows, table.schema.field("annotations").type)
    block_table = table.set_column(table.column_names.index("annotations"), "annotations", nothing).combine_chunks()


def write_shard(number: int, out: Path) -> ShardEntry:
    name = f"train-{number:05d}"
    os.link(block_folder / "train-00000.tar", out / f"{name}.tar")
    columns: dict[str, Any] = {key: block_table.column(key).combine_chunks() for key in block_table.column_names}
    columns["ref_id"] = pc.add(columns["ref_id"], number * 10_000)
    columns["image_id"] = pc.add(columns["image_id"], number * 10_000)
    columns["shard"] = pa.array([f"{name}.tar"] * block_table.num_rows)
    lists = columns["sentences"]
    fields = {field.name: lists.values.field(field.name) for field in lists.type.value_type}
    fields["sent_id"] = pc.add(fields["sent_id"], number * 10_000)
    structs = pa.StructArray.from_arrays(list(fields.values()), names=list(fields))
    columns["sentences"] = pa.ListArray.from_arrays(lists.offsets, structs)
    path = out / f"{name}.parquet"
    pq.write_table(pa.table(columns, schema=block_table.schema), path, compression="zstd", row_group_size=4096)
    data = path.read_bytes()
    return replace(
        block_entry,
        name=name,
        parquet_bytes=len(data),
        parquet_sha256=sha256(data).hexdigest(),
        rows_sha256=sha256(name.encode()).hexdigest(),  # of a kind: what the digest depends on
    )


if __name__ == "__main__":
    sys.exit(main())
