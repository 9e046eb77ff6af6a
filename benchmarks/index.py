"""Measures opening a dataset of any size, and starting and resuming an epoch: seconds, and memory of each worker.

    python benchmarks/index.py [--images 2000000] [--shared FOLDER] [--work FOLDER]

It builds one shard of 510 images with RefCOCO's numbers of refs and sentences (see `corpus.py`). Then it copies the
manifest many times, and writes the index of as many shards with other ids. All tars are links to that of the first
shard, so that every sample can be read. Each measurement runs in its own process, and its time does not include
imports. Batches have 32 sentences at 480 x 480 and come from two workers. 2 million images are 14 million sentences:
1.8 GB of manifests and 3 GB of index.
"""

import argparse
import json
import multiprocessing
import os
import pickle
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import torch
from corpus import DATASET, copy_images, find_material, write_annotations

from pipelines.build import build_dataset
from pipelines.options import BuildOptions
from refseg.data.index import ManifestIndex
from refseg.data.loader import RefLoader
from refseg.data.order import EpochOrder
from refseg.dataset.descriptor import DESCRIPTOR_NAME, INDEX_SUFFIX, load_descriptor
from refseg.dataset.index_file import IndexWriter, write_indexes
from refseg.dataset.index_rows import FlatRows, read_flat
from refseg.reading import Reading, WorkerKind
from refseg.storage import open_folder

BLOCK_IMAGES = 600  # 17 of 20 images are in the train split, which fills one shard
REFCOCO_IMAGES = 19_994
AIMS = {REFCOCO_IMAGES: "0.3 s to open", 2_000_000: "5 s, 1,500 MB"}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=2_000_000, help="number of images of the large dataset")
    parser.add_argument("--shared", type=Path, help="folder of real data")
    parser.add_argument("--work", type=Path, help="folder for the datasets; existing datasets are used again")
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
        report_block(block)
        for images in sorted({REFCOCO_IMAGES, args.images}):
            folder = work / f"images-{images}"
            if not (folder / DESCRIPTOR_NAME).is_file():
                repeat_block(block, folder, images)
            report(folder, AIMS.get(images, "none"))
    return 0


def report(folder: Path, aim: str) -> None:
    """Measure three times with an empty cache, and each time again with the filled cache, in separate processes.

    Before the first measurement, manifests and index are dropped from the system's page cache.
    """
    command = [sys.executable, __file__, "--measure", str(folder)]
    first, later = [], []
    drop_from_page_cache(folder)
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
    print(f"  opened for the first time           {of_first('open')}, peak memory {one['peak'] / 1e6:,.0f} MB")
    print(f"  ... of which CPU                    {of_first('cpu')}")
    print(f"  first time, with the first batch    {of_first('first batch')} (aim: {aim})")
    print(
        f"  memory with the first batch         {one['peak with batch'] / 1e6:8,.0f} MB at most with mapped files, "
        f"{one['own'] / 1e6:,.0f} MB of its own"
    )
    print(f"  opened later                        {median('open'):8.2f} s")
    print(f"  opened later, with the first batch  {median('first batch'):8.2f} s (aim: {aim})")
    print(f"  resumed at 90 %, with a batch       {median('resume'):8.2f} s (aim: 1 s)")
    print(f"  three batches of another epoch      {median('plan') * 1e3:8.2f} ms")
    print(f"  each additional worker process      {median('worker') / 1e6:8.1f} MB (aim: 100 MB)")
    print(f"  an index sent to a process          {median('pickled') / 1e6:8.1f} MB")


def drop_from_page_cache(folder: Path) -> None:
    """Drop manifests and index from the system's page cache."""
    for path in (*folder.glob("*.parquet"), *folder.glob(f"*{INDEX_SUFFIX}")):
        with path.open("rb") as file:
            os.fsync(file.fileno())  # pages that are not yet written cannot be dropped
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def measure(folder: Path) -> dict[str, float]:
    """Measure the seconds and bytes of opening a dataset, and of starting and resuming an epoch."""
    torch.set_num_threads(1)
    start, start_cpu = time.perf_counter(), time.process_time()
    index = ManifestIndex.open(folder, ["train"])
    opened, cpu = time.perf_counter() - start, time.process_time() - start_cpu
    peak = memory("VmHWM")
    next(iter(make_loader(index)))
    first_batch = time.perf_counter() - start
    peak_with_batch, own = memory("VmHWM"), memory("RssAnon")

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
        "cpu": cpu, "peak with batch": peak_with_batch, "own": own,
        "first batch": first_batch, "resume": resume, "plan": plan, "peak": peak,
        "pickled": len(pickle.dumps(index)), "worker": worker_memory(index),
    }  # fmt: skip


def memory(field: str) -> int:
    """Bytes of this process. `ru_maxrss` would begin with the memory of the process that started this one."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{field}:"))
    return int(line.split()[1]) * 1024


def make_loader(index: ManifestIndex, kind: WorkerKind = "threads") -> RefLoader:
    reading = Reading(sampling="sentence", global_batch=32, num_tokens=20, num_workers=2, worker_kind=kind)
    return RefLoader(index, reading)


def worker_memory(index: ManifestIndex) -> int:
    """Return the private bytes of a worker process after 40 batches, without mapped files, which processes share."""
    loader = make_loader(index, "processes")
    for _, _batch in zip(range(40), loader, strict=False):
        pass
    worker = multiprocessing.active_children()[0]
    total, is_file = 0, False
    for line in Path(f"/proc/{worker.pid}/smaps").read_text().splitlines():
        first, *rest = line.split()
        if not first.endswith(":"):  # first line of a mapping: addresses, permissions, offset, device, inode, file path
            is_file = len(rest) > 4 and rest[4].startswith("/") and not rest[4].startswith("/dev/shm/")
        elif first == "Private_Dirty:" and not is_file:
            total += int(rest[0]) * 1024
    return total


def build_block(out: Path, shared: Path | None) -> None:
    """Build a dataset whose first shard of the train split is full."""
    material = find_material(shared)
    with tempfile.TemporaryDirectory() as source:
        images = copy_images(material, Path(source), BLOCK_IMAGES)
        write_annotations(material, Path(source), BLOCK_IMAGES)
        build_dataset(BuildOptions(dataset=DATASET, annotations=Path(source), images=images, out=out, workers=1))


def report_block(block: Path) -> None:
    """Print how long writing an index takes, and the number of bytes of each part of a dataset."""
    descriptor = load_descriptor(block)
    start = time.perf_counter()
    with tempfile.TemporaryDirectory(dir=block.parent) as out:
        for entry in descriptor.shards:
            (Path(out) / f"{entry.name}.parquet").symlink_to((block / f"{entry.name}.parquet").absolute())
        indexes = write_indexes(open_folder(out), descriptor, Path(out))
        num_images = sum(entry.num_images for entry in descriptor.shards)
        print(f"index of {num_images} images written in {time.perf_counter() - start:.2f} s")
    index = ManifestIndex.open(block, descriptor.splits)
    jpegs = int(index.image_bytes.sum())
    parts = {
        "tars": sum(entry.tar_bytes for entry in descriptor.shards),
        "manifests": sum(entry.parquet_bytes for entry in descriptor.shards),
        "index": sum(entry.num_bytes for entry in indexes),
    }
    print("bytes by bytes of JPEGs: " + ", ".join(f"{name} {size / jpegs:.4f}" for name, size in parts.items()))
    print(f"together {sum(parts.values()) / jpegs:.4f} (aim: 1.06)")


def repeat_block(block: Path, out: Path, images: int) -> None:
    """Write a dataset of one split with at least `images` images, in full shards."""
    start = time.perf_counter()
    out.mkdir(parents=True)
    descriptor = load_descriptor(block)
    first = next(entry for entry in descriptor.shards if entry.name == "train-00000")
    (rows,) = read_flat(open_folder(block), descriptor, [first])
    entries = []
    with tempfile.TemporaryDirectory(dir=out.parent) as scratch, IndexWriter(Path(scratch)) as writer:
        for number in range(-(-images // first.num_images)):
            name = f"train-{number:05d}"
            os.link(block / "train-00000.tar", out / f"{name}.tar")
            shutil.copyfile(block / "train-00000.parquet", out / f"{name}.parquet")
            other_ids = {key: rows.arrays[key] + number * 10_000 for key in ("ref_id", "image_id", "sent_id")}
            writer.add(FlatRows({**rows.arrays, **other_ids}, [f"{name}.tar"]))
            # The hash is not that of the rows, but it differs between shards, because the digest depends on it.
            entries.append(replace(first, name=name, rows_sha256=sha256(name.encode()).hexdigest()))
        index = writer.finish(out / f"train{INDEX_SUFFIX}", "train")
    changed = replace(descriptor, shards=tuple(entries), source_counts={}, indexes=(index,))
    (out / DESCRIPTOR_NAME).write_text(changed.to_json(), encoding="utf-8")
    print(f"{out}: written in {time.perf_counter() - start:.0f} s", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
